"""The same rows, verdicts and files over Ray Data as without it."""

from __future__ import annotations

import pytest
from curating import balances, row, through

from stillhouse.workspace import init_workspace

ray = pytest.importorskip("ray", reason="Ray is not installed")


@pytest.mark.slow
def test_over_ray_the_result_is_the_same(tmp_path):
    from stillhouse.curate.cluster import on_ray

    rows = [
        row(
            i,
            ""
            if i % 11 == 0
            else f"mail me at jo{i % 700}@gmx.de and tell me about the weather of day {i % 700}",
            f"what is on day {i}",
            finish_reason="length" if i % 7 == 0 else "stop",
            family="fg"[i % 2],
        )
        for i in range(9000)
    ]
    found = []
    for name, more in (("here", {}), ("ray", {"alone": on_ray()})):
        workspace = init_workspace(tmp_path / name)
        done, kept, dropped = through(rows, workspace, personal="redact", near_duplicates=0, **more)
        assert balances(done)
        found.append((kept, dropped, done))
    assert found[0] == found[1]
    assert found[0][2].reasons.keys() == {"empty", "truncated"}
    assert sum(found[0][2].funnel[7]["marks"].values()) > 7000
