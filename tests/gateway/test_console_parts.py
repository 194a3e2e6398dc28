"""What the pages are made of: sums of traffic, words for figures, fields of forms."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markupsafe import Markup

from stillhouse.gateway.console.charts import Series, Stretches, bars, meter
from stillhouse.gateway.console.doors import Tries, inside
from stillhouse.gateway.console.shown import compact, differences, environment, money, plain, share
from stillhouse.gateway.console.traffic import SPANS, Server, first_minute, overview, verdict
from stillhouse.guard.events import Event, Minute, Traffic, by_minute

NOW = 1_795_327_980.0


def event(at: float, model: str = "large", **given) -> Event:
    told = {"route": "chat/completions", "stream": False, "status": 200, "ended": "whole"}
    return Event(f"req_{at}", at, "", "acct_1", "key_1", model, "", **told | given)


@given(
    st.lists(st.tuples(st.integers(0, 90_000), st.sampled_from(["whole", "refused", "failed"])), max_size=60)
)
def test_what_came_in_the_span_is_counted_once_and_nothing_else(came):
    events = [event(NOW - back, ended=ended, input_tokens=3, output_tokens=2, cost=7) for back, ended in came]
    for span in SPANS.values():
        since = first_minute(span, NOW) * 60
        there = [each for each in events if each.at >= since]
        seen = overview(by_minute(events, {"large"}), span, NOW)
        assert (seen.all.answered, seen.all.refused, seen.all.failed) == tuple(
            sum(each.ended == ended for each in there) for ended in ("whole", "refused", "failed")
        )
        assert seen.all.cost == 7 * seen.all.sent
        assert sum(number for _, number in seen.refusals) == seen.all.refused
        assert span.minutes - span.stretch <= (NOW - since) / 60 <= span.minutes


def test_a_model_that_is_not_served_has_no_name_in_the_sums():
    sums = by_minute([event(NOW, model="x" * 500), event(NOW, model="y")], {"large"})
    assert sums == {Minute(int(NOW // 60), "", 2, "whole", ""): Traffic(2)}


def test_the_first_sentence_says_what_is_worst():
    well, ill = Server("http://a/v1", "well", ""), Server("http://b/v1", "rests", "")
    assert verdict({"large": [well]}, True, 0) == ("well", "All is well.")
    assert verdict({"large": [well, ill]}, True, 0)[1] == "1 of 2 upstreams does not answer."
    assert verdict({"large": [well], "small": [ill]}, True, 0)[1] == "small has no upstream that answers."
    assert verdict({"large": [ill]}, False, 3)[1] == "Requests are not being recorded."
    assert verdict({"large": [well]}, True, 1)[1] == "1 event was lost."


@given(st.text())
def test_whatever_is_shown_is_visible_and_escaped(text):
    shown = plain(text)
    assert all(letter.isprintable() for letter in shown)
    page = environment().from_string('<p title="{{ text }}">{{ text }}</p>').render(text=text)
    assert page.count("<") == 2
    assert page.count('"') == 2
    drawn = bars(text, Stretches(NOW, 60, "%H:%M"), [Series(text, "spent", [1, 2])], lambda value: text)
    assert drawn.count("<script") == 0
    assert drawn.count("<") == environment().from_string("{{ drawn }}").render(drawn=drawn).count("<")


def test_a_turned_or_hidden_letter_is_spelt_out():
    assert plain("pay\u202elap\u200b \x1b[2J") == "pay[U+202E]lap[U+200B] [U+001B][2J"
    assert plain("e" + "\u0301" * 50) == "e\u0301\u0301\u0301…"
    assert plain("川崎ラボ Möbius") == "川崎ラボ Möbius"


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (money(0), "$0.00"),
        (money(1_234_560_000_000), "$1,234.56"),
        (money(4_200_000), "$0.0042"),
        (money(1), "<$0.0001"),
        (money(-5_000_000_000), "−$5.00"),
        (compact(999), "999"),
        (compact(1_250_000), "1.25M"),
        (compact(12_345), "12.3k"),
        (share(0, 0), "–"),
        (share(1, 10_000), "<0.1%"),
        (share(1, 3), "33%"),
    ],
)
def test_figures_are_written_for_people(said, expected):
    assert said == expected


def test_a_bar_is_full_at_its_limit():
    assert 'class="full" width="100.00"' in meter(60, 60)
    assert 'class="high"' in meter(50, 60)
    assert 'class="room" width="0.00"' in meter(0, 60)
    assert isinstance(meter(1, 0), Markup)


def test_differences_are_by_limit():
    before = {"limits": {"requests_per_minute": 60, "concurrent": 4}, "budget": None}
    after = {"limits": {"requests_per_minute": 90}, "budget": 12.5}
    assert differences(before, after) == [
        ("requests a minute", "60", "90"),
        ("requests in flight", "4", "none"),
        ("budget", "none", "$12.50"),
    ]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 30))))
def test_nobody_tries_more_often_than_allowed(tries):
    """And whoever waits as long as it is told may try."""
    kept, now, taken = Tries(), 0.0, dict.fromkeys("abc", 0)
    for who, wait in tries:
        now += wait
        left = kept.take(who, False, now)
        if left == 0:
            taken[who] += 1
        else:
            now += left + 0.001
            assert kept.take(who, False, now) == 0
            taken[who] += 1
        assert taken[who] <= 5 + now / 10 + 1e-6


def test_strangers_together_are_held_and_forgotten():
    kept = Tries()
    taken = sum(kept.take(f"address {n}", False, 0.0) == 0 for n in range(20_000))
    assert taken == 60
    assert kept.take("known", True, 0.0) == 0
    assert len(kept.left) <= 10_000


@given(st.text())
def test_after_login_one_is_inside(path):
    assert inside(path).startswith("/admin")
    assert not set(inside(path)) & set("\r\n\\@")
    assert "//" not in inside(path)
