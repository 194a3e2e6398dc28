"""A distiller through a gateway that runs: watched, stepped up, stopped by a person, and let in again."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from itertools import islice

import openai
import pytest
from gate import gate, tree_of
from rows import DATA

pytestmark = pytest.mark.skipif(not (DATA / "traffic").exists(), reason="real traces and prompts are absent")

if (DATA / "traffic").exists():
    from traffic.people import person, requests

# No waiting between steps, and limits that a throttled account does not reach.
AT_ONCE = {"mode": "enforce", "step_hours": 0.0, "throttle_share": 1.0, "throttle_requests_per_minute": 10**6}
HELLO = [{"role": "user", "content": "hello"}]


def bodies(kind, number, most):
    """The first requests of a simulated account, as its client sends them; the answer is as long as there."""
    for request in islice(requests(person("calibrate", 3, kind, number), "calibrate", 3), most):
        room = {} if request.max_tokens is None else {"max_tokens": request.max_tokens}
        yield request.body() | {"model": "whole", "answer_tokens": request.output_tokens} | room


def settings(folder, behind, **detection):
    tree = tree_of(folder, behind.url, "whole") | {"detection": AT_ONCE | detection}
    tree["models"][0]["max_output_tokens"] = 4096
    return tree


def until(client, rung, bodies=()):
    """The account's standing once it is on that rung; each look goes with a request, if any are left."""
    end, left = time.monotonic() + 60, iter(bodies)
    while time.monotonic() < end:
        body = next(left, None)
        if body is not None:
            client.post("/chat/completions", json=body)
            continue
        said = client.get("/standing")
        if said.status_code == 200 and said.json()["standing"] == rung:
            return said.json()
        time.sleep(0.2)
    raise AssertionError(f"the account never came to {rung}")


def command(made, *args, code=0):
    done = subprocess.run(
        [sys.executable, "-m", "stillhouse.cli", "guard", *args, "--config", str(made.folder / "guard.json")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stderr
    return done.stdout if code == 0 else done.stderr


def test_a_distiller_is_stepped_up_stopped_by_a_person_appeals_and_is_let_in_again(tmp_path, behind):
    with gate(tmp_path, settings(tmp_path, behind)) as made, made.client() as client:
        said = until(client, "review", bodies("distiller:pure", 0, 150))
        assert [step["to"] for step in reversed(said["steps"])] == [
            "notify", "throttle", "withhold", "review",
        ]  # fmt: skip
        assert said["code"].startswith("copying_")
        assert all("in ordinary accounts" in step["why"] for step in said["steps"])
        asked = {"model": "whole", "messages": HELLO, "logprobs": True, "top_logprobs": 2}
        answer = client.post("/chat/completions", json=asked)
        assert answer.headers["x-stillhouse-standing"] == f"review; code={said['code']}"
        assert "logprobs:withheld" in answer.headers["x-stillhouse-changed"]

        command(made, "decide", made.account, "kill", "--reason", "no answer to our mail")
        with openai.OpenAI(base_url=made.url, api_key=made.key, max_retries=0) as customer:
            until(client, "kill")
            with pytest.raises(openai.PermissionDeniedError) as caught:
                customer.chat.completions.create(model="whole", messages=HELLO)
            assert caught.value.code == "account_stopped"
            assert caught.value.body["reason_code"] == said["code"]
            assert caught.value.body["appeal"] == "/v1/standing/appeal"

            time.sleep(1.0)  # a customer may look once a second
            appealed = client.post("/standing/appeal", json={"text": "We test our own product."})
            assert appealed.status_code == 201
            assert appealed.json()["appeal"]["open"]
            assert "We test our own product." in command(made, "appeals")
            command(made, "decide", made.account, "undo", "--reason", "they showed us their product")
            told = until(client, "observe")
            assert told["steps"][0]["why"] == "they showed us their product"
            assert customer.chat.completions.create(model="whole", messages=HELLO).choices

        for body in bodies("distiller:pure", 0, 60):  # the same pattern makes no step for a while
            assert "x-stillhouse-standing" not in client.post("/chat/completions", json=body).headers
        trail = json.loads(command(made, "standing", made.account, "--json"))
        assert [step["act"] for step in reversed(trail["steps"])] == [
            "step", "step", "step", "step", "kill", "appeal", "undo",
        ]  # fmt: skip
        assert {step["witness"] for step in trail["steps"]} == {"shown"}
    verified = subprocess.run(
        [sys.executable, "-m", "stillhouse.cli", "ledger", "verify"],
        cwd=tmp_path / "store",
        capture_output=True,
        text=True,
        check=False,
    )
    assert verified.returncode == 0, verified.stdout + verified.stderr


def test_in_shadow_nothing_is_taken_and_the_customer_sees_what_would_be(tmp_path, behind):
    with gate(tmp_path, settings(tmp_path, behind, mode="shadow")) as made, made.client() as client:
        for body in bodies("distiller:pure", 0, 80):
            answer = client.post("/chat/completions", json=body)
            assert answer.status_code == 200
            assert "x-stillhouse-standing" not in answer.headers
        said = until(client, "review")
        assert (said["in_force"], said["effect"]) == (False, "nothing")
        assert all(step["shadow"] for step in said["steps"])
        made.tree["detection"]["mode"] = "enforce"  # from here on it begins anew, with a notice
        made.tree["detection"]["step_hours"] = 24.0
        made.reload()
        end = time.monotonic() + 60
        while '"reloaded"' not in (tmp_path / "log").read_text():
            assert time.monotonic() < end
            time.sleep(0.1)
        said = until(client, "notify", bodies("distiller:pure", 0, 60))
        assert said["in_force"]
        assert (
            client.post("/chat/completions", json={"model": "whole", "messages": HELLO}).headers[
                "x-stillhouse-standing"
            ]
            == f"notify; code={said['code']}"
        )


def test_a_throttled_account_is_told_when_there_is_room_again(tmp_path, behind):
    slow = {"step_hours": 0.0, "throttle_share": 0.5, "throttle_requests_per_minute": 40}
    with gate(tmp_path, settings(tmp_path, behind, **slow)) as made, made.client() as client:
        until(client, "review", bodies("distiller:pure", 0, 150))
        hello = {"model": "whole", "messages": HELLO}
        answers = (client.post("/chat/completions", json=hello) for _ in range(41))
        answer = next(answer for answer in answers if answer.status_code == 429)
        assert 1 <= int(answer.headers["retry-after"]) <= 66  # a minute, and the slot in which it began
        assert "limit of 40 requests in a minute" in answer.json()["error"]["message"]
        assert answer.headers["x-stillhouse-standing"].startswith(("throttle", "withhold", "review"))
        assert client.get("/models").status_code == 200


def test_an_ordinary_account_stays_where_it_is_and_may_look_once_a_second(tmp_path, behind):
    with gate(tmp_path, settings(tmp_path, behind)) as made, made.client() as client:
        for body in bodies("chat", 0, 60):
            assert "x-stillhouse-standing" not in client.post("/chat/completions", json=body).headers
        said = client.get("/standing")
        assert said.json()["standing"] == "observe"
        again = client.get("/standing")
        assert (again.status_code, again.headers["retry-after"]) == (429, "1")
        assert client.post("/standing").status_code == 405
        time.sleep(1.1)
        refused = client.post("/standing/appeal", json={"text": "why"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "no_appeal_now")
        with made.client(key="sk-wrong") as stranger:
            assert stranger.get("/standing").status_code == 401
