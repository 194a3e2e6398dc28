"""What the mock provider decides and writes down: answers, bills, limits, faults and lies. No server here.

What it answers depends on the question and the seed alone, and what goes wrong on the seed, the question and
how often that question was asked, so that a run can be repeated. Its journal is its own account of what it
did: every request that arrived, what was billed for it, and how much of the answer left. `serving` starts the
server (mock_server.py) as a process of its own.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import orjson

FAULTS = {
    "cut_before": "closes without a byte; nothing was done and nothing is billed",
    "cut_work": "does the work, bills it, and closes without a byte",
    "cut_body": "bills, and closes in the middle of the answer",
    "cut_after": "answers whole, then closes a connection that it had promised to keep",
    "stall": "bills, and sends nothing for `stall_seconds`, then closes",
    "truncated": "bills, and answers 200 with JSON that ends in the middle, length and all in order",
    "malformed": "bills, and answers 200 with something that is no JSON",
    "error": "answers 500 and bills nothing",
    "claims_less": "answers, and claims half of the tokens that it bills",
    "claims_most": "answers, and claims `max_tokens` of output",
    "claims_nothing": "answers without usage",
    "claims_too_much": "answers, and claims ten times `max_tokens`",
}
SERVER = Path(__file__).with_name("mock_server.py")
BILLED_NOTHING = ("limited", "cut_before", "error")
WORDS = (
    "still house copper vapour condense draw cut heart tail wash mash yeast barley oak cask year spirit "
    'small proof measure water fire "quoted" back\\slash line\nbreak naïve 漢字 emoji😀 tab\there'
).split(" ")


@dataclass(frozen=True, slots=True)
class Settings:
    """Times in seconds, prices in US dollars per million tokens, shares of 1.

    `latency` and `answer_bytes` are means: each request's own is between half and one and a half of it.
    `limits` is `FROM:REQUESTS:TOKENS,...`: from so many seconds after the start, so many a minute (0: no
    limit), again from the beginning after `limits_period`, and enforced over `burst_seconds`: that much of a
    rate may arrive at once. `faults` is `NAME=SHARE,...`, of the requests that pass the limits. A batch takes
    `batch_seconds`, costs `batch_price` of the price and expires after `batch_window`; `lost_replies` is the
    share of files and batches that are made but not confirmed, `batch_errors` that of a batch's lines that
    fail.
    """

    seed: int = 0
    port: int = 0
    latency: float = 0.02
    answer_bytes: int = 2000
    price_input: float = 1.0
    price_output: float = 4.0
    limits: str = ""
    limits_period: float = math.inf
    burst_seconds: float = 60.0
    faults: str = ""
    stall_seconds: float = 30.0
    lost_replies: float = 0.0
    batch_errors: float = 0.0
    batch_seconds: float = 1.0
    batch_window: float = 86400.0
    batch_price: float = 0.5


# ---------------------------------------------------------------- decisions


class Work(NamedTuple):
    """The answer to a request, and what it truly costs."""

    text: str
    finish: str
    prompt_tokens: int
    completion_tokens: int


def request_id(body: Mapping[str, Any]) -> str:
    """The first 24 hex digits of a SHA-256 over the body, whatever the order of its keys."""
    return hashlib.sha256(orjson.dumps(body, option=orjson.OPT_SORT_KEYS)).hexdigest()[:24]


def tokens(text: str) -> int:
    return math.ceil(len(text.encode()) / 4)


def text_of(message: Mapping[str, Any]) -> str:
    """What a message says, whether as a string or as parts."""
    content = message["content"]
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def drawn(*parts: object) -> tuple[float, float]:
    """Two numbers in [0, 1) that depend on the parts only."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=16).digest()
    return int.from_bytes(digest[:8]) / 2**64, int.from_bytes(digest[8:]) / 2**64


def pool_of(seed: int, words: int = 50_000) -> str:
    """The text that answers are pieces of."""
    return " ".join(random.Random(seed).choices(WORDS, k=words))


