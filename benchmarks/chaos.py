"""The collector killed at random points in front of a provider that bills, limits, stalls, cuts and lies.

    .venv/bin/python benchmarks/chaos.py [--quick] [--kills N] [--json FILE]

`stillhouse collect` runs as its user runs it and is killed with SIGKILL: after a random number of requests,
now and then while it starts, and at the end while it looks everything up again. After every kill the books in
the ledger's file are checked against what they were before and against the provider's own journal. The cap on
money is set low and raised each time it is reached. Nothing here uses the inside of stillhouse.
"""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import orjson
import pyarrow.parquet as pq
from collecting import Attempt, read_attempts, said, start, write_prompts, write_workspace
from mock_provider import Entry, Served, Settings, entries, read_journal, serving, text_digest
from rows import Row, header, show

SEED = 11
SAMPLES = 2
PROMPTS = 20  # for each kill
PRICE = (1.0, 4.0)  # US dollars per million tokens, in and out
MAX_TOKENS = 240
CONCURRENCY = 24
TIMEOUT = 2.0
FAULTS = (
    "cut_before=0.01,cut_work=0.01,cut_body=0.01,cut_after=0.02,stall=0.005,truncated=0.01,malformed=0.01,"
    "error=0.03,claims_less=0.02,claims_most=0.02,claims_nothing=0.02,claims_too_much=0.002"
)
LIMITS = "0:9000:2700000,4.3:300:0"  # every five seconds 0.7 in which hardly anything is let through
HONEST = 160 * PRICE[1] + 110 * PRICE[0]  # microdollars of an exchange, about: how far apart the caps are set
WORST = MAX_TOKENS * PRICE[1] + 300 * PRICE[0]  # microdollars of a request: a token a byte, whole answers
MAYBE_BILLED = ("cut", "malformed", "server", "timeout", "too_large")  # reasons of failed attempts
MOST_ERRORS = 5
CHECKS = {
    "books": "kills after which attempts = answered + failed + unknown + open did not hold",
    "lost": "durably committed answers lost",
    "again": "durably committed answers asked again",
    "unwritten": "requests that the provider saw and the ledger does not know",
    "hidden": "attempts open at a kill that are not shown as unknown",
    "bought": "whole answers more than answers kept and attempts failed or unknown",
    "cap": "moments at which the recorded spending passed the cap",
    "bill": "moments at which the provider's bill passed the cap",
    "worst": "moments at which spending, with what may have been billed at its worst case, passed the cap",
    "torn": "answers in exchanges.parquet that the provider did not give",
    "missing": "questions without a row, or with two, at the end",
    "verified": "ledger checks that fail at the end",
    "stopped": "runs that ended by themselves with another error than cap or disputed usage",
}


@dataclass(slots=True)
class Watched:
    """What is known of the run so far. `wrong` counts violations by the names in CHECKS."""

    questions: int
    cap: float  # US dollars
    attempts: list[Attempt] = field(default_factory=list)
    rows: list[dict] = field(default_factory=list)  # of the provider's journal
    read: int = 0  # bytes of the journal
    open_at_kills: set[int] = field(default_factory=set)
    wrong: Counter[str] = field(default_factory=Counter)
    evidence: list[str] = field(default_factory=list)
    starts: int = 0
    kills: int = 0
    done: bool = False  # the last start ended by itself with all answered
    ends: Counter[str] = field(default_factory=Counter)

    def violated(self, check: str, count: int, detail: str) -> None:
        if count > 0:
            self.wrong[check] += int(count)
            self.evidence.append(
                f"start {self.starts}, kill {self.kills}: {CHECKS[check]}: {int(count)}; {detail}"
            )

    @property
    def entries(self) -> list[Entry]:
        return entries(self.rows)


