"""What an erasure concerns: the contents that were asked for, and all that was made from them.

The chain is followed to its end: rows made from an answer, prompts that it invented, what teachers answered
to these, questions to a judge that quote an answer, and readings for which a teacher was sent it once more.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from hmac import digest as hmac_digest
from pathlib import Path
from typing import Any

import orjson
import zstandard

from stillhouse.errors import UsageError, storage
from stillhouse.ledger.batches import open_batches
from stillhouse.ledger.keys import read_workspace_key
from stillhouse.ledger.needle import Needle, needle
from stillhouse.ledger.store import Ledger
from stillhouse.ledger.tombstones import rows_made_from
from stillhouse.workspace import RunFolder, Workspace

ROWS = 4096  # rows of a file read at once
_PAGE = 1024
_DIGITS = 32  # of a SHA-256 in hex, enough to tell answers apart
_AGAIN = re.compile(r"/(?:forward|backward)$| \(canary \d+\)$")


@dataclass(frozen=True, slots=True)
class Subject:
    """All that holds `text`, or these leaves, or every answer of the model `teacher`, or what came from
    this `account` of a cascade."""

    text: str | None = None
    leaves: tuple[int, ...] = ()
    teacher: str | None = None
    account: str | None = None


@dataclass(slots=True)
class Found:
    """What goes. `asked` counts by kind the leaves that the subject itself names, `leaves` are these and all
    that the chain leads to, `rows` the `row` leaves among them, each with its transform.

    `prompts` are the ids of prompts that go, by the name of the run; `answers` digests of the answers that
    go, `said` the same with the prompt, and `alone` those that nothing else in a run says. `bodies` are
    leaves whose own bytes hold the text: they cannot be erased. `note_uses` fills in the rest.
    """

    text: str | None = None
    asked: dict[str, int] = field(default_factory=dict)
    leaves: set[int] = field(default_factory=set)
    rows: dict[int, int | None] = field(default_factory=dict)
    prompts: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    answers: set[str] = field(default_factory=set)
    said: set[tuple[str, str]] = field(default_factory=set)
    alone: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    bodies: list[int] = field(default_factory=list)
    students: list[dict[str, Any]] = field(default_factory=list)
    releases: list[dict[str, Any]] = field(default_factory=list)


def runs_of(workspace: Workspace) -> list[RunFolder]:
    return [RunFolder(path) for path in sorted(workspace.runs.glob("*")) if path.is_dir()]


def sample_leaves(workspace: Workspace, name: str) -> tuple[int, ...]:
    """The answers from which the rows called `name` were made, in any run. Raises UsageError for none."""
    found: set[int] = set()
    for run in runs_of(workspace):
        for path in (run.samples, run.dropped):
            for row in read_rows(path, ["id", "leaves"]):
                found.update(row["leaves"] if row["id"] == name else ())
    if not found:
        raise UsageError(
            f"no row called {name!r}",
            "no run's samples or dropped rows have this id",
            "give an id as in samples.parquet, such as `p1#0`, or the index of a leaf",
        )
    return tuple(sorted(found))


def find(ledger: Ledger, subject: Subject) -> Found:
    """Look for a subject, and follow what was made from it; nothing is changed.

    Raises UsageError where answers that are under way would bring it back.
    """
    found, text = Found(subject.text), None
    runs = runs_of(ledger.workspace)
    if subject.text is not None:
        text = needle(subject.text)
        found.leaves |= _holding(ledger, text)
        found.bodies = [leaf.index for leaf in ledger.leaves() if text.in_bytes(leaf.data)]
        for run in runs:
            found.prompts[run.root.name] |= _prompts_holding(run, text)
    if subject.teacher is not None:
        found.leaves |= _answers_of(ledger, subject.teacher)
    if subject.account is not None:
        came = _landed_from(ledger, subject.account)
        found.leaves |= {leaf for _, leaf in came}
        for run in runs:
            found.prompts[run.root.name] |= {event for event, _ in came}
    for index in subject.leaves:
        found.leaves |= {index, *_made_of(ledger, index)}
    found.asked = _kinds(ledger, found.leaves)
    seen: set[int] = set()
    size = -1
    while (now := len(found.leaves) + sum(map(len, found.prompts.values()))) != size:
        size = now
        found.rows |= rows_made_from(ledger, found.leaves) if found.leaves else {}
        _note_answers(ledger, found, seen)
        for run in runs:
            _follow(ledger, run, found)
    found.leaves |= found.rows.keys()
    for run in runs:
        _only_there(run, found)
        _nothing_under_way(ledger, run, found, text)
    return found


def _holding(ledger: Ledger, text: Needle) -> set[int]:
    """The leaves of which a content holds the text, in one pass over all contents."""
    query = "SELECT id, leaf, body FROM content WHERE erased IS NULL AND id > ? ORDER BY id LIMIT ?"
    unpack, last = zstandard.ZstdDecompressor(), 0
    holding: set[int] = set()
    while rows := ledger.read(query, (last, _PAGE)):
        holding |= {leaf for _, leaf, body in rows if text.in_bytes(unpack.decompress(body))}
        last = rows[-1][0]
    return holding


def _prompts_holding(run: RunFolder, text: Needle) -> set[str]:
    prompts = {row["id"] for row in read_rows(run.prompts) if text.in_value(row)}
    return prompts | {row["id"] for row in read_rows(run.grown) if row["id"] and text.in_text(row["text"])}


def _answers_of(ledger: Ledger, teacher: str) -> set[int]:
    return {
        leaf.index
        for kind in ("exchange", "import")
        for leaf in ledger.leaves(kind)
        if leaf.body.get("teacher", {}).get("model") == teacher
    }


def account_mark(workspace_key: bytes, account: str) -> str:
    """What the ledger holds in place of the account that a prompt of a cascade came from."""
    return hmac_digest(workspace_key, b"account of a cascade: " + account.encode(), "sha256").hex()


def _landed_from(ledger: Ledger, account: str) -> set[tuple[str, int]]:
    """The id of each prompt that came from this account, with the leaf of its answer: by the leaves that were
    written for it, and by the lists of what was taken, where the ledger had an answer before."""
    mark = account_mark(read_workspace_key(ledger.workspace), account)
    found = {
        (leaf.body["deferred"]["event"], leaf.index)
        for leaf in ledger.leaves("import")
        if leaf.body.get("deferred", {}).get("account") == mark
    }
    for leaf in ledger.leaves("transform"):
        if leaf.body.get("stage") == "cascade" and (rows := ledger.contents(leaf.index).get("rows")):
            found |= {(event, answer) for event, answer, whose in orjson.loads(rows) if whose == mark}
    return found


def _made_of(ledger: Ledger, index: int) -> Iterable[int]:
    leaf = ledger.leaf(index)
    return leaf.body.get("exchanges", ()) if leaf.kind == "row" else ()


def _kinds(ledger: Ledger, leaves: set[int]) -> dict[str, int]:
    """How many leaves of each kind still have contents."""
    counted: Counter[str] = Counter()
    for some in _some(leaves):
        counted.update(
            dict(
                ledger.read(
                    "SELECT kind, count(*) FROM leaf WHERE EXISTS (SELECT 1 FROM content"
                    " WHERE content.leaf = leaf.idx AND erased IS NULL)"
                    f" AND idx IN ({some}) GROUP BY kind"
                )
            )
        )
    return dict(counted)


def _follow(ledger: Ledger, run: RunFolder, found: Found) -> None:
    """One step along the chain within a run; what it leads to is added to `found`."""
    prompts, leaves = found.prompts[run.root.name], found.leaves
    for row in read_rows(run.grown, ["id", "leaf", "seeds"]):
        if row["leaf"] in leaves and row["id"] is not None:
            prompts.add(row["id"])
        if any(seed in prompts for seed in row["seeds"] or ()):
            leaves.add(row["leaf"])  # the question quotes its seeds
    for row in read_rows(run.exchanges, ["prompt_id", "leaf"]):
        if row["prompt_id"] in prompts:
            leaves.add(row["leaf"])
    for asked, leaf in ledger.read(
        "SELECT prompt_id, leaf FROM attempt WHERE run = ? AND leaf IS NOT NULL", (run.root.name,)
    ):
        if _prompt_of(asked) in prompts or (_named(asked, leaves) and _is_reading(ledger, leaf)):
            leaves.add(leaf)
    for each in (run, *run.all_further()):
        leaves.update(
            row["reading"]
            for row in read_rows(each.readings, ["row", "reading"])
            if _named(row["row"], leaves)
        )
    gone = {
        row["prompt_id"]
        for row in read_rows(run.predictions, ["prompt_id", "system", "answer"])
        if row["prompt_id"] in prompts
        or (row["system"] == "teacher" and (row["prompt_id"], digest_of(row["answer"])) in found.said)
    }
    for row in read_rows(run.judgements, ["prompt_id", "leaves"]):
        if row["prompt_id"] in gone:
            leaves.update(row["leaves"] or ())


def _named(name: str, leaves: set[int]) -> bool:
    """Whether this name of a row, which is the leaf of its answer, is one of these."""
    return name.isdecimal() and int(name) in leaves


def _is_reading(ledger: Ledger, leaf: int) -> bool:
    return ledger.leaf(leaf).body.get("stage") == "read"


def _prompt_of(asked: str) -> str:
    """The prompt that a question is about: a judge is asked twice about each, a canary is sent again."""
    return _AGAIN.sub("", asked)


def _note_answers(ledger: Ledger, found: Found, seen: set[int]) -> None:
    """Which answers go, by the prompt that they were given to: so predictions hold them."""
    digests: dict[int, set[str]] = {}
    for some in _some(found.leaves - seen):
        query = (
            f"SELECT leaf, body FROM content WHERE name = 'response' AND erased IS NULL AND leaf IN ({some})"
        )
        for leaf, body in ledger.read(query):
            digests[leaf] = set(map(digest_of, _answers(zstandard.decompress(body))))
        for asked, leaf in ledger.read(f"SELECT prompt_id, leaf FROM attempt WHERE leaf IN ({some})"):
            found.said |= {(_prompt_of(asked), digest) for digest in digests.get(leaf, ())}
    found.answers |= set().union(*digests.values())
    seen |= found.leaves


def _answers(response: bytes) -> Iterator[str]:
    """What a stored response says, choice by choice; nothing where it is no completion."""
    try:
        choices = orjson.loads(response)["choices"]
        for choice in choices:
            yield (choice.get("message") or {}).get("content") or choice.get("text") or ""
    except (orjson.JSONDecodeError, LookupError, TypeError, AttributeError):
        return


def _only_there(run: RunFolder, found: Found) -> None:
    """Answers that go and that no other exchange of the run gave: copies of them in predictions go too."""
    gone = set(found.answers)
    for row in read_rows(run.exchanges, ["leaf", "answer"]) if gone else ():
        if row["leaf"] not in found.leaves:
            gone.discard(digest_of(row["answer"]))
    found.alone[run.root.name] = gone


def _nothing_under_way(ledger: Ledger, run: RunFolder, found: Found, text: Needle | None) -> None:
    """Raises UsageError where a batch or a worker holds answers or questions that are concerned."""
    if next(run.shards.glob("*.shard"), None) is not None:
        raise UsageError(
            f"answers of {run.root.name} are not yet in the ledger",
            f"workers left them in {run.shards}",
            "run `stillhouse collect` of its recipe, which merges them, and then this again",
        )
    prompts = found.prompts[run.root.name]
    for batch in open_batches(ledger, run.root.name):
        path = run.batches / f"{batch.shard}.jsonl"
        lines = ledger.read("SELECT prompt_id FROM attempt WHERE batch = ? AND state = 'open'", (batch.id,))
        if any(_prompt_of(asked) in prompts for (asked,) in lines) or (
            text is not None and path.is_file() and text.in_bytes(path.read_bytes())
        ):
            raise UsageError(
                f"a batch of {run.root.name} is under way with what is to be erased",
                f"its answers would bring it back: {batch.name or path.name}",
                "wait for it, or cancel it by `stillhouse collect RECIPE --cancel-batches`; then this again",
            )


def digest_of(answer: str | None) -> str:
    return hashlib.sha256((answer or "").strip().encode("utf-8", "surrogatepass")).hexdigest()[:_DIGITS]


def read_rows(path: Path, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
    """The rows of a file, none where it is not there; a column that it lacks is null."""
    if not path.is_file():
        return
    import pyarrow.parquet as pq

    with storage("read", path), pq.ParquetFile(path) as file:
        there = None if columns is None else [name for name in columns if name in file.schema_arrow.names]
        lacking = dict.fromkeys(columns or ())
        for batch in file.iter_batches(ROWS, columns=there):
            yield from ({**lacking, **row} for row in batch.to_pylist())


def _some(leaves: Iterable[int]) -> Iterator[str]:
    """Leaves as SQL lists them, a page at a time."""
    ordered = sorted(leaves)
    for start in range(0, len(ordered), _PAGE):
        yield ",".join(map(str, ordered[start : start + _PAGE]))
