"""What the figures of benchmarks/cascade_load.py rest on."""

import json
from urllib.request import Request, urlopen

import pytest
from cascade_load import cascade, figures
from gateway import Found
from gateway_arms import upstream
from gateway_load import PROMPT, Told


def test_the_answers_that_are_timed_are_those_of_a_sure_student(tmp_path):
    with upstream(tmp_path / "upstream") as student, cascade(tmp_path / "gateway", student.port) as arm:
        for model, way in (("think-0", None), ("sure-0", "student; sure"), ("sure-20", "student; sure")):
            for stream in (False, True):
                said = {"model": model, "messages": [{"role": "user", "content": PROMPT}], "max_tokens": 64}
                headers = {"Authorization": f"Bearer {arm.key}", "Content-Type": "application/json"}
                url = f"http://127.0.0.1:{arm.port}/v1/chat/completions"
                asked = Request(url, json.dumps(said | {"stream": stream}).encode(), headers)
                with urlopen(asked, timeout=20) as reply:
                    assert reply.headers["x-stillhouse-cascade"] == way
                    assert b"top_logprobs" not in reply.read()


def found(p50, refused=0):
    return Found(
        Told(good=10, statuses={"200": 10, "502": refused}, spread=[p50, 0.0, 2 * p50]), 100.0, 1.0, 1.0
    )


def test_what_is_added_is_taken_round_by_round():
    table = {
        (cell, streamed, way): rounds
        for cell in ("1 in flight", "50/s")
        for streamed in (False, True)
        for way, rounds in (("think", [found(1.0), found(5.0)]), ("sure", [found(2.5), found(6.9, 1)]))
    }
    rows = figures(table, full=True)
    first, *_, last = rows
    assert first.value == pytest.approx(1.7)
    assert (first.low, first.high) == pytest.approx((1.5, 1.9))
    assert first.holds
    assert last.value == 4
    assert not last.holds