def chaos(folder: Path, prompts: int, kills: int, seed: int = SEED) -> Watched:
    """Collect `SAMPLES` answers to each prompt, killed `kills` times, until all is answered."""
    draw = random.Random(seed)
    settings = Settings(
        seed=seed,
        latency=0.03,
        answer_bytes=600,
        price_input=PRICE[0],
        price_output=PRICE[1],
        limits=LIMITS,
        limits_period=5.0,
        burst_seconds=1.0,
        faults=FAULTS,
        stall_seconds=2 * TIMEOUT,
    )
    questions = prompts * SAMPLES
    step = HONEST * questions / 1e6 / 4
    with serving(folder / "provider", settings) as provider:
        work = folder / "work"
        work.mkdir()
        write_prompts(work / "prompts.jsonl", prompts)
        watched, reached = Watched(questions, cap=step), 0
        _recipe(work, provider, watched.cap)
        until_done = 3 * questions / kills  # answered at some three quarters of the kills
        while watched.kills < kills or not watched.done:
            if watched.starts > 5 * kills + 50:
                raise RuntimeError(f"no end in sight after {watched.starts} starts: {dict(watched.ends)}")
            watched.starts += 1
            watched.done = False
            point = _point(draw, None if watched.ends["done"] else until_done)
            process = start(work)
            killed = watched.kills < kills and _kill(process, point, provider.journal)
            code = process.wait()
            watched.kills += killed
            _check(watched, work, provider.journal, killed)
            if not killed:
                _note_end(watched, work, code)
            if watched.ends["budget reached"] > reached:
                reached += 1
                watched.cap += step
                _recipe(work, provider, watched.cap)
        _check_end(watched, work)
    return watched


class Point(NamedTuple):
    """When to kill: so many requests after the start, and so many seconds after that."""

    requests: int
    seconds: float


def _point(draw: random.Random, most: float | None) -> Point:
    """One in eight before the first request; once all is answered (`most` None) at any time."""
    if most is None or draw.random() < 1 / 8:
        return Point(0, draw.uniform(0.0, 2.0))
    return Point(1 + int(draw.random() * most), draw.uniform(0.0, 0.03))


def _recipe(folder: Path, provider: Served, cap: float) -> None:
    write_workspace(
        folder,
        provider.port,
        PRICE,
        concurrency=CONCURRENCY,
        samples=SAMPLES,
        temperature=0.7,
        max_tokens=MAX_TOKENS,
        timeout=TIMEOUT,
        max_cost=cap,
        **{"canary.prompts": 0},  # they ask the same again on purpose, and the journal cannot tell
    )


def _kill(process: subprocess.Popen[bytes], point: Point, journal: Path) -> bool:
    """SIGKILL at the point; False when the process ended before it."""
    size = journal.stat().st_size
    seen = 0
    with journal.open("rb") as file:
        file.seek(size)
        while seen < point.requests:
            if process.poll() is not None:
                return False
            seen += file.read().count(b'"does"')
            time.sleep(0.002)
    try:
        process.wait(point.seconds)
    except subprocess.TimeoutExpired:
        process.kill()
    return process.wait() == -signal.SIGKILL


def _note_end(watched: Watched, folder: Path, code: int) -> None:
    """Write down how a run ended that was not killed."""
    error = orjson.loads((folder / "out.json").read_bytes() or b"{}").get("error", {})
    answered = sum(a.state == "answered" for a in watched.attempts)
    watched.done = code == 0 and answered >= watched.questions
    if code == 0:
        watched.ends["done" if watched.done else "done, some questions failed for good"] += 1
    elif code == 4:
        watched.ends["budget reached"] += 1
    elif "claims usage" in error.get("what", ""):
        watched.ends["usage disputed"] += 1
    else:
        watched.ends["another error"] += 1
        watched.violated("stopped", 1, str(error or (folder / "err.txt").read_text()[-500:]))
        if watched.wrong["stopped"] > MOST_ERRORS:
            raise RuntimeError("\n".join(watched.evidence))


