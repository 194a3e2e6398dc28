"""Does the rule hold its promise: few alarms without a change, and a change found?"""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.ask.drift import ALPHA, Heard, distance, first_change, look

ROUNDS, QUESTIONS, WORDS = 12, 8, 40


def rounds_of(
    draw: random.Random,
    noise: float,
    changed: float = 0.0,
    at: int = ROUNDS,
    ways: int | None = 3,
) -> list[list[Heard | None]]:
    """Rounds of a server whose answers leave their usual course at a random word in a share `noise` of
    cases, for one of so many `ways` on (None: another one each time). From round `at` on, a share of the
    questions is answered otherwise."""
    others = set(draw.sample(range(QUESTIONS), round(changed * QUESTIONS)))

    def text(n: int, question: int) -> str:
        kind = "new" if n >= at and question in others else "old"
        words = [f"{kind if place >= 10 else 'old'}{question}.{place}" for place in range(WORDS)]
        if draw.random() < noise:
            place, way = draw.randrange(WORDS), draw.random() if ways is None else draw.randrange(ways)
            words[place:] = [f"{way}.{rest}" for rest in range(WORDS - place)]
        return " ".join(words)

    return [[Heard(text(n, q), "m", None) for q in range(QUESTIONS)] for n in range(ROUNDS)]


@pytest.mark.parametrize("noise", [0.0, 0.1, 0.5, 1.0])
def test_a_teacher_that_stays_the_same_raises_hardly_an_alarm(noise: float):
    draw, runs = random.Random(11), 60
    alarms = sum(first_change(rounds_of(draw, noise)) is not None for _ in range(runs))
    assert alarms <= 3  # 0.6 are allowed on average; 4 or more would come by chance once in 300 tests


@pytest.mark.parametrize(
    ("noise", "changed", "within"),
    [(0.0, 1.0, 1), (0.1, 1.0, 1), (0.3, 1.0, 2), (1.0, 1.0, 4), (0.1, 0.5, 5)],
)
def test_a_change_is_found_soon(noise: float, changed: float, within: int):
    draw, runs, late = random.Random(12), 20, []
    for n in range(runs):
        at = 2 + n % 5
        change = first_change(rounds_of(draw, noise, changed, at, ways=None))
        late.append(ROUNDS if change is None else change.found - at + 1)
        if change is not None:
            assert change.sign == "answers"
            assert change.p is not None
            assert change.p < ALPHA
    assert sum(rounds <= within for rounds in late) >= 0.9 * runs, late


def test_the_moment_of_the_change_is_told():
    found = [first_change(rounds_of(random.Random(n), 0.2, 1.0, 5)) for n in range(20)]
    assert sum(change is not None and change.since == 5 for change in found) >= 18


def test_another_model_id_is_a_change_at_once():
    rounds: list[list[Heard | None]] = [[Heard("yes", "gpt-a", None)] * 3 for _ in range(4)]
    assert first_change(rounds) is None
    rounds[3] = [Heard("yes", "gpt-a", None), Heard("yes", "gpt-b", None), None]
    change = first_change(rounds)
    assert change is not None
    assert (change.sign, change.found, change.since, change.p) == ("model id", 3, 3, None)
    assert change.words == "answers by gpt-b instead of gpt-a"


def test_ids_that_the_start_returned_are_no_change():
    rounds = [
        [Heard("yes", ("gpt-a", "gpt-b")[(n + q) % 2], None) for q in range(QUESTIONS)] for n in range(9)
    ]
    assert first_change(rounds) is None


def test_fingerprints_that_take_turns_are_no_change_but_a_new_one_that_stays_is():
    draw = random.Random(3)

    def fingerprints(names: list[str]) -> list[Heard | None]:
        return [Heard("yes", "m", draw.choice(names)) for _ in range(QUESTIONS)]

    rounds = [fingerprints(["fp_a", "fp_b"]) for _ in range(10)]
    assert first_change(rounds) is None
    rounds += [fingerprints(["fp_c"]) for _ in range(3)]
    change = first_change(rounds)
    assert change is not None
    assert (change.sign, change.since) == ("fingerprint", 10)
    assert change.words == "fingerprint fp_c instead of fp_a, fp_b"


def test_eight_questions_answered_otherwise_once_are_enough():
    """Three rounds: each question's odd answer is the newest with chance 1/3, so p is 3 to the minus 8."""
    old: list[Heard | None] = [Heard(f"old {q}", "m", None) for q in range(QUESTIONS)]
    new: list[Heard | None] = [Heard(f"new {q}", "m", None) for q in range(QUESTIONS)]
    change = look([old, old, new])
    assert change is not None
    assert change.p == pytest.approx(3.0**-8)
    assert look([old, old, new[:4] + old[4:]]) is None


answers = st.none() | st.builds(Heard, st.sampled_from(["a", "b c", ""]), st.just("m"), st.none())


@given(st.lists(st.lists(answers, min_size=3, max_size=3), max_size=9))
def test_missing_answers_are_no_evidence_and_no_error(rounds: list[list[Heard | None]]):
    """Three questions cannot show a change in so few rounds, whatever is missing."""
    assert first_change(rounds, alpha=1e-6) is None


@given(st.text(), st.text())
def test_a_distance_is_0_only_between_equal_answers(first: str, second: str):
    assert distance(first, second) == distance(second, first)
    assert (distance(first, second) == 0) == (first == second)
    assert 0 <= distance(first, second) <= 10
