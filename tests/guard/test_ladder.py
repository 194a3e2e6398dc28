"""The ladder: which step is due, and what each of them takes."""

from __future__ import annotations

import ast
import math
from itertools import pairwise
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillhouse.errors import UsageError
from stillhouse.guard import ladder
from stillhouse.guard.config import Detection, Leaks
from stillhouse.guard.ladder import RUNGS, Standing
from stillhouse.guard.limits import Limit, Subject
from stillhouse.guard.lines import Lines, as_toml, calibrated, promises, read_lines, shipped

HOUR, DAY = 3600.0, 86_400.0
NOW = 1_790_000_000.0
ENFORCED = Detection(mode="enforce")
SHADOW = Detection()


def line(score, alarm=0.01, accounts=1000):
    return {"score": score, "alarm": alarm, "accounts": accounts}


LINES = Lines.model_validate(
    {
        "source": "a test",
        "flag": line(1.0),
        "kill": line(2.0, 0.001),
        "declared_flag": line(1.5),
        "declared_kill": line(3.0),
    }
)
FRESH = Standing("acct_1")


def step(standing, score, now, settings=ENFORCED, code="copying_answers"):
    return ladder.climbed(standing, score, code, LINES, settings, now)


def walked(settings, score, hours, start=FRESH):
    """Where an account stands that has one score for so many hours, looked at every ten minutes."""
    standing, seen = start, []
    for tick in range(int(hours * 6)):
        after = step(standing, score, NOW + tick * 600, settings)
        if after is not None:
            standing = after
            seen.append(after)
    return standing, seen


def test_steps_climb_one_at_a_time_with_their_least_time_between():
    standing, seen = walked(ENFORCED, 1.2, 400)
    assert [each.rung for each in seen] == ["notify", "throttle", "withhold", "review"]
    assert [b.since - a.since for a, b in pairwise(seen)] == [DAY] * 3
    assert standing.code == "copying_answers"
    assert not standing.shadow


def test_a_kill_needs_a_person_however_high_the_score():
    assert walked(ENFORCED, 99.0, 1000)[0].rung == "review"
    automatic = ENFORCED.model_copy(update={"automatic": True})
    assert walked(automatic, 1.9, 1000)[0].rung == "review"
    assert [each.rung for each in walked(automatic, 2.1, 1000)[1]] == [
        rung for rung in RUNGS[1:] if rung != "mark"
    ]


def test_marks_are_a_step_before_the_review_only_where_the_operator_wants_one():
    marking = ENFORCED.model_copy(update={"mark": True})
    standing, seen = walked(marking, 1.2, 400)
    assert [each.rung for each in seen] == ["notify", "throttle", "withhold", "mark", "review"]
    marked = seen[3]
    assert ladder.takes("mark", "withhold")
    assert ladder.takes("review", "mark")
    assert not ladder.takes("withhold", "mark")
    assert ladder.lapsed(marked, marking, marked.since + 31 * DAY).rung == "observe"
    # Where the operator gave the step up again, the next one is the review
    assert step(marked, 1.2, marked.since + 2 * DAY).rung == "review"
    assert standing.rung == "review"


def test_a_declared_use_has_lines_of_its_own():
    declared = FRESH._replace(declared="evaluation")
    assert step(declared, 1.4, NOW) is None
    assert step(declared, 1.6, NOW).rung == "notify"
    automatic = ENFORCED.model_copy(update={"automatic": True})
    assert walked(automatic, 2.9, 1000, declared)[0].rung == "review"
    assert walked(automatic, 3.1, 1000, declared)[0].rung == "kill"


def test_an_undo_restores_and_the_same_reason_makes_no_step_for_a_while():
    throttled, _ = walked(ENFORCED, 1.2, 30)
    assert throttled.rung == "throttle"
    later = NOW + 2 * DAY
    undone = ladder.decided(throttled, "undo", ENFORCED, later)
    assert ladder.in_force(undone, ENFORCED) == "observe"
    assert step(undone, 99.0, later + 29 * DAY) is None
    assert step(undone, 1.2, later + 29 * DAY, code="copying_reasoning").rung == "notify"
    assert step(undone, 1.2, later + 31 * DAY).rung == "notify"