def _check(watched: Watched, folder: Path, journal: Path, killed: bool) -> None:
    """Compare the ledger's file with what it was and with the journal, and remember both."""
    before = watched.attempts
    new_rows, watched.read = read_journal(journal, watched.read)
    watched.rows += new_rows
    now, leaves = read_attempts(folder)
    watched.attempts = now
    states = Counter(a.state for a in now)
    answered = states["answered"]
    whole = answered + states["failed"] + states["unknown"] + states["open"] == len(now)
    numbered = [a.id for a in now] == list(range(1, len(now) + 1))
    booked = leaves == answered == len({a.leaf for a in now if a.leaf is not None})
    closed = killed or states["open"] == 0
    sound = whole and numbered and booked and closed
    watched.violated("books", not sound, f"{dict(states)}, {leaves} exchange leaves")

    by_id = {a.id: a for a in now}
    committed = [a for a in before if a.state == "answered"]
    lost = [a for a in committed if by_id.get(a.id) != a]
    watched.violated("lost", len(lost), str(lost[:3]))
    answered_before = {a.asked for a in committed}
    again = [e for e in entries(new_rows) if _asked(e) in answered_before]
    watched.violated("again", len(again), str(again[:3]))

    begun = Counter(a.asked for a in now)
    seen = Counter(_asked(e) for e in watched.entries)
    unwritten = sum((seen - begun).values())
    watched.violated("unwritten", unwritten, str((seen - begun).most_common(3)))

    left = watched.open_at_kills
    hidden = [number for number in left if by_id[number].state not in ("open", "unknown")]
    stray = [a for a in now if a.state == "unknown" and a.id not in left]
    watched.violated("hidden", len(hidden) + len(stray), f"{hidden[:3]} {stray[:3]}")
    if killed:
        watched.open_at_kills |= {a.id for a in now if a.state == "open"}
    _check_money(watched)


def _check_money(watched: Watched) -> None:
    """Three measures of what was spent. What the ledger recorded, disputed answers left out; the provider's
    bill, as far as it told; and the most that the ledger must reckon with, where every attempt that may have
    been billed without a price to show for it costs its worst case."""
    disputed = {_asked(e) for e in watched.entries if e.does == "claims_too_much"}
    recorded = sum(a.microdollars or 0 for a in watched.attempts if a.asked not in disputed) / 1e6
    watched.violated("cap", recorded > watched.cap, f"recorded {recorded:.4f} of {watched.cap:.4f} US$")
    billed = sum(_as_told(e) for e in watched.entries)
    watched.violated("bill", billed > watched.cap, f"billed {billed:.4f} of {watched.cap:.4f} US$")
    maybe = Counter(
        a.state
        for a in watched.attempts
        if a.state in ("unknown", "open")
        or (a.state == "failed" and a.reason in MAYBE_BILLED)
        or (a.state == "answered" and a.microdollars is None)
    )
    most = recorded + maybe.total() * WORST / 1e6
    watched.violated(
        "worst",
        most > watched.cap,
        f"{recorded:.4f} + {dict(maybe)} attempts at {WORST / 1e6:.6f} = {most:.4f} of {watched.cap:.4f} US$",
    )


def _as_told(entry: Entry) -> float:
    """The bill of a request, or what the provider claimed of it where that is less."""
    if entry.claims is None or entry.dollars == 0:
        return entry.dollars
    return min(entry.dollars, sum(n * p for n, p in zip(entry.claims, PRICE, strict=True)) / 1e6)


def _asked(entry: Entry) -> tuple[str, int]:
    return entry.prompt[:8], entry.seed


