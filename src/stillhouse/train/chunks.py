"""Learning from a teacher of another tokenizer: how likely it held each chunk of the answers.

Each model reads a prompt by its own template and the answer in its own tokens. Only the answer's bytes are
matched (`models.chunks`), and what the loss makes of it stands in `losses.chunks`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
import transformers

from stillhouse.ledger.targets import Binding, chunk_binding, chunk_row, chunks_of
from stillhouse.ledger.targets import Targets as PackedTargets
from stillhouse.models.chunks import Spoken, borders, likelihoods
from stillhouse.models.local import LocalModel
from stillhouse.models.reading import Reader, end_id, row_ids
from stillhouse.records import Message
from stillhouse.train.capture import by_length, no_probabilities
from stillhouse.train.lessons import Lesson, Place, Shards, of_shards, place_of, read, readers_of
from stillhouse.train.losses import ChunkTargets, Objective
from stillhouse.train.rows import Batch, Row, collate, row_id, samples

TEMPERATURE = 100.0  # of the paper; a chunk of 5 nats has 97.5 % of the gradient that it tends to


def told(folder: Path, sources: Sequence[Shards], student: Reader, hard: float) -> Lesson:
    """The chunks in these shards, which must be of the student's tokenizer and chat template; `hard` is the
    share of plain cross-entropy. Rows have targets where the teacher's likelihood of some chunk is known.

    Raises LedgerError for shards that are missing, damaged, or of another tokenizer or template.
    """
    found: dict[str, Place] = {}
    readers = readers_of(folder, sources, student, chunks=True)
    edges = torch.tensor(borders(student.vocabulary(), [end_id(student)]))

    def has(row: Row) -> bool:
        place = place_of(row, readers)
        if place is not None and chunks_of(read([place]), [len(row.ids) - row.start]).known:
            found[row.id] = place
        return row.id in found

    def targets(rows: Sequence[Row], batch: Batch) -> ChunkTargets:
        packed = read([found[row.id] for row in rows])
        parts = chunks_of(packed, [len(row.ids) - row.start for row in rows])
        chunk_N, before_N, held_C = (torch.from_numpy(part) for part in parts)
        return ChunkTargets(chunk_N, before_N, held_C, edges).to(batch.ids_BT.device)

    objective = Objective(temperature=TEMPERATURE, hard=hard)
    return of_shards(objective, len(student.vocabulary().raw), has, targets, readers)


def bound(teacher: LocalModel, name: str, revision: str, student: Reader) -> Binding:
    """How shards are bound that hold what this teacher says of the student's rows. `revision` is the digest
    of the teacher's folder, and so of its tokenizer and template too."""
    engine = f"transformers {transformers.__version__}, torch {torch.__version__}, {teacher.model.dtype}"
    vocabulary = student.vocabulary()
    return chunk_binding(name, revision, vocabulary.digest, student.template, len(vocabulary.raw), engine)


def reading(
    teacher: LocalModel, student: Reader, path: Path, rows: Sequence[Row], batch_tokens: int
) -> Callable[[Sequence[Row]], Iterator[tuple[Row, PackedTargets]]]:
    """How `capture` has rows read: the teacher reads the samples at `path` that they were made of, once.

    A row whose answer is another text in the teacher's tokens, or is too long for it, or whose conversation
    its template refuses, is written without targets.
    """
    vocabulary = student.vocabulary()
    texts = _texts(path, {row.id for row in rows})

    def heard(some: Sequence[Row]) -> Iterator[tuple[Row, PackedTargets]]:
        said = _said(teacher, [texts[row.id] for row in some], batch_tokens)
        for row, (text, end) in zip(some, said, strict=True):
            ids_N = row.ids[row.start :]
            yield row, chunk_row(ids_N, likelihoods(ids_N.tolist(), vocabulary, text, end))

    return heard


Text = tuple[list[Message], str]  # a conversation and the answer


def _texts(path: Path, wanted: set[str]) -> dict[str, Text]:
    found: dict[str, Text] = {}
    for sample in samples(path):
        if (name := row_id(sample)) in wanted:
            messages = [Message(m["role"], m["content"]) for m in sample["messages"]]
            found.setdefault(name, (messages, sample["completion"]))
    return found


def _said(
    teacher: LocalModel, texts: Sequence[Text], batch_tokens: int
) -> Iterator[tuple[list[Spoken], Spoken]]:
    """Each answer in the teacher's tokens with their log-probabilities, and that of ending there; no tokens
    where it cannot read it. Ids that only pad the teacher's head are left out of its distribution, and it
    ends by whichever of its stop tokens, so their probabilities are added."""
    reader, vocabulary = teacher.reader, teacher.reader.vocabulary()
    end, stops = end_id(reader), torch.tensor(sorted(reader.stop_ids), device=teacher.model.device)
    specials = set(vocabulary.specials.values())
    edges = torch.tensor(borders(vocabulary, sorted(reader.stop_ids)), device=stops.device)
    made = [row_ids(reader, messages, answer, end) for messages, answer in texts]
    own = {
        at: Row(*each, "") for at, each in enumerate(made)
        if not isinstance(each, str) and len(each[0]) <= (teacher.context or len(each[0]))
    }  # fmt: skip
    numbers, found = list(own), dict[int, tuple[list[Spoken], Spoken]]()
    for chosen in by_length([len(row.ids) for row in own.values()], batch_tokens):
        rows = [own[numbers[at]] for at in chosen]
        batch = collate(rows)
        with torch.no_grad():
            scores_BTV = teacher.model(input_ids=batch.ids_BT.to(stops.device), use_cache=False).logits
        for number, (at, row) in enumerate(zip(chosen, rows, strict=True)):
            scores_NV = scores_BTV[number, row.start - 1 : len(row.ids) - 1, : len(vocabulary.raw)]
            if not bool(torch.isfinite(scores_NV).all()):
                raise no_probabilities("one of the answers")
            logp_NV = torch.log_softmax(scores_NV.float(), -1)
            ids, edge_N = row.ids[row.start : -1].tolist(), logp_NV[:, edges].logsumexp(-1).tolist()
            logp = logp_NV[range(len(ids)), ids].tolist()
            text = [
                Spoken(vocabulary.raw[each], None if each in specials else own, edge)
                for each, own, edge in zip(ids, logp, edge_N, strict=False)
            ]
            found[numbers[at]] = text, Spoken(b"", float(logp_NV[-1, stops].logsumexp(-1)), edge_N[-1])
    for at in range(len(texts)):
        yield found.get(at, ([], Spoken(b"", None)))