def test_nothing_climbs_while_an_appeal_is_open():
    notified = step(FRESH, 1.2, NOW)._replace(appeal=7)
    assert step(notified, 99.0, NOW + 100 * DAY) is None
    kept = ladder.decided(notified, "keep", ENFORCED, NOW + DAY)
    assert (kept.rung, kept.appeal) == ("notify", 0)
    assert step(kept, 1.2, NOW + 2 * DAY).rung == "throttle"


def test_a_step_lapses_when_the_score_was_low_for_long_but_not_what_a_person_decided():
    withheld, _ = walked(ENFORCED, 1.2, 60)
    assert withheld.rung == "withhold"
    assert ladder.lapsed(withheld, ENFORCED, withheld.since + 29 * DAY) is None
    assert ladder.lapsed(withheld, ENFORCED, withheld.since + 31 * DAY).rung == "observe"
    assert (
        ladder.lapsed(
            withheld._replace(alarmed=withheld.since + 20 * DAY), ENFORCED, withheld.since + 31 * DAY
        )
        is None
    )
    for rung in ("observe", "review", "kill"):
        assert ladder.lapsed(withheld._replace(rung=rung), ENFORCED, NOW + 9999 * DAY) is None


def test_in_shadow_nothing_is_in_force_and_what_was_reached_there_counts_for_nothing_later():
    shadowed, seen = walked(SHADOW, 1.2, 400)
    assert [each.rung for each in seen] == ["notify", "throttle", "withhold", "review"]
    assert ladder.in_force(shadowed, SHADOW) == ladder.in_force(shadowed, ENFORCED) == "observe"
    with pytest.raises(UsageError, match="cannot be stopped yet"):
        ladder.decided(shadowed, "kill", ENFORCED, NOW)
    first = step(shadowed, 1.2, NOW + 100 * DAY, ENFORCED)
    assert (first.rung, first.shadow) == ("notify", False)
    killed = Standing("acct_1", "kill", NOW, False, "copying_answers")
    assert ladder.in_force(killed, ENFORCED) == "kill"
    assert ladder.in_force(killed, SHADOW) == "observe"


def test_a_person_decides_only_what_can_be_decided():
    for decision in ("undo", "keep"):
        with pytest.raises(UsageError):
            ladder.decided(FRESH, decision, ENFORCED, NOW)
    with pytest.raises(UsageError, match="cannot be stopped yet") as caught:
        ladder.decided(FRESH, "kill", ENFORCED, NOW)
    assert "accounts block" in caught.value.mend
    looked_at = ladder.decided(FRESH, "review", ENFORCED, NOW)
    assert (looked_at.rung, looked_at.code) == ("review", ladder.BY_HAND)
    assert ladder.decided(looked_at, "kill", ENFORCED, NOW).rung == "kill"


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            st.floats(0, 5 * DAY),
            st.floats(-5, 5),
            st.sampled_from(["copying_answers", "copying_reasoning"]),
            st.sampled_from(["", "", "", "undo", "keep", "review", "kill"]),
        ),
        max_size=60,
    ),
    st.booleans(),
)
def test_no_history_skips_a_rung_or_kills_without_a_person(history, automatic):
    chosen = ENFORCED.model_copy(update={"automatic": automatic})
    standing, now = FRESH, NOW
    for wait, score, code, decision in history:
        now += wait
        if decision:
            try:
                standing = ladder.decided(standing, decision, chosen, now)
            except UsageError:
                continue
        after = ladder.climbed(standing, score, code, LINES, chosen, now)
        if after is None:
            continue
        assert ladder.climbs(standing, score, LINES, chosen, now)
        assert RUNGS.index(after.rung) == RUNGS.index(standing.rung) + 1
        assert score > 1.0
        assert standing.rung == "observe" or now - standing.since >= DAY
        assert after.rung != "kill" or (automatic and score > 2.0)
        standing = after


def test_no_signal_reaches_the_ladder():
    """What makes steps imports nothing of the signals, so that none can stop anybody."""
    package = Path(ladder.__file__).parents[1]
    for name in ("guard/ladder.py", "guard/replaying.py", "gateway/watching.py", "gateway/steps.py"):
        tree = ast.parse((package / name).read_text())
        imported = {each.module or "" for each in ast.walk(tree) if isinstance(each, ast.ImportFrom)}
        assert not [module for module in imported if "signal" in module]


