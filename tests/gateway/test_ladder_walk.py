"""A distiller through a gateway that runs: watched, stepped up, stopped by a person, and let in again."""

from __future__ import annotations

import time
from itertools import islice

import openai
import pytest
from behind import WORDS
from gate import gate, tree_of
from rows import DATA

pytestmark = pytest.mark.skipif(not (DATA / "traffic").exists(), reason="real traces and prompts are absent")

if (DATA / "traffic").exists():
    from traffic.people import person, requests

AT_ONCE = {"mode": "enforce", "step_hours": 0.0}


def asked(kind, number, most):
    for request in islice(requests(person("calibrate", 3, kind, number), "calibrate", 3), most):
        yield request.body() | {"model": "whole", "max_tokens": 100}


def test_walk(tmp_path, behind):
    tree = tree_of(tmp_path, behind.url, "whole") | {"detection": AT_ONCE}
    with gate(tmp_path, tree) as made, made.client() as client:
        n = 0
        for body in asked("distiller:pure", 0, 200):
            said = client.post("/chat/completions", json=body)
            n += 1
            print(n, said.status_code, said.headers.get("x-stillhouse-standing"))
            if said.status_code != 200: print(said.text); break
        time.sleep(1.5)
        print(client.get("/standing").json())
        print((tmp_path / "log").read_text()[-1500:])
