"""What curation reads: rows of any length, settings that make sense, and what else its result depends on."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from curating import recipe, row

from stillhouse.collect import EXCHANGES
from stillhouse.curate import read_by
from stillhouse.curate.rows import exchanges
from stillhouse.errors import UsageError


def test_another_embedding_or_scorer_is_another_input(tmp_path, monkeypatch):
    from importlib.metadata import EntryPoint, EntryPoints

    (tmp_path / "model.safetensors").write_bytes(b"one")
    settings = recipe(semantic_duplicates=0.9, embedding=str(tmp_path), verify="all").curate
    first = read_by(settings)
    (tmp_path / "model.safetensors").write_bytes(b"other")
    second = read_by(settings)
    points = EntryPoints([EntryPoint("mine", "own_filters:same", "stillhouse.scorers")])
    monkeypatch.setattr("stillhouse.curate.steps.entry_points", lambda group: points.select(group=group))
    assert first != second != read_by(settings)
    assert read_by(settings) == read_by(settings)


def test_long_rows_come_in_small_parts(tmp_path):
    rows = [row(i, "x" * 1_000_000) for i in range(100)]
    pq.write_table(pa.Table.from_pylist(rows, schema=EXCHANGES), tmp_path / "e.parquet")
    parts = list(exchanges(tmp_path / "e.parquet", {}))
    assert [one.row["leaf"] for part in parts for one in part] == list(range(100))
    assert max(map(len, parts)) < 50


@pytest.mark.parametrize("settings", [{"languages": []}, {"min_words": 9, "max_words": 3}])
def test_settings_that_leave_no_row_are_told(settings: dict):
    with pytest.raises(UsageError, match="not usable"):
        recipe(**settings)
