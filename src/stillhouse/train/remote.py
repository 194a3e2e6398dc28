"""A teacher at an endpoint: it reads rows of the student's token ids, and what it says becomes targets.

Token ids go out and token ids come back, so that teacher and student must have one tokenizer. The endpoint
cannot show its own. The recipe names it, and every answer is held against it (see `models.scores`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import parquet

from stillhouse.ask.scores import ALL, Readings, Said, Text
from stillhouse.errors import EndpointError, UsageError, storage
from stillhouse.ledger.targets import Binding, log_tail, whole_targets
from stillhouse.ledger.targets import Targets as PackedTargets
from stillhouse.models import preflight
from stillhouse.models.reading import Reader, load_tokenizer
from stillhouse.models.scores import Scores, read_scores
from stillhouse.models.vocabulary import Vocabulary
from stillhouse.recipe import Distil, Measure
from stillhouse.records import Watch
from stillhouse.train.lessons import Lesson, joined, objective_of
from stillhouse.train.losses import Targets, unpacked, whole_distributions
from stillhouse.train.rows import Batch, Row

_MASS_ERROR = 1e-3  # what the ids that only pad a head may hold


def check_tokenizer(source: str | None, student: Reader) -> None:
    """Raises UsageError unless a teacher with this tokenizer reads the student's ids as the student does."""
    assert source is not None, "the recipe asks for it"
    try:
        preflight.check(student, Reader(load_tokenizer(source, "train.distil.tokenizer"), frozenset()))
    except UsageError as error:
        raise UsageError(
            "the teacher at the endpoint cannot read the student's rows",
            error.why,
            'start the student from the teacher\'s family, or set train.distil.targets = "answers" with '
            "collect.top_logprobs, which are mapped by bytes",
        ) from error


def binding_of(remote: Readings, student: Reader, settings: Distil) -> Binding:
    """How shards are bound that hold what this teacher says of the student's rows."""
    vocabulary, teacher = student.vocabulary(), remote.teacher
    head = 0 if settings.keep == "all" else settings.head + 1  # a token itself may come beside the likeliest
    return Binding(
        teacher.model,
        teacher.revision,
        vocabulary.digest,
        student.template,
        len(vocabulary.raw),
        head,
        engine=teacher.endpoint,
    )


def have_read(
    remote: Readings, rows: Sequence[Row], settings: Distil, record: Path, watch: Watch
) -> Counter[str]:
    """Have all rows read that the ledger has no reading of, and write into `record` which leaf holds whose,
    also where asking ends early.

    Those that could not be read are counted by reason. Raises what `ask.ask` raises.
    """
    told, texts = _told(settings), [_text(row) for row in rows]
    new = True
    try:
        tally = remote.ask(texts, told, watch)
        new = tally.answered > 0
    finally:
        if new or not record.is_file():
            _record(remote, texts, told, record)
    return Counter(question.reason for question in tally.failed)


def _record(remote: Readings, texts: Sequence[Text], told: int, record: Path) -> None:
    found = [(said.text.name, said.leaf) for said in remote.said(texts, told) if said.leaf is not None]
    schema = pa.schema([("row", pa.string()), ("reading", pa.int64())])
    columns = [pa.array([each[at] for each in found], kind.type) for at, kind in enumerate(schema)]
    with storage("write", record):
        parquet.write_table(pa.Table.from_arrays(columns, schema=schema), record)


def not_recalled(
    remote: Readings, rows: Sequence[Row], settings: Distil, unread: Counter[str]
) -> Sequence[Row]:
    """The rows whose reading may be used; the others are counted in `unread`."""
    if not remote.recalled:
        return rows
    said = remote.said([_text(row) for row in rows], _told(settings))
    kept = [row for row, one in zip(rows, said, strict=True) if not one.recalled]
    if len(kept) < len(rows):
        unread["recalled"] += len(rows) - len(kept)
    return kept


def read_there(
    remote: Readings,
    rows: Sequence[Row],
    student: Reader,
    settings: Distil,
    unread: Counter[str],
) -> Iterator[tuple[Row, PackedTargets]]:
    """Rows of which something can be learned, each with its targets, in the order in which they were given;
    others that were read are counted in `unread` by reason. All answers are in the ledger. Raises ModelError
    where the teacher reads other tokens than the student."""
    vocabulary, binding = student.vocabulary(), binding_of(remote, student, settings)
    for row, said in zip(rows, remote.said([_text(row) for row in rows], _told(settings)), strict=True):
        targets = _targets(row, said, vocabulary, binding)
        if not isinstance(targets, str):
            yield row, targets
        elif said.response is not None:
            unread[targets] += 1


