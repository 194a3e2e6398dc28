"""Whatever happens to clients, servers and the gateway itself: what was reserved is settled, once."""

import asyncio
import json
import random
import signal
import time

import orjson
import pytest
from behind import PROMPT, WORDS
from gate import gate, tree_of

from stillhouse.gateway.store.events import Events
from stillhouse.gateway.store.local import LocalCounts

HELLO = [{"role": "user", "content": "hello"}]
LIMITS = {"requests_per_day": 10**6, "output_tokens_per_day": 10**9, "concurrent": 1000}


def request(key: str, model: str) -> bytes:
    body = orjson.dumps({"model": model, "messages": HELLO, "stream": True, "max_tokens": 50})
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


async def one(port: int, key: str, model: str, patience: float | None) -> None:
    """Read to the end, or for `patience` seconds and then vanish without a word."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request(key, model))
    try:
        async with asyncio.timeout(patience):
            await reader.readuntil(b"0\r\n\r\n")
    except (TimeoutError, asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.transport.abort()


async def crowd(port: int, key: str, count: int, at_once: int, seed: int) -> None:
    random_ = random.Random(seed)
    plan = iter([random_.choice([None, 0.0, 0.01, 0.1, 0.4]) for _ in range(count)])

    async def visitor() -> None:
        for patience in plan:
            await one(port, key, "slowly", patience)

    await asyncio.gather(*(visitor() for _ in range(at_once)))


def port_of(made) -> int:
    return int(made.url.removesuffix("/v1").rpartition(":")[2])


def standing(made) -> dict:
    """Of the account, once the gateway has ended."""

    async def read():
        counts = LocalCounts.open(made.folder / "store")
        try:
            return dict(await counts.standing(f"account:{made.account}"))
        finally:
            await counts.close()

    return asyncio.run(read())


def events(made) -> list:
    kept = Events(made.config.store)
    try:
        return kept.newest(most=10**6)
    finally:
        kept.close()


@pytest.mark.parametrize("count", [150, pytest.param(1000, marks=pytest.mark.slow)])
def test_clients_that_vanish_leave_nothing_open_and_are_charged_once(tmp_path, behind, count):
    tree = tree_of(tmp_path, behind.url, "slowly")
    tree["tiers"]["default"]["limits"] = LIMITS
    with gate(tmp_path, tree) as made:
        asyncio.run(crowd(port_of(made), made.key, count, 30, count))
        assert made.stop() == 0
    seen, kept = standing(made), events(made)
    assert seen.get(("concurrent", "ever"), 0) == 0
    assert len(kept) == len({event.id for event in kept})
    sent = [event for event in kept if event.output_tokens]
    assert seen["output_tokens", "day"] == sum(event.output_tokens for event in sent)
    assert seen["requests", "day"] == len(sent), "nothing counts of what was never sent"
    whole = [event for event in kept if event.ended == "whole"]
    left = [event for event in kept if event.ended == "client_left"]
    assert whole
    assert left
    assert {(event.input_tokens, event.output_tokens) for event in whole} == {(PROMPT, WORDS)}
    assert all(0 <= event.output_tokens <= 50 for event in left)


def test_a_client_that_leaves_is_noticed_however_long_its_prompt_was(tmp_path, behind):
    """A long body holds up the reading of its connection, on which the client's leaving is to be seen."""

    async def leave(made, letters: int) -> None:
        behind.seen.clear()
        behind.left.clear()
        reader, writer = await asyncio.open_connection("127.0.0.1", port_of(made))
        said = [{"role": "user", "content": "a" * letters}]
        body = orjson.dumps({"model": "hang", "messages": said, "max_tokens": 50})
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {made.key}\r\n"
        async with asyncio.timeout(30):
            writer.write(f"{head}content-length: {len(body)}\r\nexpect: 100-continue\r\n\r\n".encode())
            await reader.readuntil(b"\r\n\r\n")
            writer.write(body)
            while not behind.seen["hang"]:  # noqa: ASYNC110 - counted in another thread
                await asyncio.sleep(0.01)
            writer.transport.abort()
            while not behind.left["hang"]:  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    with gate(tmp_path, tree_of(tmp_path, behind.url, "hang")) as made:
        for letters in (70_000, 90_000, 500_000):
            asyncio.run(leave(made, letters))
        assert made.stop() == 0
    assert [event.ended for event in events(made)] == ["client_left"] * 3


def test_a_gateway_that_is_killed_has_charged_what_it_had_sent(tmp_path, behind):
    tree = tree_of(tmp_path, behind.url, "hang", "whole")
    tree["tiers"]["default"]["limits"] = LIMITS
    behind.seen.clear()
    with gate(tmp_path, tree) as made:

        async def ask_and_kill() -> None:
            asking = [asyncio.create_task(one(port_of(made), made.key, "hang", None)) for _ in range(20)]
            while behind.seen["hang"] < 20:  # noqa: ASYNC110 - counted in another thread
                await asyncio.sleep(0.01)
            made.process.send_signal(signal.SIGKILL)
            await asyncio.gather(*asking)

        asyncio.run(ask_and_kill())
        made.process.wait(10)
        before = standing(made)["output_tokens", "day"]
        assert 20 * 50 <= before <= 20 * 50 + LIMITS["output_tokens_per_day"] // 64  # a block is lent
        assert standing(made).get(("concurrent", "ever"), 0) == 0
        made.start()
        asyncio.run(one(port_of(made), made.key, "whole", None))
        assert made.stop() == 0
    assert standing(made)["output_tokens", "day"] == before + WORDS


def test_a_key_that_is_revoked_and_a_limit_that_is_lowered_hold_within_a_second(tmp_path, behind):
    with gate(tmp_path, tree_of(tmp_path, behind.url, "whole")) as made, made.client() as client:
        body = {"model": "whole", "messages": HELLO}
        admin = {"authorization": f"Bearer {made.environ['STILLHOUSE_ADMIN_SECRET']}", "x-operator": "tester"}
        base = made.url.removesuffix("/v1") + "/admin/api"
        assert client.post("/chat/completions", json=body).status_code == 200
        change = {"limits": {"requests_per_minute": 1}, "reason": "a test"}
        said = client.patch(f"{base}/accounts/{made.account}", headers=admin, content=json.dumps(change))
        assert said.status_code == 200, said.text
        assert client.post("/chat/completions", json=body).status_code == 429
        said = client.post(f"{base}/accounts/{made.account}/block", headers=admin, json={"reason": "a test"})
        assert said.status_code == 200, said.text
        deadline = time.monotonic() + 1
        refused = client.post("/chat/completions", json=body)
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "account_blocked")
        assert time.monotonic() < deadline
