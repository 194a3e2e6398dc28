"""Prices: what the data file holds, whom it knows, and whose word goes first."""

import tomllib
from datetime import date, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.cli.show import price_lines
from stillhouse.money import FREE, Price
from stillhouse.prices import DATA, NO_BILL, OLD, RECIPE, price_for, price_of, recorded
from stillhouse.recipe import Teacher

PAGES = tomllib.loads(DATA.read_text())["page"]
ROWS = [(page, row) for page in PAGES for row in page["models"]]
DAY = date(2026, 11, 21)
OPENAI = "https://api.openai.com/v1"


@pytest.mark.parametrize(("page", "row"), ROWS, ids=lambda part: part.get("ids", ["-"])[0])
def test_every_row_tells_its_day_and_its_page_and_asks_something(page, row):
    assert page["hosts"]
    assert row["ids"]
    assert date(2026, 1, 1) < page["read_on"] < date(2100, 1, 1)
    assert page["source"].startswith("https://")
    assert page.get("via", "https://").startswith("https://")
    assert 0 < row["input"] <= row["output"] < 1000
    assert 0 < row.get("cached", row["input"]) <= row["input"]
    assert 0 < row.get("batch", 1.0) <= 1
    assert row.get("up_to", 1_000_000) > 10_000
    assert row.get("until", date(2100, 1, 1)) > page["read_on"]


def test_no_key_stands_twice_and_none_has_a_name_that_moves():
    keys = [(host, model) for page, row in ROWS for host in page["hosts"] for model in row["ids"]]
    assert len(keys) == len(set(keys)) == len(recorded())
    assert not [model for _, model in keys if model.endswith("-latest")]
    assert all(host == host.lower() and "/" not in host for host, _ in keys)


# As the providers' own pages print them, batch prices in their own table
@pytest.mark.parametrize(
    ("host", "model", "price", "batch"),
    [
        ("api.openai.com", "gpt-4.1-mini", (0.40, 1.60), (0.20, 0.80)),
        ("api.openai.com", "gpt-4o-2024-05-13", (5.00, 15.00), (2.50, 7.50)),
        ("generativelanguage.googleapis.com", "gemini-2.5-flash", (0.30, 2.50), (0.15, 1.25)),
        ("api.deepseek.com", "deepseek-v4-pro", (1.32, 3.96), None),
    ],
)
def test_golden_prices(host, model, price, batch):
    known = price_for(host, model, DAY)
    assert known.price == Price(*price)
    assert known.batch == (None if batch is None else Price(*map(pytest.approx, batch)))


def test_a_name_that_is_merely_alike_has_no_price():
    assert price_for("API.OpenAI.com", "gpt-4.1-mini", DAY) is not None
    for model in ("gpt-4.1-min", "gpt-4.1-mini-2026-01-01", "GPT-4.1-mini", "openai/gpt-4.1-mini", ""):
        assert price_for("api.openai.com", model, DAY) is None
    for host in ("openai.com", "eu.api.openai.com", "api.openai.com.example", "localhost", ""):
        assert price_for(host, "gpt-4.1-mini", DAY) is None


@given(st.sampled_from(sorted(recorded())), st.text(min_size=1, max_size=8))
def test_nothing_added_to_a_known_name_is_known(key, more):
    host, model = key
    for other in (model + more, more + model):
        assert (host, other) in recorded() or price_for(host, other, DAY) is None


def test_a_price_that_ends_is_unknown_from_the_next_day_on():
    host, model = "generativelanguage.googleapis.com", "gemini-3.8-flash"
    known = price_for(host, model, DAY)
    assert price_for(host, model, known.until) == known
    assert price_for(host, model, known.until + timedelta(days=1)) is None


def test_the_recipe_goes_before_what_is_recorded():
    recorded_one = price_of(Teacher(model="gpt-4.1", endpoint=OPENAI), DAY)
    assert recorded_one.price == Price(2.0, 8.0)
    said = {"input": 1.0, "output": 3.0, "batch": 0.5}
    own = price_of(Teacher(model="gpt-4.1", endpoint=OPENAI, price=said), DAY)
    assert (own.price, own.batch, own.source) == (Price(1.0, 3.0), Price(0.5, 1.5), RECIPE)
    assert own.days_old(DAY) is None
    assert price_of(Teacher(model="somebody", endpoint=OPENAI), DAY) is None


@pytest.mark.parametrize("teacher", [{"model": "embedded:desk"}, {"model": "gpt-4.1", "imported": True}])
def test_nobody_bills_what_is_served_here_or_was_imported(teacher):
    assert price_of(Teacher(**teacher), DAY) is NO_BILL
    assert NO_BILL.price == FREE
    assert price_lines(NO_BILL, None) == []


def test_a_price_names_its_page_and_day_and_warns_when_they_are_long_past():
    known = price_for("api.openai.com", "gpt-4.1-mini", DAY)
    said = price_lines(known, OLD)
    assert said == [
        "price      US$ 0.4 in, 1.6 out, per million tokens",
        "           read on 2026-09-13 at https://developers.openai.com/api/docs/pricing",
    ]
    assert known.days_old(known.read_on + timedelta(days=OLD + 1)) == OLD + 1
    late = price_lines(known, OLD + 1)
    assert late[:2] == said
    assert late[2].startswith("warning    this price was read 91 days ago")
    assert "[teacher.price]" in late[2]


def test_a_price_that_is_not_the_whole_story_says_so():
    known = price_for("api.deepseek.com", "deepseek-flash", DAY)
    assert "peak hours" in price_lines(known, 3)[1]
    assert price_lines(None, None)[0].startswith("price      unknown")
