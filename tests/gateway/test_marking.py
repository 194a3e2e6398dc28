"""Marks by selection: the best of several answers is given whole, charged as was said, and found again."""

import json
import subprocess
import sys
import time
from contextlib import closing
from datetime import UTC, datetime

import pytest
from gate import HELLO, SECRET, ask, gate, told, tree_of
from teller import PROSE, Teller

from stillhouse.gateway.store.events import Events
from stillhouse.guard import markers
from stillhouse.watermark import Gumbel, Key, Selection, account_key, evidence, word_ids, write_key

LOW = 1e-6  # what chance gives once in a million runs, and these marks miss by five standard deviations
NOW = datetime(2026, 3, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def teller():
    with Teller() as server:
        yield server


def key(number, scheme=None):
    return Key(scheme or Selection(), number.to_bytes(32, "big"), NOW)


def tree(folder, url, *models, number=1, **more):
    """Settings of which every model marks with the key of that number, whose file is made."""
    file = folder / f"watermark-{key(number).id}.json"
    if not file.exists():
        write_key(key(number), file)
    made = tree_of(folder, url, *models)
    for model in made["models"]:
        model["watermark"] = {"key": str(file), **more}
        model["upstreams"][0] |= {"first_byte_seconds": 3.0, "silent_seconds": 2.0}
    return made


def p_of(one, texts):
    return evidence(one.scheme, one.sip, [word_ids(text) for text in texts]).p


def events(made):
    with closing(Events(made.config.store)) as kept:
        return kept.newest(most=1000)


def figure(made, name):
    with made.client(SECRET) as client:
        text = client.get(made.url.removesuffix("/v1") + "/metrics").text
    return sum(float(line.split()[1]) for line in text.splitlines() if line.startswith(name))


def test_answers_bear_the_accounts_own_mark_and_it_pays_for_those_that_it_got(tmp_path, teller):
    teller.seen.clear()
    with gate(tmp_path, tree(tmp_path, teller.url, "whole", best_of=8)) as made:
        mine = account_key(key(1), made.account)
        texts, taken = [], 0
        for at in range(30):
            said = ask(made, "whole", stream=at % 2 == 1, max_tokens=80)
            assert said.headers["x-stillhouse-watermark"] == mine.id
            text, usage, whole = told(said)
            assert whole
            assert usage["completion_tokens"] == len(text.split())
            taken += usage["completion_tokens"]
            texts.append(text)
        assert teller.seen["whole"] == 8 * 30
        spent = sum(len(text.split()) for text in teller.given[-240:])
        assert figure(made, 'stillhouse_guard_tokens_not_given_total{direction="output"') == spent - taken
        assert figure(made, 'stillhouse_guard_tokens_not_given_total{direction="input"') == 7 * 7 * 30
        room = 10**9 - int(said.headers["x-ratelimit-remaining-output-tokens"])
        assert room == taken - usage["completion_tokens"] + 80  # one answer's length was reserved
        assert made.stop() == 0
    assert p_of(mine, texts) < LOW
    assert p_of(key(1), texts) > LOW
    assert p_of(account_key(key(1), "acct_another"), texts) > LOW
    assert p_of(account_key(key(2), made.account), texts) > LOW
    kept = events(made)
    assert {event.changed for event in kept} == {(f"watermark:{mine.id}",)}
    assert sum(event.output_tokens for event in kept) == taken
    assert {(event.input_tokens, event.counted, event.ended) for event in kept} == {(7, "told", "whole")}


def test_a_customer_that_pays_for_all_answers_is_reserved_and_charged_for_all(tmp_path, teller):
    with gate(tmp_path, tree(tmp_path, teller.url, "whole", best_of=3, paid_by="customer")) as made:
        first = ask(made, "whole", max_tokens=80)
        assert int(first.headers["x-ratelimit-remaining-output-tokens"]) == 10**9 - 3 * 80
        spent = sum(len(text.split()) for text in teller.given[-3:])
        second = ask(made, "whole", max_tokens=80)
        assert int(second.headers["x-ratelimit-remaining-output-tokens"]) == 10**9 - spent - 3 * 80
        assert made.stop() == 0
    (event, _) = sorted(events(made), key=lambda event: event.at)
    assert (event.input_tokens, event.output_tokens, event.counted) == (21, spent, "told")


UNFIT = {
    "choices": {"n": 2},
    "tools": {"tools": [{"type": "function", "function": {"name": "f"}}]},
    "response_format": {"response_format": {"type": "json_object"}},
    "logprobs": {"logprobs": True},
    "greedy": {"temperature": 0},
}


def test_what_cannot_be_marked_is_asked_once_and_said_to_be_unmarked(tmp_path, teller):
    with gate(tmp_path, tree(tmp_path, teller.url, "whole", "same", "short", "seldom", "marked")) as made:
        for why, more in UNFIT.items():
            teller.seen.clear()
            said = ask(made, "whole", **more)
            assert (said.status_code, said.headers["x-stillhouse-watermark"]) == (200, f"none; why={why}")
            assert teller.seen["whole"] == 1
        for model, why in (("same", "alike"), ("short", "short"), ("seldom", "one_answer")):
            teller.seen.clear()
            said = ask(made, model, seed=0)
            assert (said.status_code, said.headers["x-stillhouse-watermark"]) == (200, f"none; why={why}")
            assert teller.seen[model] == 4
        with made.client() as client:
            said = client.post("/embeddings", json={"model": "whole", "input": "hello"})
            assert said.headers["x-stillhouse-watermark"] == "none; why=route"
        mine = account_key(key(1), made.account)
        said = ask(made, "marked")
        assert said.headers["x-stillhouse-watermark"] == f"{mine.id}, 0a1b2c3d"
        assert made.stop() == 0
    changed = [event.changed for event in events(made)]
    assert changed.count(()) == len(changed) - 1
    assert (f"watermark:{mine.id}", "upstream_watermark:0a1b2c3d") in changed


def test_the_mark_of_a_server_behind_is_passed_on_and_recorded_without_one_of_ours(tmp_path, teller):
    with gate(tmp_path, tree_of(tmp_path, teller.url, "marked", "whole")) as made:
        assert ask(made, "marked").headers["x-stillhouse-watermark"] == "0a1b2c3d"
        assert "x-stillhouse-watermark" not in ask(made, "whole").headers
        assert made.stop() == 0
    assert {event.model: event.changed for event in events(made)} == {
        "marked": ("upstream_watermark:0a1b2c3d",),
        "whole": (),
    }


def test_what_fails_fails_as_it_does_without_marks_and_nothing_more_is_charged(tmp_path, teller):
    names = ["status-400", "status-500", "status-401", "close", "half", "no-json"]
    plain = tmp_path / "plain"
    plain.mkdir()
    with (
        gate(tmp_path, tree(tmp_path, teller.url, *names, paid_by="customer")) as made,
        gate(plain, tree_of(plain, teller.url, *names)) as other,
    ):
        for name in names:
            for stream in (False, True):
                mine, theirs = ask(made, name, stream), ask(other, name, stream)
                assert (mine.status_code, mine.json()) == (theirs.status_code, theirs.json()), name
        made.stop()
        other.stop()
    mine, theirs = (
        [(event.model, event.ended, event.status, event.input_tokens, event.output_tokens, event.counted)
         for event in events(each) if event.model != "half"]
        for each in (made, other)
    )  # fmt: skip
    assert mine == theirs


def test_a_client_that_leaves_while_answers_come_is_counted_and_nothing_goes_on(tmp_path, teller):
    with gate(tmp_path, tree(tmp_path, teller.url, "slow", paid_by="customer")) as made:
        teller.seen.clear()
        teller.left.clear()
        with made.client() as client, pytest.raises(Exception, match="timed out"):
            client.post(
                "/chat/completions",
                json={"model": "slow", "messages": HELLO, "max_tokens": 50, "seed": 0},
                timeout=0.5,
            )
        end = time.monotonic() + 10
        while teller.left["slow"] < 3 and time.monotonic() < end:
            time.sleep(0.05)
        assert teller.left["slow"] == 3
        assert made.stop() == 0
    (event,) = events(made)
    assert (event.ended, event.counted) == ("client_left", "bound")
    assert event.output_tokens == len(teller.given[-1].split()) + 3 * 50


def test_hidden_reasoning_is_taken_out_before_an_answer_is_chosen(tmp_path, teller):
    with gate(tmp_path, tree(tmp_path, teller.url, "thinking", best_of=8)) as made:
        said = [ask(made, "thinking", stream=at % 2 == 0) for at in range(30)]
        mine = account_key(key(1), made.account)
    texts = [told(each)[0] for each in said]
    assert not any("think" in text for text in texts)
    assert all("reasoning" in each.headers["x-stillhouse-changed"] for each in said)
    assert p_of(mine, texts) < LOW


def test_another_key_marks_after_a_reload_and_events_keep_the_old_one(tmp_path, teller):
    with gate(tmp_path, tree(tmp_path, teller.url, "whole")) as made:
        ids = {ask(made, "whole").headers["x-stillhouse-watermark"]}
        made.tree = tree(tmp_path, teller.url, "whole", number=2)
        made.reload()
        end = time.monotonic() + 30
        while '"reloaded"' not in (tmp_path / "log").read_text():
            assert time.monotonic() < end
            time.sleep(0.05)
        ids.add(ask(made, "whole").headers["x-stillhouse-watermark"])
        gumbel = tmp_path / "gumbel.json"
        write_key(key(3, Gumbel()), gumbel)
        made.tree["models"][0]["watermark"]["key"] = str(gumbel)
        made.reload()
        while "reload refused" not in (tmp_path / "log").read_text():
            assert time.monotonic() < end
            time.sleep(0.05)
        ids.add(ask(made, "whole").headers["x-stillhouse-watermark"])
        assert ids == {account_key(key(number), made.account).id for number in (1, 2)}
        assert made.stop() == 0
    assert {event.changed for event in events(made)} == {(f"watermark:{id}",) for id in ids}


def test_on_the_rung_alone_only_that_accounts_answers_are_marked_and_it_is_told(tmp_path, teller):
    settings = tree(tmp_path, teller.url, "whole", "prose", accounts="on_mark", markers=True)
    settings["detection"] = {"mode": "enforce", "mark": True}
    with gate(tmp_path, settings) as made:
        _, other = made.new_key()
        assert "x-stillhouse-watermark" not in ask(made, "whole").headers
        command = [sys.executable, "-m", "stillhouse.cli", "guard", "decide", made.account, "review"]
        command += ["--reason", "looks like copying", "--config", str(tmp_path / "guard.json")]
        subprocess.run(command, check=True, capture_output=True)
        end = time.monotonic() + 30
        while "x-stillhouse-standing" not in (said := ask(made, "whole")).headers:
            assert time.monotonic() < end
        assert said.headers["x-stillhouse-watermark"] == account_key(key(1), made.account).id
        assert said.headers["x-stillhouse-standing"] == "review; code=by_hand"
        mine = account_key(key(1), made.account)
        for more in ({}, {"temperature": 0}, {"stream": True}):  # markers need no choice
            said = ask(made, "prose", **more)
            assert said.headers["x-stillhouse-watermark"] == mine.id
            assert told(said)[0] == markers.marked(mine, PROSE)[0]
        told_of = look(made, {"texts": [told(said)[0]], "accounts": [made.account]}).json()["markers"]
        assert (told_of["keys"][0]["scored"], told_of["keys"][0]["mean"]) == (7, 1.0)
        said = ask(made, "prose", key=other)
        assert "x-stillhouse-watermark" not in said.headers
        assert told(said)[0] == PROSE
        assert made.stop() == 0
    changed = [event.changed for event in events(made) if event.model == "prose"]
    assert sorted(changed) == [(), *[(f"markers:{mine.id}",)] * 3]


def look(made, body, key=SECRET, who="ann"):
    with made.client(key) as client:
        headers = {"x-operator": who} if who else {}
        place = made.url.removesuffix("/v1") + "/admin/api/watermark"
        return client.post(place, json=body, headers=headers)


def test_the_operator_asks_whose_answers_a_text_contains(tmp_path, teller):
    with gate(tmp_path, tree(tmp_path, teller.url, "whole", best_of=8)) as made:
        other, other_key = made.new_key()
        texts = [told(ask(made, "whole", key=other_key))[0] for _ in range(30)]
        made.tree = tree(tmp_path, teller.url, "whole", number=2)  # what was marked before is found as well
        made.reload()
        end = time.monotonic() + 30
        while '"reloaded"' not in (tmp_path / "log").read_text():
            assert time.monotonic() < end
            time.sleep(0.05)
        said = look(made, {"texts": texts}).json()
        first, *rest = said["keys"]
        assert (first["account"], first["id"]) == (other, account_key(key(1), other).id)
        assert first["adjusted_p"] < 4 * LOW
        assert len(rest) == 3  # the other account, and both with the new key
        assert all(row["adjusted_p"] > LOW for row in rest)
        assert said["verdict"].startswith(f"marked with {first['id']}")
        assert any("not the chance" in limit for limit in said["limits"])
        named = look(made, {"texts": texts, "accounts": [made.account]}).json()
        assert {row["account"] for row in named["keys"]} == {made.account}
        assert all(row["p"] > LOW for row in named["keys"])
        assert look(made, {"texts": texts}, key="wrong").status_code == 401
        assert look(made, {"texts": texts}, who="").status_code == 400
        assert look(made, {"texts": []}).status_code == 400
        assert look(made, {"texts": ["x" * (1 << 20)]}).status_code == 413
        many = {"texts": ["a b " * 200_000], "accounts": [f"acct_{n}" for n in range(1000)]}
        assert look(made, many).status_code == 422
        assert key(1).secret.hex() not in json.dumps(said)
        loaded = subprocess.run(["grep", "-c", "torch", f"/proc/{made.process.pid}/maps"], check=False,
                                capture_output=True, text=True)  # fmt: skip
        assert loaded.stdout.strip() in ("0", "")
        assert '"marks looked for"' in (tmp_path / "log").read_text()


def test_where_nothing_marks_there_is_nothing_to_look_for(tmp_path, teller):
    with gate(tmp_path, tree_of(tmp_path, teller.url, "whole")) as made:
        said = look(made, {"texts": ["one two three four five"]})
        assert (said.status_code, said.json()["error"]["code"]) == (422, "not_usable")
