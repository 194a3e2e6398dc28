"""The targets of a run: which shards hold what its teachers held likely, and what could not be had.

A row of a shard is named by the leaf of the exchange that its answer came from, which is what samples name,
and what is erased. `targets.json` in the run's folder, written last, says which shards are the run's.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from stillhouse.ask import Teacher
from stillhouse.collect.targets import TargetTally, TaughtRow, total, write_shards
from stillhouse.errors import LedgerError, UsageError
from stillhouse.ledger import Ledger, StoredExchange
from stillhouse.ledger.targets import SUFFIX, Binding, chunk_binding, open_shard, sweep
from stillhouse.models.reading import Reader, end_id, row_ids
from stillhouse.models.vocabulary import Vocabulary
from stillhouse.records import Message, Progress, Watch, unwatched
from stillhouse.workspace import RunFolder, write_json

ROWS = 1024  # answers read at once
_COLUMNS = ["key", "leaf", "messages", "answer", "tools", "tool_calls", "teacher"]


@dataclass(frozen=True, slots=True)
class Taught:
    """What one teacher's answers came to: a tally for each shard, and how many answers are no row of the
    student's, by reason."""

    binding: Binding
    shards: tuple[TargetTally, ...] = ()
    left_out: Mapping[str, int] = field(default_factory=dict)

    @property
    def tally(self) -> TargetTally:
        """`rows` and `reasons` count what was left out as well, so that they are those of all answers."""
        whole = total(self.shards)
        whole.rows += sum(self.left_out.values())
        whole.reasons.update(self.left_out)
        return whole


def keep_targets(
    run: RunFolder,
    teachers: Sequence[Teacher],
    vocabularies: Sequence[Vocabulary | None],
    student: Reader,
    asked: int,
    ledger: Ledger,
    watch: Watch = unwatched,
    chunks: bool = False,
) -> list[Taught]:
    """Write the targets of the run's exchanges into the workspace's shards, and which they are into the run.

    Shards of the run that are there already, bound alike and of answers that the run still has, stay as they
    are; only answers that are in none of them are read. `asked` is the number of top_logprobs that was asked
    for, and `vocabularies` those of the teachers, None where a teacher's is not known. With `chunks` the
    targets are how likely chunks of the answers were, whatever the teachers' tokenizers.

    Raises LedgerError for a shard that is damaged, ModelError for a student's tokenizer that has no bytes,
    UsageError for one without an end, and StorageError when the disk is full.
    """
    folder, vocabulary, end = ledger.workspace.targets, student.vocabulary(), end_id(student)
    sweep(folder)
    wanted = np.unique(pq.read_table(run.exchanges, columns=["leaf"])["leaf"].to_numpy())
    before = read_taught(run) or []
    done: list[Taught] = []
    asked_of = [(teacher.model, teacher.revision, teacher.endpoint) for teacher in teachers]
    for who, teacher in dict(zip(asked_of, vocabularies, strict=True)).items():
        model, revision, endpoint = who
        size, template = len(vocabulary.raw), student.template
        binding = Binding(model, revision, vocabulary.digest, template, size, asked + 1, engine=endpoint)
        if chunks:
            binding = chunk_binding(model, revision, vocabulary.digest, template, size, endpoint)
        kept = _kept(before, binding, folder, wanted)
        skip = {leaf for _, leaves in kept for leaf in leaves}
        left_out: Counter[str] = Counter()
        rows = _rows(run, who, student, end, skip, left_out, ledger)
        new = list(write_shards(_watched(rows, watch), folder, binding, vocabulary, asked, teacher))
        done.append(Taught(binding, (*(tally for tally, _ in kept), *new), dict(left_out)))
    if done != before:
        write_json(run.targets, {"teachers": [_record(one) for one in done]})
    return done


