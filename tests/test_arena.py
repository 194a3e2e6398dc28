"""The arena's reckoning: what gets through, what it costs, what it teaches."""

import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

pytest.importorskip("torch")

from arena import Copy, Settings, affordable, retention, through
from prices_study import EXAMPLE, TODAY

from stillhouse.guard.limits import Step
from stillhouse.guard.pricing import Month

ROOT = Path(__file__).parents[1]
EXCHANGE = Month("", 100, 50)
DEAR = (TODAY, Step(15_000, 10 * TODAY.input, 10 * TODAY.output))  # from the hundredth exchange on


def today(exchanges):
    return exchanges * (100 * TODAY.input + 50 * TODAY.output)


def copy(accounts=1, each=300, trail=(), found_at=None, members=()):
    return Copy((trail,) * accounts, (each,) * accounts, 0, found_at, frozenset(members))


def at(requests=1e9, steps=(TODAY,), line=1e9):
    return Settings(requests, steps, line)


def test_what_is_learned_lies_on_the_curve_and_never_beyond_its_end():
    assert retention(EXAMPLE, 750) == EXAMPLE[0].kept
    assert retention(EXAMPLE, 1e9) == EXAMPLE[-1].kept
    assert retention(EXAMPLE, 0) == 0
    middle = retention(EXAMPLE, (750 * 1500) ** 0.5)  # halfway on a logarithmic scale
    assert middle == pytest.approx((EXAMPLE[0].kept + EXAMPLE[1].kept) / 2)


def test_a_budget_of_today_pays_for_the_copy_at_todays_prices_and_for_less_at_rising_ones():
    assert affordable([300], (TODAY,), EXCHANGE, today(300) * 1.001) == 300
    # a hundred at today's price, then one for ten
    assert affordable([300], DEAR, EXCHANGE, today(300) * 1.001) == pytest.approx(120, abs=1)
    assert affordable([100, 100, 100], DEAR, EXCHANGE, today(300) * 1.001) == 300


def test_each_defence_stops_what_it_is_for():
    trail = ((1, 0.2), (40, 1.5))
    budget = today(300) * 1.001
    assert through(copy(trail=trail), "none", at(), EXCHANGE, budget) == 300
    assert through(copy(trail=trail), "limits", at(requests=120), EXCHANGE, budget) == 120
    assert through(copy(trail=trail), "detection", at(line=1.0), EXCHANGE, budget) == 40
    assert through(copy(trail=trail), "detection", at(line=1.5), EXCHANGE, budget) == 300
    found = copy(10, 30, found_at=12, members=range(8))
    assert through(found, "clusters", at(), EXCHANGE, budget) == 8 * 12 + 2 * 30
    assert through(found, "detection", at(line=0.1), EXCHANGE, budget) == 300


def test_together_they_let_no_more_through_than_the_strictest_alone():
    found = copy(10, 30, trail=((20, 2.0),), found_at=12, members=range(8))
    strict = at(requests=25, steps=DEAR, line=1.0)
    alone = [
        through(found, each, strict, EXCHANGE, today(300) * 1.001)
        for each in ("limits", "prices", "detection", "clusters")
    ]
    assert through(found, "together", strict, EXCHANGE, today(300) * 1.001) == 8 * 12 + 2 * 20 < min(alone)


def test_the_plot_is_that_of_the_results_and_without_script_or_outside_source():
    done = subprocess.run(
        [sys.executable, "docs/arena_plot.py", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for element in ElementTree.parse(ROOT / "docs" / "arena.svg").getroot().iter():
        assert not element.tag.endswith(("script", "image", "foreignObject"))
        assert not any(name.endswith("href") for name in element.attrib)
