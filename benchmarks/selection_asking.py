"""A real gateway before a real served model, asked as customers ask, for benchmarks/selection.py."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

from gateway_arms import Arm
from gateway_stillhouse import ADMIN, MANY, accounts, serving, settings, toml

from stillhouse.models.serve import background
from stillhouse.watermark import Key, Selection, account_key, write_key

OPERATOR = "operator-of-the-benchmark-with-a-long-secret"
BEST_OF = (1, 2, 4, 8)
MARKED_BY = "x-stillhouse-watermark"
IN_FLIGHT = 8
TOKENS_NOT_GIVEN = "stillhouse_guard_tokens_not_given_total"

Messages = Sequence[Mapping[str, str]]


@dataclass(frozen=True, slots=True)
class Given:
    """An answer as a customer got it: `account` by its number, `why` it bears no mark, "" where it does."""

    prompt: int
    account: int
    best_of: int
    text: str
    why: str
    tokens: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Asked:
    """All answers of one model; `keys` of its accounts; `alone` those that were asked one at a time. What the
    model wrote and nobody got, by best of how many."""

    keys: list[Key]
    given: list[Given]
    alone: list[Given]
    not_given: dict[int, float]


@dataclass(frozen=True, slots=True)
class House:
    """A gateway with a model behind it under one name for each way to mark."""

    arm: Arm
    folder: Path
    accounts: list[tuple[str, str]]
    limit: int


def provider_key() -> Key:
    return Key(Selection(), bytes([67]) * 32, datetime(2026, 1, 1, tzinfo=UTC))


def name(best_of: int) -> str:
    return f"best-of-{best_of}"


def asked(
    file: Path, source: str, prompts: Sequence[Messages], customers: int, timed: int, limit: int
) -> Asked:
    """What the model answers for each of `BEST_OF`, from the file where an earlier process asked. Customers
    take turns with the prompts; the first `timed` of these are asked one at a time as well."""
    if not file.exists():
        with house(file.with_suffix(""), source, customers, limit) as made:
            alone = [give(made, at, prompts[at], best) for at in range(timed) for best in BEST_OF]
            given: list[Given] = []
            taken = {}
            for best in BEST_OF:
                before = not_given(made, name(best))
                with ThreadPoolExecutor(IN_FLIGHT) as threads:
                    tasks = [threads.submit(give, made, at, one, best) for at, one in enumerate(prompts)]
                    given += [task.result() for task in tasks]
                taken[best] = not_given(made, name(best)) - before
            ids = [account for account, _ in made.accounts]
        rows = {"given": [asdict(one) for one in given], "alone": [asdict(one) for one in alone]}
        write(file, {**rows, "accounts": ids, "not_given": taken})
    found = json.loads(file.read_text())
    return Asked(
        [account_key(provider_key(), account) for account in found["accounts"]],
        [Given(**row) for row in found["given"]],
        [Given(**row) for row in found["alone"]],
        {int(best): taken for best, taken in found["not_given"].items()},
    )


def with_markers(file: Path, source: str, prompts: Sequence[Messages], limit: int) -> tuple[Key, list[Given]]:
    """What an account under review is answered, with markers and without a choice; and its key."""
    if not file.exists():
        with house(file.with_suffix(""), source, 1, limit) as made:
            review(made, prompts[0])
            with ThreadPoolExecutor(IN_FLIGHT) as threads:
                tasks = [threads.submit(give, made, at, one, 0) for at, one in enumerate(prompts)]
                given = [asdict(task.result()) for task in tasks]
            write(file, {"account": made.accounts[0][0], "given": given})
    found = json.loads(file.read_text())
    return account_key(provider_key(), found["account"]), [Given(**row) for row in found["given"]]


@contextmanager
def house(folder: Path, source: str, customers: int, limit: int) -> Iterator[House]:
    """`best-of-0` has markers alone, for accounts under review."""
    folder.mkdir(parents=True)
    write_key(provider_key(), folder / "key.json")
    with background(source, folder / "server.log") as url:
        made = settings(1)
        made["models"] = [served(url, source, best, limit) for best in (*BEST_OF, 0)]
        made["detection"] = {"mode": "enforce", "mark": True, "throttle_requests_per_minute": MANY}
        (folder / "guard.toml").write_text(toml(made))
        who = accounts(folder, customers)
        with serving(folder, who[0][1], name(1), **{ADMIN: OPERATOR}) as arm:
            yield House(arm, folder, who, limit)


def served(url: str, source: str, best_of: int, limit: int) -> dict[str, Any]:
    behind = source if source.startswith("embedded:") else Path(source).name
    made = {
        "name": name(best_of),
        "upstreams": [{"url": url, "model": behind}],
        "price": "listed",
        "max_output_tokens": limit,
    }
    marks = {1: {}, 0: {"watermark": {"key": "key.json", "best_of": 1, "markers": True}}}
    return made | marks.get(best_of, {"watermark": {"key": "key.json", "best_of": best_of}})


def give(made: House, prompt: int, messages: Messages, best_of: int) -> Given:
    """The answer to one prompt at temperature 1; the seeds of one prompt's choices are no other's."""
    who = prompt % len(made.accounts)
    body = {"model": name(best_of), "messages": messages, "max_tokens": made.limit, "temperature": 1.0}
    headers = {"Authorization": f"Bearer {made.accounts[who][1]}", "Content-Type": "application/json"}
    data = json.dumps(body | {"seed": 100 * prompt}).encode()
    url = f"http://127.0.0.1:{made.arm.port}/v1/chat/completions"
    begun = time.perf_counter()
    with urlopen(Request(url, data, headers), timeout=300) as reply:
        told = json.loads(reply.read())
        said = reply.headers.get(MARKED_BY, "none; why=off")
    seconds = time.perf_counter() - begun
    why = said.removeprefix("none; why=") if said.startswith("none") else ""
    text, tokens = told["choices"][0]["message"]["content"], told["usage"]["completion_tokens"]
    return Given(prompt, who, best_of, text, why, tokens, seconds)


def not_given(made: House, model: str) -> float:
    """Output tokens of the answers that were only chosen from, so far."""
    url = f"http://127.0.0.1:{made.arm.port}/metrics"
    with urlopen(Request(url, headers={"Authorization": f"Bearer {OPERATOR}"})) as reply:
        lines = reply.read().decode().splitlines()
    wanted = [line for line in lines if line.startswith(TOKENS_NOT_GIVEN) and f'"{model}"' in line]
    return sum(float(line.split()[-1]) for line in wanted if 'direction="output"' in line)


def review(made: House, messages: Messages) -> None:
    """The account goes to review by hand; this waits until the gateway knows. Raises RuntimeError where it
    does not within half a minute."""
    words = [sys.executable, "-m", "stillhouse.cli", "guard", "decide", made.accounts[0][0], "review"]
    words += ["--reason", "a benchmark", "--config", "guard.toml"]
    subprocess.run(words, check=True, capture_output=True, cwd=made.folder)
    end = time.monotonic() + 30
    while give(made, 0, messages, 0).why == "off":
        if time.monotonic() > end:
            raise RuntimeError(f"the gateway does not know of the review: {made.folder / 'said.txt'}")
        time.sleep(0.2)


def write(file: Path, content: object) -> None:
    unfinished = file.with_suffix(".part")
    unfinished.write_text(json.dumps(content))
    unfinished.replace(file)
