"""Packed targets beside what they come from and what they might lie in: bytes and time for each token.

    .venv/bin/python benchmarks/targets.py [--quick] [--json FILE]

A real public model (stories260K, 512 tokens) continues the openings of stories over HTTP and names 20 likely
tokens beside each one. These answers are read as packed shards, as the JSON that was received, and as a
Parquet file with list columns. A vocabulary of 128,256 has no such model here: there the ids are drawn at
random, which costs no format more than real ones would but for Parquet's compression. Time is processor time
of one thread, over batches of 32 rows until the arrays of a loss are there; the best of several passes.
What students learn from them: see targets_learning.py, whose rows are among these.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from rows import DATA, Row, arguments, header, need, show
from targets_learning import learning

from stillhouse.collect.targets import TargetTally, TaughtRow, write_targets
from stillhouse.ledger.targets import Binding, ShardWriter, TargetReader, Targets
from stillhouse.models.endpoint import Endpoint, Reply
from stillhouse.models.serve import background
from stillhouse.models.vocabulary import Vocabulary, read_vocabulary

T = TypeVar("T")

SEED = 11
ASKED = 20
LENGTH = 120  # tokens of an answer
BATCH = 32  # rows
VOCABULARY = 128_256
DRAWS, UNIQUE = 50, 12  # what "Sparse Logit Sampling" reports for a peaked teacher
TARGET_BYTES = 36.0


@dataclass(frozen=True, slots=True)
class Sample:
    """A row and its targets: `sample_id` and `ids` are its address."""

    sample_id: str
    ids: NDArray[np.int32]
    targets: Targets


def main() -> None:
    options = arguments(__doc__ or "")
    passes = 3 if options.quick else 7
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        rows = real(folder, 48 if options.quick else 400, passes)
        rows += large(folder, 200 if options.quick else 2000, passes)
    rows += learning(options.quick)
    packages = ["stillhouse", "numpy", "orjson", "pyarrow", "torch", "transformers"]
    show(header(SEED, packages), rows, options.json)


# ---------------------------------------------------------------- real answers


def real(folder: Path, count: int, passes: int) -> list[Row]:
    model = need(DATA / "models" / "stories260K")
    vocabulary = read_vocabulary((model / "tokenizer.json").read_bytes())
    answers = [raw for raw in asyncio.run(ask(model, openings(count), folder)) if whole(raw, vocabulary)]
    taught = [
        TaughtRow(f"s{n}", raw, np.array([1, *ids_of(raw, vocabulary)], dtype=np.int32), 1)
        for n, raw in enumerate(answers)
    ]
    binding = Binding("stories260K", "", vocabulary.digest, "", len(vocabulary.raw), ASKED + 1)

    def write() -> TargetTally:
        return write_targets(taught, folder / "real", binding, vocabulary, ASKED, vocabulary)

    writing, tally = timed(write, 1)
    reader = TargetReader(folder / "real", tally.shards, binding)
    places = [reader.locate(row.sample_id, row.ids, len(row.ids) - 1) for row in taught]
    samples = [
        Sample(row.sample_id, row.ids, reader.read([place]))
        for row, place in zip(taught, places, strict=True)
    ]
    table = to_parquet(samples, folder / "real.parquet")
    tokens = tally.positions
    packed = read_packed(reader, places, passes) / tokens
    received = timed(lambda: [from_json(raw, vocabulary) for raw in answers], passes)[0] / tokens
    listed = timed(lambda: read_parquet(table), passes)[0] / tokens
    json_bytes, size = sum(map(len, answers)) / tokens, tally.bytes_per_token
    print(f"stories260K: {tally.rows} of {count} answers, {tokens} tokens, {tally.coverage:.1%} with targets")
    return [
        against("512 tokens, top 20: size", size, "bytes/token", "JSON as received", json_bytes),
        against(
            "512 tokens, top 20: size", size, "bytes/token", "Parquet lists", table.stat().st_size / tokens
        ),
        against("512 tokens, top 20: read", packed * 1e6, "us/token", "JSON as received", received * 1e6),
        against("512 tokens, top 20: read", packed * 1e6, "us/token", "Parquet lists", listed * 1e6),
        Row("512 tokens, top 20: from answers to a shard", writing / tokens * 1e6, "us/token"),
    ]


def openings(count: int) -> list[str]:
    text = need(DATA / "text" / "tinystories_sample_2MB.txt").read_text(errors="ignore")
    return [part.strip()[:60] for part in text.split("<|endoftext|>") if len(part) > 60][:count]


async def ask(model: Path, texts: Sequence[str], folder: Path) -> list[bytes]:
    def body(number: int, text: str) -> dict[str, object]:
        message = {"role": "user", "content": text}
        said = {"model": model.name, "messages": [message], "seed": number, "max_tokens": LENGTH}
        return said | {"logprobs": True, "top_logprobs": ASKED}

    with background(str(model), folder / "server.log") as url:
        async with Endpoint(url) as endpoint:
            asked = (endpoint.chat(orjson.dumps(body(n, text)), 300.0) for n, text in enumerate(texts))
            replies = await asyncio.gather(*asked)
    return [reply.raw for reply in replies if isinstance(reply, Reply)]


def whole(raw: bytes, vocabulary: Vocabulary) -> bool:
    """Not where the model wrote a special token, which the text lacks: such an answer gets no targets."""
    content = orjson.loads(raw)["choices"][0]["logprobs"]["content"]
    return not any(bytes(entry["bytes"]) in vocabulary.specials for entry in content)


def ids_of(raw: bytes, vocabulary: Vocabulary) -> list[int]:
    content = orjson.loads(raw)["choices"][0]["logprobs"]["content"]
    return [vocabulary.ids[bytes(entry["bytes"])] for entry in content]


def from_json(raw: bytes, vocabulary: Vocabulary) -> Targets:
    """The shortest way from an answer to the arrays of a loss, without any of the rules."""
    ids, logprobs, sizes, tails = [], [], [], []
    for entry in orjson.loads(raw)["choices"][0]["logprobs"]["content"]:
        found = {
            at: rival["logprob"]
            for rival in entry["top_logprobs"]
            if (at := vocabulary.ids.get(bytes(rival["bytes"]))) is not None
        }
        ids += found.keys()
        logprobs += found.values()
        sizes.append(len(found))
    weights = np.array(logprobs)
    tails = 1.0 - np.add.reduceat(np.exp(weights), np.cumsum(sizes) - sizes)
    return Targets(
        np.concatenate([[0], np.cumsum(sizes)]),
        np.array(ids, dtype=np.int32),
        weights.astype(np.float32),
        np.log(np.maximum(tails, 1e-30)).astype(np.float32),
    )


# ---------------------------------------------------------------- a large vocabulary


def large(folder: Path, count: int, passes: int) -> list[Row]:
    rows = []
    for name, head, draws, entries in (("top 8 and tail", 8, 0, 8), ("12 ids of 50 draws", 0, DRAWS, UNIQUE)):
        binding = Binding("drawn", "", "0" * 64, "", VOCABULARY, head, draws)
        rng = np.random.default_rng(SEED)
        samples = [drawn(rng, f"s{n}", int(rng.integers(100, 300)), entries, draws) for n in range(count)]
        with ShardWriter(folder / f"large{head}", binding) as writer:
            for sample in samples:
                writer.add(sample.sample_id, sample.ids, sample.targets)
            sealed = writer.seal()
        reader = TargetReader(sealed.parent, [sealed.stem], binding)
        places = [reader.locate(s.sample_id, s.ids, len(s.targets.log_tail_N)) for s in samples]
        table = to_parquet(samples, folder / f"large{head}.parquet")
        tokens, what = reader.positions, f"{VOCABULARY:,} tokens, {name}"
        packed = read_packed(reader, places, passes) / tokens
        listed = timed(lambda table=table: read_parquet(table), passes)[0] / tokens
        in_lists, size = table.stat().st_size / tokens, reader.bytes_per_token
        rows += [
            against(f"{what}: size", size, "bytes/token", "Parquet lists", in_lists, TARGET_BYTES),
            against(f"{what}: read", packed * 1e6, "us/token", "Parquet lists", listed * 1e6),
            Row(f"{what}: read", 1 / packed, "tokens/s"),
        ]
    return rows


def drawn(rng: np.random.Generator, sample_id: str, positions: int, entries: int, draws: int) -> Sample:
    """Random targets of `entries` ids a position: counts of draws, or probabilities with a tail."""
    if draws:
        weights = (rng.multinomial(draws - entries, [1 / entries] * entries, positions) + 1) / draws
        tail = np.zeros(positions)
    else:
        shares = rng.dirichlet([0.3] * (entries + 1), positions).clip(1e-12)
        shares /= shares.sum(axis=1, keepdims=True)
        weights, tail = np.sort(shares[:, 1:])[:, ::-1], shares[:, 0]
    ids = np.stack([rng.choice(VOCABULARY, entries, replace=False) for _ in range(positions)])
    with np.errstate(divide="ignore"):
        targets = Targets(
            np.arange(positions + 1) * entries,
            ids.ravel().astype(np.int32),
            np.log(weights).ravel().astype(np.float32),
            np.log(tail).astype(np.float32),
        )
    return Sample(sample_id, rng.integers(0, VOCABULARY, positions + 50).astype(np.int32), targets)


# ---------------------------------------------------------------- reading


def read_packed(reader: TargetReader, places: Sequence[int], passes: int) -> float:
    """Seconds to read all rows in random batches."""
    order = np.random.default_rng(SEED).permutation(places).tolist()
    batches = [order[at : at + BATCH] for at in range(0, len(order), BATCH)]
    return timed(lambda: [reader.read(batch) for batch in batches], passes)[0]


def to_parquet(samples: Sequence[Sample], path: Path) -> Path:
    """One row a sample, fp16 where the shard has fp16, zstd, and a row group a batch."""
    half = pa.float16()
    kinds = {"sizes": pa.uint8(), "ids": pa.int32(), "logprobs": half, "tails": half}
    schema = pa.schema([(name, pa.list_(kind)) for name, kind in kinds.items()])

    def row(targets: Targets) -> dict[str, NDArray[np.generic]]:
        return {
            "sizes": np.diff(targets.offsets_N1).astype(np.uint8),
            "ids": targets.ids_E,
            "logprobs": targets.logprobs_E.astype(np.float16),
            "tails": targets.log_tail_N.astype(np.float16),
        }

    table = pa.Table.from_pylist([row(sample.targets) for sample in samples], schema=schema)
    pq.write_table(table, path, compression="zstd", row_group_size=BATCH)
    return path


def read_parquet(path: Path) -> list[Targets]:
    """In the order of the file, which is the cheapest for it."""
    found = []
    with pq.ParquetFile(path, memory_map=True) as file:
        for group in range(file.num_row_groups):
            table = file.read_row_group(group, use_threads=False)
            sizes, ids, logprobs, tails = (
                np.asarray(table[name].combine_chunks().flatten()) for name in table.column_names
            )
            offsets = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
            found.append(Targets(offsets, ids, logprobs.astype(np.float32), tails.astype(np.float32)))
    return found


def timed(work: Callable[[], T], passes: int) -> tuple[float, T]:
    best, result = float("inf"), work()
    for _ in range(passes):
        begin = time.process_time()
        result = work()
        best = min(best, time.process_time() - begin)
    return best, result


def against(
    what: str, value: float, unit: str, peer: str, peer_value: float, target: float | None = None
) -> Row:
    return Row(
        what,
        value,
        unit,
        peer=peer,
        peer_value=peer_value,
        ratio=value / peer_value,
        target=None if target is None else f"<= {target:g} {unit}",
        holds=None if target is None else value <= target,
    )


if __name__ == "__main__":
    main()
