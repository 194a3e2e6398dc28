"""The page of cascades: what it says of a student at work, and how it looks."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from browser import CHROMIUM, browser
from cascade_house import calibration
from console_house import SECRET, house, tree_of

from stillhouse.cascade import drift
from stillhouse.cascade.saving import Taken
from stillhouse.gateway.cascading import Cascading
from stillhouse.guard.config import Cascade

PRICES = {"student_price": {"input": 0.1, "output": 0.4}, "teacher_price": {"input": 2.0, "output": 8.0}}
OUTSIDE = """[document.documentElement.scrollWidth, [...document.querySelectorAll("main *")].filter(each =>
  each.getBoundingClientRect().right > innerWidth + 1 && !each.closest(".scroll, svg")).length].join(" ")"""


def at_work(prices, changed=False, threshold=0.5):
    """A student that answered 200 requests."""
    settings = Cascade.model_validate(
        {"upstreams": [{"url": "http://127.0.0.1:9/v1"}], "calibration": "cascade.json", **prices}
    )
    made = calibration(threshold)
    watch = drift.watch(made.usual_strange, made.usual_differing)
    for n in range(160 if threshold is not None else 0):
        watch = drift.seen(watch, n % 50 == 0, n % 8 == 0)
    for _ in range(40 if threshold is not None else 0):
        watch = drift.audited(drift.seen(watch, changed, True), changed)
    taken = Taken((2_000_000, 500_000), (1_000_000, 250_000), 3)
    counts = {("student", "sure"): 140, ("teacher", "unsure"): 20, ("teacher", "audit"): 40}
    return Cascading(settings, (), made, "digest", watch, counts if threshold is not None else {}, taken)


def put_to_work(at, cascades):
    """Of the gateway's models, in order, with these before them."""
    models = dict(at.gateway.models)
    for name, cascade in zip(list(models), cascades, strict=False):
        models[name] = replace(models[name], cascade=cascade)
    at.gateway = replace(at.gateway, models=models)


def test_the_page_says_how_often_how_well_and_what_that_saves(tmp_path):
    tree = tree_of(tmp_path)
    tree["record"] = {"deferred": "with_consent", "deferred_days": 20}
    with house(tmp_path, tree) as at, at.log_in() as ada:
        assert "No model has a student before it." in ada.get("/admin/cascades").text
        put_to_work(at, [at_work(PRICES), at_work({"student_price": PRICES["student_price"]}, changed=True)])
        at.record.deferred.kept = 7
        at.record.deferred.lost["not to be read, cut short or empty"] += 2
        first, second = ada.get("/admin/cascades").text.split('id="small"')
    assert "200 requests put to the student" in first
    assert "30%</dd>" in first  # deferred: 20 + 40 of 200
    assert "of 40 audited; 91% to 100%" in first
    assert "$3.60</dd>" in first  # 2 + 2 for the kept, less 0.2 + 0.2 of the student
    assert "raised" not in first
    assert "of <b>3</b> answers it is not known" in first
    assert "The traffic has changed" in second
    assert '<span class="unknown">unknown</span>' in second
    assert "no price of the teacher" in second
    assert "7 exchanges of accounts that agreed, sealed, for 20 days" in second
    assert "2: not to be read, cut short or empty" in second


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_the_page_fits_a_phone_and_a_desk_in_light_and_dark(tmp_path):
    async def look():
        tree = tree_of(tmp_path)
        tree["models"][0]["name"] = "a-model-with-a-name-that-goes-on-and-on/for-a-very-long-while"
        with house(tmp_path, tree) as at:
            put_to_work(at, [at_work(PRICES, changed=True), at_work({}, threshold=None)])
            async with browser(tmp_path) as tab:
                at.clock += 11
                await tab.go(at.url + "/admin/cascades")
                await tab.submits(
                    "document.querySelector('#name').value = 'Grace Hopper';"
                    f"document.querySelector('#secret').value = {SECRET!r};"
                    "document.querySelector('form button').click()"
                )
                for width, dark in ((1280, False), (1280, True), (360, False), (360, True)):
                    await tab.look(width, dark=dark)
                    await tab.picture(tmp_path / f"cascades-{width}-{'dark' if dark else 'light'}.png")
                    assert await tab.run("document.querySelector('h1').textContent") == "Cascades"
                    assert await tab.run(OUTSIDE) == f"{width} 0"
                assert tab.dialogs == []

    asyncio.run(look())
