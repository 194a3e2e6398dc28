"""Eight kills, and twenty, before a provider that bills, limits, stalls, cuts and lies: a small chaos.py."""

from collections import Counter

import chaos
import pytest


@pytest.fixture(scope="module", params=[8, pytest.param(20, marks=pytest.mark.slow)])
def kills(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory, kills: int) -> chaos.Watched:
    return chaos.chaos(tmp_path_factory.mktemp("chaos"), prompts=chaos.PROMPTS * kills, kills=kills)


@pytest.mark.parametrize("check", [name for name in chaos.CHECKS if name != "worst"])
def test_no_kill_loses_repeats_or_hides_anything(watched: chaos.Watched, check: str):
    assert watched.wrong[check] == 0, "\n".join(
        line for line in watched.evidence if chaos.CHECKS[check] in line
    )


def test_the_cap_holds_even_if_every_attempt_without_an_answer_was_billed(watched: chaos.Watched):
    assert watched.wrong["worst"] == 0, watched.evidence


def test_the_provider_did_its_worst(watched: chaos.Watched, kills: int):
    """Else the test above shows little."""
    states = Counter(attempt.state for attempt in watched.attempts)
    does = {entry.does for entry in watched.entries}
    assert watched.kills == kills
    assert states["answered"] == kills * chaos.PROMPTS * chaos.SAMPLES
    assert states["failed"] > kills
    assert chaos.resent(watched.attempts) == states["unknown"] == len(watched.open_at_kills) > kills
    assert does >= {  # a slow machine never comes to its limits
        "cut_work",
        "cut_body",
        "stall",
        "truncated",
        "malformed",
        "claims_nothing",
        "claims_too_much",
    }
    assert watched.ends["budget reached"] >= kills // 7
