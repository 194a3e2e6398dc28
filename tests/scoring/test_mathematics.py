"""The scorer `math` against its real process: right, wrong, unreadable, hanging, gone."""

import os
import signal
import threading
import time
from importlib.util import find_spec

import pytest

from stillhouse.errors import UsageError
from stillhouse.records import Score
from stillhouse.scoring import check, score
from stillhouse.scoring.builtin import Unscored
from stillhouse.scoring.verifier import Verifier

pytestmark = pytest.mark.skipif(
    find_spec("math_verify") is None, reason="math-verify is not installed: pip install 'stillhouse[math]'"
)
HANGS = "so it is $10^{10^{10^{10}}}$"


@pytest.mark.parametrize(
    ("answer", "reference", "value"),
    [
        ("The answer is $\\frac{1}{2}$.", "0.5", 1.0),
        ("\\boxed{0.5}", "\\frac{1}{2}", 1.0),
        ("\\boxed{x^2 + 2x + 1}", "$(x+1)^2$", 1.0),
        ("\\boxed{x^2 + 2x + 2}", "$(x+1)^2$", 0.0),
        ("$\\{2, 1\\}$", "$\\{1, 2\\}$", 1.0),
        ("so 41", "42", 0.0),
        ("1,234", "1234", 1.0),
        ("I do not know", "42", 0.0),
        ("", "42", 0.0),
    ],
)
def test_right_and_wrong(answer, reference, value):
    assert score("math", answer, reference) == Score(value)


def test_a_reference_without_mathematics_is_unscored():
    found = score("math", "42", "nothing here")
    assert found.value is None
    assert "reference" in found.reason


@pytest.fixture
def verifier():
    made = Verifier(seconds=1.0)
    yield made
    made.close()


def test_an_expression_that_hangs_is_given_up_its_process_killed_and_the_next_one_scored(verifier):
    assert verifier.same("1/2", "0.5") == 1.0
    first = verifier.process.pid
    started = time.monotonic()
    with pytest.raises(Unscored, match="longer than 1 s"):
        verifier.same(HANGS, "5")
    assert time.monotonic() - started < 30
    with pytest.raises(ProcessLookupError):
        os.kill(first, 0)
    assert verifier.same("1/2", "0.5") == 1.0
    assert verifier.process.pid != first


def test_the_score_of_what_hangs_says_why(monkeypatch, verifier):
    monkeypatch.setattr("stillhouse.scoring.verifier._verifier", verifier)
    assert score("math", HANGS, "5") == Score(None, "math-verify took longer than 1 s")


def test_a_process_that_was_killed_from_outside_is_started_again(verifier):
    assert verifier.same("2", "2") == 1.0
    os.kill(verifier.process.pid, signal.SIGKILL)
    verifier.process.wait()
    assert verifier.same("2", "2") == 1.0


def test_long_answers_and_many_threads_get_their_own_verdicts(verifier):
    assert verifier.same("words " * 40_000 + "so 42", "42") == 1.0
    found = {}

    def ask(number):
        found[number] = verifier.same(f"it is {number}", str(number - number % 2))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: float(number % 2 == 0) for number in range(12)}


def test_without_math_verify_the_plan_fails_and_says_what_to_install(monkeypatch):
    check(["math"])
    monkeypatch.setattr("stillhouse.scoring.find_spec", lambda name: None)
    with pytest.raises(UsageError) as caught:
        check(["math"])
    assert "stillhouse[math]" in caught.value.mend
    check(["numeric"])