# What the steps take


def test_a_throttled_account_keeps_a_share_and_never_more_than_it_had():
    account = Subject(
        "account:acct_1",
        (
            Limit("requests", "minute", 60),
            Limit("requests", "day", 1000),
            Limit("output_tokens", "minute", 9000),
            Limit("output_tokens", "day", 100_000),
            Limit("concurrent", "ever", 8),
            Limit("money", "month", 5),
        ),
    )
    other = Subject("model:large", (Limit("requests", "minute", 10**6),))
    slowed, same = ladder.slowed((account, other), ENFORCED)
    assert same is other
    assert {(each.measure, each.window): each.amount for each in slowed.limits} == {
        ("requests", "minute"): 15,
        ("requests", "day"): 250,
        ("output_tokens", "minute"): 9000,
        ("output_tokens", "day"): 25_000,
        ("concurrent", "ever"): 8,
        ("money", "month"): 5,
    }
    free, _ = ladder.slowed((Subject("account:acct_1", ()), other), ENFORCED)
    assert free.limits == (Limit("requests", "minute", 20),)
    few, _ = ladder.slowed((Subject("account:acct_1", (Limit("requests", "minute", 1),)), other), ENFORCED)
    assert few.limits == (Limit("requests", "minute", 1),)


@pytest.mark.parametrize(
    ("route", "body", "left"),
    [
        ("chat/completions", {"logprobs": True, "top_logprobs": 5, "n": 1}, {"n": 1}),
        ("chat/completions", {"top_logprobs": 5}, {}),
        ("completions", {"logprobs": 0, "prompt": "x"}, {"prompt": "x"}),
        ("responses", {"include": ["message.output_text.logprobs", "x"]}, {"include": ["x"]}),
    ],
)
def test_log_probabilities_are_taken_out_of_a_request(route, body, left):
    assert ladder.without_logprobs(route, body) == left


def test_a_request_that_asks_for_none_stays_the_very_object():
    for body in ({"model": "x"}, {"logprobs": False}, {"logprobs": None, "top_logprobs": None}):
        assert ladder.without_logprobs("chat/completions", body) is body


def test_rules_are_stricter_while_something_is_withheld():
    loose = Leaks(logprobs="allow", reasoning="allow")
    strict = ladder.stricter(loose)
    assert (strict.logprobs, strict.reasoning, strict.n) == ("refuse", "strip", loose.n)


# Thresholds


def test_a_calibration_is_written_and_read_again(tmp_path):
    draw = Random(4)
    made = calibrated([draw.gauss(0, 0.4) for _ in range(2000)], [0.5] * 30, "own accounts, 2026-10")
    assert made.flag.score < made.kill.score < math.inf
    assert made.declared_flag.score == math.inf
    file = tmp_path / "thresholds.toml"
    file.write_text(as_toml(made))
    assert read_lines(str(file)) == made
    told = "\n".join(promises(made))
    assert "of accounts like these 2,000, at most 1 in 100 a month" in told
    assert "none: 1 in 100 needs 99 accounts, and there are 30" in told


def test_with_few_accounts_nobody_is_flagged():
    few = calibrated([0.1] * 50, [], "few")
    assert ladder.climbed(FRESH, 1e6, "copying_answers", few, ENFORCED, NOW) is None


@pytest.mark.parametrize("score", ["nan", "9.0"])
def test_a_file_that_would_stop_before_it_flags_is_refused(tmp_path, score):
    file = tmp_path / "thresholds.toml"
    flag = f"score = {shipped().flag.score}"
    file.write_text(as_toml(shipped()).replace(flag, f"score = {score}"))
    with pytest.raises(UsageError, match=r"thresholds\.toml"):
        read_lines(str(file))


def test_the_shipped_lines_say_that_they_are_simulated_and_hold_a_declared_use_to_its_own():
    assert shipped().source == "simulated traffic"
    assert (
        shipped().kill_of("") < shipped().flag_of("evaluation") < shipped().kill_of("evaluation") < math.inf
    )