def work_of(settings: Settings, pool: str, body: Mapping[str, Any], request: str) -> Work:
    """Raises KeyError, TypeError or ValueError for a body that is no chat request."""
    messages = body["messages"]
    if not messages:
        raise ValueError("there is no message")
    prompt = sum(tokens(text_of(message)) + 8 for message in messages)
    length, place = drawn(settings.seed, request)
    size = int(settings.answer_bytes * (0.5 + length))
    begin = int(place * (len(pool) - size))
    text, finish = f"{request} {pool[begin : begin + size]}"[:size], "stop"
    used = tokens(text)
    most = int(body.get("max_tokens") or body.get("max_completion_tokens") or 4096)
    if used > most:
        text = text.encode()[: 4 * most].decode(errors="ignore")
        used, finish = most, "length"
    return Work(text, finish, prompt, used)


def parse_shares(text: str, known: Mapping[str, str]) -> dict[str, float]:
    """`NAME=SHARE,...`; raises ValueError for an unknown name and for shares that pass 1."""
    shares = {}
    for part in filter(None, text.split(",")):
        name, share = part.split("=")
        if name not in known:
            raise ValueError(f"no fault called {name}; there are {', '.join(known)}")
        shares[name] = float(share)
    if sum(shares.values()) > 1:
        raise ValueError("the shares pass 1")
    return shares


def parse_limits(text: str) -> list[tuple[float, float, float]]:
    steps = (part.split(":") for part in filter(None, text.split(",")))
    return sorted((float(start), float(requests), float(used)) for start, requests, used in steps)


def fault_of(shares: Mapping[str, float], seed: int, request: str, nth: int) -> tuple[str, float]:
    """What goes wrong the nth time that a request is asked ("answer": nothing), and a number in [0, 1)."""
    place, other = drawn(seed, "fault", request, nth)
    for name, share in shares.items():
        if place < share:
            return name, other
        place -= share
    return "answer", other