def _check_end(watched: Watched, folder: Path) -> None:
    given = {(_asked(e), e.answer) for e in watched.entries if e.does != "limited"}
    run = folder / ".stillhouse" / "runs" / said_run(folder)
    table = pq.read_table(run / "exchanges.parquet", columns=["prompt_id", "sample_index", "answer"])
    rows = [((r["prompt_id"], r["sample_index"]), r["answer"]) for r in table.to_pylist()]
    torn = [asked for asked, answer in rows if (asked, text_digest(answer)) not in given]
    watched.violated("torn", len(torn), str(torn[:3]))
    times = Counter(asked for asked, _ in rows)
    wanted = [(f"p{n // SAMPLES:07d}", n % SAMPLES) for n in range(watched.questions)]
    missing = [asked for asked in wanted if times[asked] != 1]
    watched.violated("missing", len(missing), str(missing[:3]))
    whole = Counter(_asked(e) for e in watched.entries if e.sent == "whole")
    excused = Counter(a.asked for a in watched.attempts)
    bought = sum((whole - excused).values())
    watched.violated("bought", bought, str((whole - excused).most_common(3)))
    shown = said(folder, "ledger", "show", "--limit", "0")["attempts"]
    states = Counter(a.state for a in watched.attempts)
    counted = {name.replace("sent, ", ""): number for name, number in shown.items() if number}
    watched.violated("hidden", counted != dict(states), f"shown {shown}, in the file {dict(states)}")
    checks = said(folder, "ledger", "verify")["checks"]
    failing = [check for check in checks if not check["ok"]]
    watched.violated("verified", len(failing), str(failing))


def said_run(folder: Path) -> str:
    return str(orjson.loads((folder / "out.json").read_bytes())["run"])


def resent(attempts: Iterable[Attempt]) -> int:
    """Attempts at a question whose last attempt before was left without an end by a kill."""
    last: dict[tuple[str, int], str] = {}
    count = 0
    for attempt in attempts:
        count += last.get(attempt.asked) == "unknown"
        last[attempt.asked] = attempt.state
    return count


def rows_of(watched: Watched, seconds: float) -> list[Row]:
    states = Counter(a.state for a in watched.attempts)
    seen = Counter(e.does for e in watched.entries)
    again = resent(watched.attempts)
    billed = sum(e.dollars for e in watched.entries)
    kept = sum(a.microdollars or 0 for a in watched.attempts) / 1e6
    rows = [
        Row("kills", watched.kills, "SIGKILL"),
        Row("starts", watched.starts, "processes"),
        *(Row(f"ended by itself: {how[:80]}", count, "times") for how, count in sorted(watched.ends.items())),
        Row("questions", watched.questions, ""),
        Row("requests that the provider saw", sum(seen.values()), "requests"),
        Row("  refused by its limits (429)", seen["limited"], "requests"),
        Row("  cut, stalled, spoiled or failed", sum(seen.values()) - _good(seen), "requests"),
        *(Row(f"attempts {state}", states[state], "attempts") for state in ("answered", "failed", "unknown")),
        Row("attempts open at the kills", len(watched.open_at_kills), "attempts"),
        Row(
            "asked again because of a kill",
            again,
            "requests",
            peer="open at the kills",
            peer_value=len(watched.open_at_kills),
            ratio=again / max(1, len(watched.open_at_kills)),
            target="<= open at the kills",
            holds=again <= len(watched.open_at_kills),
        ),
        Row("recorded spending", kept, "US$", peer="provider's bill", peer_value=billed, ratio=kept / billed),
    ]
    rows += [
        Row(text, watched.wrong[name], "", target="0", holds=watched.wrong[name] == 0)
        for name, text in CHECKS.items()
    ]
    return [*rows, Row("time", seconds, "s")]


def _good(seen: Counter[str]) -> int:
    return sum(n for does, n in seen.items() if does in ("answer", "limited") or does.startswith("claims"))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="20 kills instead of 200")
    parser.add_argument("--kills", type=int, help="so many kills")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write header and rows there")
    options = parser.parse_args()
    kills = options.kills or (20 if options.quick else 200)
    prompts = PROMPTS * kills
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        watched = chaos(Path(folder), prompts, kills)
    rows = rows_of(watched, time.monotonic() - started)
    show(header(SEED, ["stillhouse", "aiohttp"]), rows, options.json)
    for line in watched.evidence[:20]:
        print(line)


if __name__ == "__main__":
    main()