def read_along(remote: Readings, student: Reader, settings: Distil, measure: Measure) -> Lesson:
    """The teacher reads rows as they come: those that the student writes itself.

    `targets` raises what `ask.ask` raises, and EndpointError for a row that the teacher cannot read: to
    leave it out would let chance decide what is learned.
    """
    vocabulary, binding, told = student.vocabulary(), binding_of(remote, student, settings), _told(settings)

    def targets(rows: Sequence[Row], batch: Batch) -> Targets:
        texts, found = [_text(row) for row in rows], []
        tally = remote.ask(texts, told)
        if tally.failed:
            last = tally.failed[-1]
            raise _unread(len(tally.failed), f"{last.reason}: {last.detail or 'nothing was said'}")
        for row, said in zip(rows, remote.said(texts, told), strict=True):
            made = _targets(row, said, vocabulary, binding)
            if isinstance(made, str):
                raise _unread(1, made)
            found.append(made)
        packed = joined(found)
        learnt = whole_distributions(packed) if binding.whole else unpacked(packed, sampled=False)
        return learnt.to(batch.ids_BT.device)

    teacher = remote.teacher
    name = f"read at {teacher.endpoint} by {teacher.model} {teacher.revision}, {told} told"
    return Lesson(name, objective_of(measure), len(vocabulary.raw), lambda row: True, targets)


def _unread(count: int, why: str) -> EndpointError:
    return EndpointError(
        f"the teacher did not read {count} of the student's own texts",
        why,
        "see to the server, or lower `train.max_length` where it takes no texts as long; then run the same "
        "command again: what was read is in the ledger, and the last checkpoint is intact",
    )


def _text(row: Row) -> Text:
    return Text(row.id, row.ids)


def _told(settings: Distil) -> int:
    return ALL if settings.keep == "all" else settings.head


def _targets(row: Row, said: Said, student: Vocabulary, binding: Binding) -> PackedTargets | str:
    """The targets of a row's trained positions, or why there are none."""
    if said.recalled:
        return f"recalled: leaf {said.leaf} rests on a decision that was recalled, and is not asked again"
    if said.response is None:
        return "not read"
    scores = read_scores(said.response, row.ids.tolist(), row.start, student)
    if isinstance(scores, str):
        return scores
    return _whole(scores, binding.vocabulary) if binding.whole else _likeliest(scores, binding)


def _whole(scores: Scores, vocabulary: int) -> PackedTargets | str:
    """Made 1 again without what the head's padding held, as a teacher that is here is read."""
    logprobs_NV, place_E = np.full((len(scores.offsets_N1) - 1, vocabulary), -np.inf), _places(scores)
    logprobs_NV[place_E, scores.ids_E] = scores.logprobs_E
    mass_N = np.exp(logprobs_NV).sum(1)
    if (np.abs(mass_N - 1.0) > _MASS_ERROR).any():
        return "not the whole distribution"
    logprobs_NV -= np.log(mass_N)[:, None]
    return whole_targets(np.minimum(logprobs_NV, 0.0).astype(np.float32))


def _likeliest(scores: Scores, binding: Binding) -> PackedTargets:
    """At most `head` entries of each position; what they lack of a mass of 1 is the tail."""
    place_E = _places(scores)
    kept_E = np.arange(len(place_E)) - scores.offsets_N1[place_E] < binding.head
    place_E, logprobs_E = place_E[kept_E], scores.logprobs_E[kept_E]
    sizes_N = np.bincount(place_E, minlength=len(scores.offsets_N1) - 1)
    mass_N = np.bincount(place_E, np.exp(logprobs_E), len(sizes_N))
    return PackedTargets(
        np.concatenate([[0], np.cumsum(sizes_N)]),
        scores.ids_E[kept_E].astype(np.int32),
        logprobs_E.astype(np.float32),
        log_tail(mass_N, sizes_N, binding.vocabulary),
    )


def _places(scores: Scores) -> NDArray[np.int64]:
    """The position of each entry."""
    sizes_N = np.diff(scores.offsets_N1)
    return np.repeat(np.arange(len(sizes_N)), sizes_N)