def claims_of(does: str, work: Work, body: Mapping[str, Any]) -> tuple[int, int] | None:
    """The usage that the answer claims."""
    most = int(body.get("max_tokens") or body.get("max_completion_tokens") or 4096)
    claims = {
        "claims_less": (work.prompt_tokens // 2, work.completion_tokens // 2),
        "claims_most": (work.prompt_tokens, most),
        "claims_nothing": None,
        "claims_too_much": (work.prompt_tokens, 10 * most),
    }
    return claims.get(does, (work.prompt_tokens, work.completion_tokens))


@dataclass(slots=True)
class Bucket:
    """A rate a minute that fills evenly and holds `burst` seconds of it; 0 is no limit."""

    per_minute: float
    burst: float
    level: float = math.inf
    at: float = 0.0

    @property
    def size(self) -> float:
        return max(1.0, self.per_minute / 60 * self.burst)

    def missing(self, amount: float, now: float) -> float:
        """Seconds until `amount` may be taken; one that is larger than the bucket waits until it is full."""
        if self.per_minute == 0:
            return 0.0
        self.level = min(self.size, self.level + (now - self.at) * self.per_minute / 60)
        self.at = now
        return max(0.0, (min(amount, self.size) - self.level) * 60 / self.per_minute)

    def headers(self, name: str) -> str:
        if self.per_minute == 0:
            return ""
        full = (self.size - self.level) * 60 / self.per_minute
        return (
            f"x-ratelimit-limit-{name}: {self.per_minute:.0f}\r\n"
            f"x-ratelimit-remaining-{name}: {max(0, math.floor(self.level))}\r\n"
            f"x-ratelimit-reset-{name}: {full:.3f}s\r\n"
        )


def completion(request: str, work: Work, model: str, claims: tuple[int, int] | None) -> dict[str, Any]:
    message = {"role": "assistant", "content": work.text, "refusal": None}
    body: dict[str, Any] = {
        "id": f"chatcmpl-{request}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": f"{model}-mock",
        "choices": [{"index": 0, "message": message, "finish_reason": work.finish, "logprobs": None}],
        "system_fingerprint": "fp_mock",
    }
    if claims is not None:
        used = {"prompt_tokens": claims[0], "completion_tokens": claims[1], "total_tokens": sum(claims)}
        body["usage"] = used
    return body


def error_body(message: str, kind: str, code: str | None = None) -> bytes:
    return orjson.dumps({"error": {"message": message, "type": kind, "param": None, "code": code}})


# ---------------------------------------------------------------- the journal


@dataclass(frozen=True, slots=True)
class Entry:
    """A request as the provider saw it.

    `prompt` is how its last message begins and `seed` the one it was sent with; `does` is what the provider
    did: `answer`, `limited`, a fault, or `batch`; `tokens` what it read and wrote, `claims` the usage that it
    told, `dollars` the bill, `answer` the first 16 hex digits of the SHA-256 of the answer's text. `sent`
    says how much of an answer left: `whole`, `part`, `nothing`, and None while it has not ended. `place` is
    (batch, line) for a line of a batch.
    """

    n: int
    at: float
    request: str
    prompt: str
    seed: int
    does: str
    tokens: list[int]
    claims: list[int] | None
    dollars: float
    answer: str
    sent: str | None = None
    place: tuple[str, int] | None = None


def text_digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def read_journal(path: Path, start: int = 0) -> tuple[list[dict[str, Any]], int]:
    """The whole rows from byte `start` on, and where the next begin. A row that is being written is left."""
    with path.open("rb") as file:
        file.seek(start)
        data = file.read()
    whole = data[: data.rfind(b"\n") + 1]
    return [orjson.loads(line) for line in whole.splitlines()], start + len(whole)


def entries(rows: list[dict[str, Any]]) -> list[Entry]:
    """Requests in the order of their arrival, each with how it ended."""
    ended = {row["n"]: row["sent"] for row in rows if "sent" in row}
    return [
        Entry(**{**row, "sent": ended.get(row["n"]), "place": place and (place[0], place[1])})
        for row in rows
        if "does" in row
        for place in (row.get("place"),)
    ]


class Journal:
    """Append-only; each row is one write to the kernel, so it outlives this process. Rows are numbered on
    from those of an earlier process; what a kill tore is cut off."""

    def __init__(self, path: Path) -> None:
        rows, end = read_journal(path) if path.exists() else ([], 0)
        self.asked: dict[str, int] = {}
        self.lines: set[tuple[str, int]] = set()
        self.n = 0
        for entry in entries(rows):
            self.n = max(self.n, entry.n)
            if entry.place is not None:
                self.lines.add(entry.place)
            elif entry.does != "limited":
                self.asked[entry.request] = self.asked.get(entry.request, 0) + 1
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.ftruncate(self._file, end)

    def arrived(
        self,
        request: str,
        body: Mapping[str, Any],
        does: str,
        work: Work,
        claims: tuple[int, int] | None,
        dollars: float,
        place: tuple[str, int] | None = None,
    ) -> int:
        self.n += 1
        row: dict[str, Any] = {
            "n": self.n,
            "at": round(time.time(), 4),
            "request": request,
            "prompt": text_of(body["messages"][-1])[:24],
            "seed": body.get("seed") or 0,
            "does": does,
            "tokens": (work.prompt_tokens, work.completion_tokens),
            "claims": claims,
            "dollars": dollars,
            "answer": text_digest(work.text),
        }
        if place is not None:
            row["place"] = place
            self.lines.add(place)
        os.write(self._file, orjson.dumps(row) + b"\n")
        return self.n

    def ended(self, n: int, sent: str) -> None:
        os.write(self._file, b'{"n":%d,"sent":"%s"}\n' % (n, sent.encode()))


# ---------------------------------------------------------------- for those who start it


class Served(NamedTuple):
    port: int
    process: subprocess.Popen[str]
    journal: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def cpu_seconds(self) -> float:
        """CPU seconds of the server so far."""
        from urllib.request import urlopen

        with urlopen(f"http://127.0.0.1:{self.port}/cpu") as reply:
            return float(reply.read())


@contextmanager
def serving(folder: Path, settings: Settings) -> Iterator[Served]:
    """The server as a process of its own, for as long as the block lasts."""
    flags = [part for name, value in asdict(settings).items() for part in (f"--{name}", str(value))]
    process = subprocess.Popen(
        [sys.executable, SERVER, str(folder), *flags], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise RuntimeError(f"the provider did not start; exit code {process.wait()}")
        yield Served(json.loads(line)["port"], process, folder / "journal.jsonl")
    finally:
        process.terminate()
        process.wait(30)
        if process.stdout is not None:
            process.stdout.close()