def read_taught(run: RunFolder) -> list[Taught] | None:
    """What `keep_targets` wrote down; None where it never came to its end.

    Raises LedgerError for a file that is not what it wrote.
    """
    try:
        said = json.loads(run.targets.read_bytes())["teachers"]
        return [
            Taught(Binding(**one["binding"]), tuple(map(_tally, one["shards"])), one["left_out"])
            for one in said
        ]
    except FileNotFoundError:
        return None
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise LedgerError(
            f"{run.targets} is damaged",
            f"it does not say which shards hold the targets of the run ({type(error).__name__}: {error})",
            "delete it and collect again: the shards are written anew from the ledger, and nobody is asked",
        ) from None


def need_taught(run: RunFolder) -> list[Taught]:
    """Raises UsageError for a run without targets."""
    found = read_taught(run)
    if found is None:
        raise UsageError(
            f"the run {run.root.name} has no targets",
            "its recipe does not ask for probabilities, or its collecting has not ended",
            "set `collect.top_logprobs` in the recipe, then `stillhouse collect RECIPE`",
        )
    return found


def _record(one: Taught) -> dict[str, Any]:
    shards = [tally.record() for tally in one.shards]
    return {"binding": asdict(one.binding), "shards": shards, "left_out": one.left_out}


def _tally(said: dict[str, Any]) -> TargetTally:
    return TargetTally(**{**said, "reasons": Counter(said["reasons"]), "counts": Counter(said["counts"])})


def _kept(
    before: Sequence[Taught], binding: Binding, folder: Path, wanted: np.ndarray[Any, Any]
) -> list[tuple[TargetTally, Collection[int]]]:
    """The shards of an earlier call that can stay, with the leaves that each has."""
    kept = []
    for tally in (tally for one in before if one.binding == binding for tally in one.shards):
        (digest,) = tally.shards
        if (path := folder / (digest + SUFFIX)).exists():
            leaves = np.array([int(name) for name in open_shard(path).sample_ids])
            if np.isin(leaves, wanted).all():
                kept.append((tally, leaves.tolist()))
    return kept


def _rows(
    run: RunFolder,
    who: tuple[str, str, str],
    student: Reader,
    end: int,
    skip: Collection[int],
    left_out: Counter[str],
    ledger: Ledger,
) -> Iterator[TaughtRow]:
    """The student's rows of one teacher's answers, each answer once, but for the leaves in `skip`."""
    seen = set(skip)
    for batch in pq.ParquetFile(run.exchanges).iter_batches(ROWS, columns=_COLUMNS):
        rows = [row for row in batch.to_pylist() if row["teacher"] == who[0] and row["leaf"] not in seen]
        found = {stored.leaf: stored for stored in ledger.exchanges({row["key"] for row in rows})}
        for row in rows:
            stored = found.get(row["leaf"])
            if row["leaf"] in seen or (stored is not None and _who(stored) != who):
                continue
            seen.add(row["leaf"])
            made = _row(row, student, end)
            if isinstance(made, str):
                left_out[made] += 1
            elif stored is None or stored.response is None:
                left_out["no answer in the ledger any more"] += 1
            else:
                yield TaughtRow(str(row["leaf"]), stored.response, *made)


def _who(stored: StoredExchange) -> tuple[str, str, str]:
    """Model, revision and endpoint of whoever answered."""
    teacher = stored.body["teacher"]
    return teacher["model"], teacher["revision"], teacher["endpoint"]


def _row(row: dict[str, Any], student: Reader, end: int) -> tuple[np.ndarray[Any, Any], int] | str:
    if row["tools"] or row["tool_calls"]:  # no student is shown these yet, so its ids are not known
        return "tools"
    messages = [Message(m["role"], m["content"]) for m in row["messages"]]
    return row_ids(student, messages, row["answer"], end)


def _watched(rows: Iterator[TaughtRow], watch: Watch) -> Iterator[TaughtRow]:
    number = 0
    for number, row in enumerate(rows, 1):
        yield row
        if number % ROWS == 0:
            watch(Progress("targets", number, None, "rows"))
    if number:
        watch(Progress("targets", number, number, "rows"))
