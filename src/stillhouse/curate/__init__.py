"""curate: from exchanges to samples. Every row is kept, or dropped with a reason; in = kept + dropped."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stillhouse.errors import storage
from stillhouse.ledger import Ledger, canonical
from stillhouse.recipe import Curate, Recipe
from stillhouse.records import Message, Progress, Sample, Verdict, Watch, unwatched
from stillhouse.text import conversation
from stillhouse.workspace import RunFolder

MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string()), ("extra", pa.string())]))
SAMPLES = pa.schema(
    [
        ("id", pa.string()),
        ("messages", MESSAGES),
        ("completion", pa.string()),
        ("family", pa.string()),
        ("group", pa.string()),
        ("teacher", pa.string()),
        ("leaves", pa.list_(pa.int64())),
    ]
)
DROPPED = SAMPLES.append(pa.field("reason", pa.string()))
ROWS = 4096  # rows read, written and logged at once

KEEP = Verdict("keep")

# Only an answer that opens with one of these declines; "I am sorry that your lamp broke" does not.
_DECLINES = re.compile(
    r"^\W*(?:i(?:'m| am) (?:very |really |truly )?sorry,? (?:but )?(?:i|as an ai)\b.{0,40}?\b"
    r"(?:can(?:'t|not|\snot)|unable|won't|not able)"
    r"|i (?:can(?:'t|not)|am (?:unable|not able) to|won't) (?:\w+ ){0,2}?"
    r"(?:help|assist|provide|comply|answer|fulfil|discuss|generate|create|write|do that)"
    r"|as an ai(?: language)? (?:model|assistant),? i)",
    re.IGNORECASE | re.DOTALL,
)

Row = dict[str, Any]
Filter = Callable[[Row], Verdict]


@dataclass(frozen=True, slots=True)
class Curated:
    """Counts that balance: `rows` = `kept` + the sum of `reasons`. `digest` is over the kept rows."""

    rows: int
    kept: int
    reasons: dict[str, int]
    families: dict[str, int]
    digest: str
    transform: int


def curate(run: RunFolder, recipe: Recipe, ledger: Ledger, watch: Watch = unwatched) -> Curated:
    """Judge every exchange of the run, write `samples.parquet` and `dropped.parquet`, log each kept row.

    The ledger gets one `transform` leaf (what was done, by which settings) and one `row` leaf a sample,
    which names the exchange leaves that the sample was made from.
    """
    filters = chosen_filters(recipe.curate)
    total = pq.read_metadata(run.exchanges).num_rows
    reasons: Counter[str] = Counter()
    families: Counter[str] = Counter()
    kept, seen, digest = 0, 0, hashlib.sha256()
    transform = ledger.append(
        "transform",
        {"run": run.root.name, "stage": "curate", "settings": recipe.curate.model_dump(), "rows": total},
    )
    with (
        storage("write", run.samples),
        pq.ParquetWriter(run.samples, SAMPLES) as samples,
        pq.ParquetWriter(run.dropped, DROPPED) as dropped,
    ):
        for batch in _exchanges(run):
            good, bad = [], []
            for row in batch:
                verdict = judge(row, filters)
                sample = _sample(row)
                if verdict.ruling == "keep":
                    good.append(sample)
                    families[row["family"]] += 1
                    digest.update(canonical(sample))
                else:
                    bad.append({**sample, "reason": verdict.reason})
                    reasons[verdict.reason] += 1
            samples.write_batch(pa.RecordBatch.from_pylist(good, schema=SAMPLES))
            dropped.write_batch(pa.RecordBatch.from_pylist(bad, schema=DROPPED))
            ledger.append_many([_row_leaf(sample, run, transform) for sample in good])
            kept, seen = kept + len(good), seen + len(batch)
            watch(Progress("curate", seen, total, "rows", {"kept": kept, **reasons}))
    return Curated(total, kept, dict(reasons), dict(families), digest.hexdigest(), transform)


def chosen_filters(settings: Curate) -> list[Filter]:
    """In the order in which they are asked; the first that drops a row gives its reason."""
    filters: list[Filter] = [without_tools, not_empty]
    if settings.truncated:
        filters.append(not_truncated)
    if settings.refusals:
        filters.append(not_refused)
    if settings.duplicates:
        filters.append(first_of_its_kind())
    return filters


def judge(row: Row, filters: list[Filter]) -> Verdict:
    return next((verdict for f in filters if (verdict := f(row)).ruling != "keep"), KEEP)


def without_tools(row: Row) -> Verdict:
    """Training shows a student neither the tools of a prompt nor the calls of an answer yet: a row that has
    them is dropped, for half of it would teach something else."""
    return Verdict("drop", "tools") if row.get("tools") or row.get("tool_calls") else KEEP


def not_empty(row: Row) -> Verdict:
    """An empty answer is dropped whatever the settings; where the teacher said that it declined, as such."""
    return KEEP if row["answer"].strip() else Verdict("drop", "refusal" if row["refusal"] else "empty")


def not_truncated(row: Row) -> Verdict:
    return Verdict("drop", "truncated") if row["finish_reason"] == "length" else KEEP


def not_refused(row: Row) -> Verdict:
    declined = row["refusal"] or row["finish_reason"] == "content_filter" or _DECLINES.match(row["answer"])
    return Verdict("drop", "refusal") if declined else KEEP


def first_of_its_kind() -> Filter:
    """Drops a row whose normalised prompt and answer were seen before; 16 bytes are kept of each."""
    seen: set[bytes] = set()

    def unseen(row: Row) -> Verdict:
        turns = [(m["role"], m["content"]) for m in row["messages"]]
        text = conversation([*turns, ("assistant", row["answer"])])
        mark = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        if mark in seen:
            return Verdict("drop", "duplicate")
        seen.add(mark)
        return KEEP

    return unseen


def _exchanges(run: RunFolder) -> Iterator[list[Row]]:
    for batch in pq.ParquetFile(run.exchanges).iter_batches(batch_size=ROWS):
        yield batch.to_pylist()


def _sample(row: Row) -> Row:
    """The columns of `Sample`, plain."""
    sample = Sample(
        id=f"{row['prompt_id']}#{row['sample_index']}",
        messages=tuple(Message(m["role"], m["content"], m["extra"] or "") for m in row["messages"]),
        completion=row["answer"],
        family=row["family"],
        group=row["group"],
        teacher=row["teacher"],
        leaves=(row["leaf"],),
    )
    return asdict(sample)


def _row_leaf(sample: Row, run: RunFolder, transform: int) -> tuple[Any, dict[str, Any], dict[str, bytes]]:
    body = {"run": run.root.name, "transform": transform, "exchanges": sample["leaves"]}
    return "row", body, {"row": canonical(sample)}
