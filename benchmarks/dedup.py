"""Near duplicates among real answers: speed, memory, recall and precision beside datasketch and text-dedup.

    .venv/bin/python benchmarks/dedup.py [--quick] [--json FILE]

The rows are stretches of 50 to 100 words of real answers of 59 models, none used twice, and copies of them
with words replaced, so that each copy lies at a known Jaccard similarity from its original. Truth is the
exact Jaccard similarity of all pairs of a subset that holds each of its originals with all its copies, by a
sparse matrix product. All read Parquet and write their result. stillhouse and datasketch decide by the same
rule (datasketch's candidates are verified too), and the better of two passes counts. text-dedup joins whole
clusters by unverified signatures over words alone, as its command does: a row is wrongly dropped by it if no
other row is as similar as the threshold. It runs once, on 2 processes. Peers have environments of their own.
"""

from __future__ import annotations

import gzip
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from dedup_run import shingles
from rows import DATA, Row, arguments, header, need, show
from scipy import sparse

from stillhouse.similar import NearIndex, NgramIndex, exact_repeats, near_repeats
from stillhouse.similar.bands import band_keys, band_length, chance
from stillhouse.similar.hashes import hashed, ngrams
from stillhouse.similar.near import SHINGLE
from stillhouse.stats import wilson
from stillhouse.text import tokens

SEED = 11
THRESHOLD = 0.8  # curate's
COPIES = 0.3  # share of the rows that are copies
RUNNER = Path(__file__).with_name("dedup_run.py")
ROOT = Path(__file__).resolve().parents[1]
PEERS = ROOT / ".bench"
DATASKETCH = ("datasketch==2.0.0", "pyarrow==26.0.1")
# Not all that it declares: pyspark and unisim are for commands other than `minhash`.
TEXT_DEDUP = (
    "click<9 click-option-group<0.6 datasets==5.2.0 ftfy==6.3.1 numpy psutil regex rich<14 scipy tqdm xxhash "
    "zstandard bitarray setuptools"
).split()


@dataclass(frozen=True, slots=True)
class Copy:
    row: int
    of: int
    jaccard: float  # exact


@dataclass(frozen=True, slots=True)
class Pass:
    """What one program did with one file."""

    rows: int
    seconds: float
    cpu: float
    peak: int
    dropped: dict[int, tuple[int, float]]


def stretches(rng: random.Random) -> list[str]:
    """Disjoint stretches of 50 to 100 words of real answers, shuffled."""
    found = []
    for file in sorted(need(DATA / "many_models").glob("*.json.gz")):
        for answer in json.loads(gzip.decompress(file.read_bytes())):
            words = answer["output"].split(" ")
            at = 0
            while len(words) - at >= 50:
                length = rng.randint(50, 100)
                found.append(" ".join(words[at : at + length]))
                at += length
    rng.shuffle(found)
    return found


def with_copies(originals: list[str], rng: random.Random) -> tuple[list[str], list[Copy]]:
    """The originals and edited copies of some, shuffled; each replaced word breaks up to three shingles."""
    vocabulary = sorted({word for text in originals[:2000] for word in text.split()})
    pairs = []
    for _ in range(round(len(originals) * COPIES / (1 - COPIES))):
        of = rng.randrange(len(originals))
        words = originals[of].split(" ")
        aimed = rng.uniform(0.4, 1.0)
        for place in rng.sample(range(len(words)), round(len(words) * (1 - aimed) / (1 + aimed) / 3)):
            words[place] = rng.choice(vocabulary)
        pairs.append((of, " ".join(words)))
    order = rng.sample(range(len(originals) + len(pairs)), len(originals) + len(pairs))
    made = originals + [text for _, text in pairs]
    place = {old: new for new, old in enumerate(order)}
    texts = [made[old] for old in order]
    copies = []
    for number, (of, text) in enumerate(pairs):
        own, other = shingles(text), shingles(originals[of])
        copies.append(Copy(place[len(originals) + number], place[of], len(own & other) / len(own | other)))
    return texts, copies


def exact_pairs(texts: list[str], least: float) -> dict[tuple[int, int], float]:
    """All pairs (earlier, later) of at least this Jaccard similarity; shingles are compared as text."""
    sets = [shingles(text) for text in texts]
    numbers: dict[str, int] = {}
    columns = [numbers.setdefault(shingle, len(numbers)) for own in sets for shingle in own]
    sizes = np.array([len(own) for own in sets])
    starts = np.concatenate(([0], np.cumsum(sizes)))
    holds = sparse.csr_matrix((np.ones(len(columns), np.int32), columns, starts), (len(sets), len(numbers)))
    other = holds.T.tocsr()
    found = {}
    for first in range(0, len(sets), 1000):
        common = (holds[first : first + 1000] @ other).tocoo()
        one, two = common.row + first, common.col
        jaccard = common.data / (sizes[one] + sizes[two] - common.data)
        hit = (one < two) & (jaccard >= least)
        found.update(
            zip(zip(one[hit].tolist(), two[hit].tolist(), strict=True), jaccard[hit].tolist(), strict=True)
        )
    return found


def peer_python(name: str, packages: Sequence[str], bare: str = "") -> str | None:
    """The Python of a peer's environment, which the first call makes; None if pip fails. `bare` is installed
    without what it declares."""
    folder = PEERS / name
    python, ready = folder / "bin" / "python", folder / "ready"
    if not ready.exists():
        print(f"installing {name} into {folder}", file=sys.stderr)
        venv.create(folder, with_pip=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        for more in (["--no-deps", bare] if bare else [], packages):
            if more and subprocess.run([*pip, *more], check=False).returncode != 0:
                return None
        ready.touch()
    return str(python)


def with_text_dedup(python: str, texts: list[str], folder: Path) -> Pass | None:
    """The same threshold, shingles and about the same number of hashes, by its command; None if it fails."""
    source, out = folder / "rows.parquet", folder / "text-dedup"
    pq.write_table(pa.table({"row": range(len(texts)), "text": texts}), source, row_group_size=1 << 16)
    command = [python, "-m", "text_dedup.minhash", "--path", "parquet", "--data_files", str(source)]
    command += [
        "--split",
        "train",
        "--column",
        "text",
        "--output",
        str(out),
        "--cache_dir",
        str(folder / "c"),
    ]
    command += ["--ngram", "3", "--min_length", "1", "--num_perm", "96", "--threshold", str(THRESHOLD)]
    command += ["--hash_func", "xxh3", "--num_proc", "2"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(folder / "c")}
    measured = [sys.executable, "-c", _MEASURED, *command]
    done = subprocess.run(measured, check=False, capture_output=True, text=True, env=environment)
    if done.returncode != 0:
        print(f"text-dedup failed: {done.stderr.strip()[-600:]}", file=sys.stderr)
        return None
    kept: set[int] = set()
    for file in sorted(out.glob("*.arrow")):
        with pa.ipc.open_stream(file) as stream:
            kept.update(stream.read_all()["row"].to_pylist())
    dropped = {row: (-1, 0.0) for row in range(len(texts)) if row not in kept}
    shutil.rmtree(out)
    return Pass(**{"rows": len(texts), **json.loads(done.stdout.splitlines()[-1])}, dropped=dropped)


_MEASURED = """
import json, resource, subprocess, sys, time
started = time.perf_counter()
code = subprocess.run(sys.argv[1:], stdout=sys.stderr).returncode
used = resource.getrusage(resource.RUSAGE_CHILDREN)
seconds = time.perf_counter() - started
print(json.dumps({"seconds": seconds, "cpu": used.ru_utime + used.ru_stime, "peak": used.ru_maxrss * 1024}))
sys.exit(code)
"""


def passed(name: str, python: str, texts: list[str], folder: Path) -> Pass:
    """Run one program over the texts in a process of its own."""
    source, out = folder / "rows.parquet", folder / name
    out.mkdir(exist_ok=True)
    pq.write_table(pa.table({"row": range(len(texts)), "text": texts}), source, row_group_size=1 << 16)
    command = [python, str(RUNNER), name, str(source), str(out), str(THRESHOLD)]
    # datasketch's environment holds no stillhouse: it gets the tokens from the source.
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment)
    dropped = pq.read_table(out / "dropped.parquet").to_pylist()
    assert pq.read_metadata(out / "kept.parquet").num_rows + len(dropped) == len(texts)
    found = {pair["row"]: (pair["of"], pair["jaccard"]) for pair in dropped}
    return Pass(**json.loads(done.stdout), dropped=found)


def share(what: str, hits: int, total: int, **more: Any) -> Row:
    interval = wilson(hits, total)
    return Row(f"{what} ({total:,})", interval.value, "", interval.low, interval.high, **more)


def recall(done: Pass, pairs: dict[tuple[int, int], float]) -> tuple[int, int]:
    """Of the rows that repeat an earlier row which this program kept, those that it dropped."""
    due = {two for (one, two), jaccard in pairs.items() if one not in done.dropped and jaccard >= THRESHOLD}
    return len(due & done.dropped.keys()), len(due)


def quality(
    ours: Pass, peer: Pass | None, texts: list[str], copies: list[Copy], pairs: dict[tuple[int, int], float]
) -> list[Row]:
    hits, due = recall(ours, pairs)
    beside: dict[str, Any] = {}
    if peer is not None:
        its = recall(peer, pairs)
        beside = {
            "peer": "datasketch",
            "peer_value": its[0] / its[1],
            "ratio": hits / due / (its[0] / its[1]),
        }
    rows = [
        share(
            "rows that repeat a kept row and were dropped",
            hits,
            due,
            target=">= 0.95",
            holds=hits / due >= 0.95,
            **beside,
        )
    ]
    keys = band_keys(*ngrams(*hashed(texts, tokens, SHINGLE), SHINGLE), band_length(THRESHOLD))
    for least in (THRESHOLD, 0.9):
        chosen = [pair for pair, jaccard in pairs.items() if jaccard >= least]
        compared = sum(bool((keys[one] == keys[two]).any()) for one, two in chosen)
        rows.append(
            share(
                f"all exact pairs >= {least}: the bands bring them together",
                compared,
                len(chosen),
                target=">= 0.95",
                holds=compared >= 0.95 * len(chosen),
            )
        )
        parted = sum(one in ours.dropped or two in ours.dropped for one, two in chosen)
        rows.append(share(f"all exact pairs >= {least}: not both kept", parted, len(chosen)))
    wrong = sum(
        pairs.get((of, row)) != jaccard or jaccard < THRESHOLD for row, (of, jaccard) in ours.dropped.items()
    )
    rows.append(
        Row(f"reported pairs that are none ({len(ours.dropped):,})", wrong, "", target="0", holds=not wrong)
    )
    for low, high in ((0.4, 0.7), (0.7, 0.8), (0.8, 0.9), (0.9, 1.01)):
        planted = [copy for copy in copies if low <= copy.jaccard < high]
        gone = sum(copy.row in ours.dropped or copy.of in ours.dropped for copy in planted)
        middle = sum(chance(copy.jaccard, band_length(THRESHOLD)) for copy in planted) / len(planted)
        beside = (
            {}
            if low < THRESHOLD
            else {"peer": "chance by the bands", "peer_value": middle, "ratio": gone / len(planted) / middle}
        )
        rows.append(
            share(
                f"planted copies at {low} to {min(high, 1.0)}: not both kept",
                gone,
                len(planted),
                **beside,
            )
        )
    return rows


def speed(ours: Pass, peer: Pass | None) -> list[Row]:
    def row(what: str, unit: str, value: float, other: float | None, **more: Any) -> Row:
        if other is None:
            return Row(what, value, unit, **more)
        return Row(what, value, unit, peer="datasketch", peer_value=other, ratio=value / other, **more)

    rate = ours.rows / ours.seconds
    return [
        row(
            f"near duplicates of {ours.rows:,} rows, Parquet to Parquet",
            "rows/s",
            rate,
            peer and peer.rows / peer.seconds,
            target=">= 20,000 on 2 cores",
            holds=rate >= 20_000,
        ),
        row("  CPU", "us/row", ours.cpu / ours.rows * 1e6, peer and peer.cpu / peer.rows * 1e6),
        row("  peak memory of the process", "MB", ours.peak / 1e6, peer and peer.peak / 1e6),
        Row("  dropped", len(ours.dropped) / ours.rows, ""),
    ]


def beside_text_dedup(
    ours: Pass,
    python: str,
    large: list[str],
    subset: list[str],
    pairs: dict[tuple[int, int], float],
    folder: Path,
) -> list[Row]:
    """Its own figures. It keeps one row of a cluster, so a pair is found if not both of it are kept."""
    judged, timed = (with_text_dedup(python, texts, folder) for texts in (subset, large))
    if judged is None or timed is None:
        return [Row("text-dedup did not run", None, "")]
    chosen = [pair for pair, jaccard in pairs.items() if jaccard >= THRESHOLD]
    parted = sum(one in judged.dropped or two in judged.dropped for one, two in chosen)
    alike = {row for pair in chosen for row in pair}
    wrong = sum(row not in alike for row in judged.dropped)
    rate = timed.rows / timed.seconds
    return [
        Row(
            "text-dedup: the same rows",
            rate,
            "rows/s",
            peer="stillhouse",
            peer_value=ours.rows / ours.seconds,
            ratio=rate * ours.seconds / ours.rows,
        ),
        Row("  CPU", timed.cpu / timed.rows * 1e6, "us/row"),
        Row("  peak memory of one of its processes", timed.peak / 1e6, "MB"),
        share(f"  all exact pairs >= {THRESHOLD}: not both kept", parted, len(chosen)),
        share("  dropped without a row as similar", wrong, len(judged.dropped)),
    ]


def corners(texts: list[str], quick: bool) -> list[Row]:
    def rate(count: int, work: Any) -> float:
        started = time.perf_counter()
        work()
        return count / (time.perf_counter() - started)

    few = texts[: 5_000 if quick else 50_000]
    index = NearIndex(THRESHOLD, few[:1000])
    alone = few[1000:3000]
    same = ["the very same row of a few words, again and again"] * 50_000
    return [
        Row("exact duplicates", rate(len(few), lambda: list(exact_repeats(few))), "rows/s"),
        Row(
            "near duplicates of 50,000 identical rows",
            rate(50_000, lambda: list(near_repeats(same))),
            "rows/s",
        ),
        Row(
            "one text at a time (`add`)",
            1e6 / rate(len(alone), lambda: [index.add(t) for t in alone]),
            "us/text",
        ),
    ]


def leaks(texts: list[str], rng: random.Random, quick: bool) -> list[Row]:
    """GSM8K's test questions hidden among the rows as they are, edited, and spread in pieces."""
    file = need(DATA / "math" / "gsm8k_test.jsonl")
    questions = [json.loads(line)["question"] for line in file.read_text().splitlines()]
    clean = texts[: 5_000 if quick else 50_000]
    chosen = rng.sample(questions, 200)
    edited = []
    for question in chosen:
        words = question.split()
        for place in range(rng.randrange(12), len(words), 12):
            words[place] = rng.choice(clean[0].split())
        edited.append(" ".join(words))
    index = NgramIndex(questions)
    started = time.perf_counter()
    found = list(index.overlaps([*clean, *chosen, *edited]))
    seconds = time.perf_counter() - started
    start = len(clean)
    verbatim, changed = found[start : start + 200], found[start + 200 :]
    alone = [overlap for overlap in found[:start] if overlap.copied]
    return [
        Row(f"n-gram overlap with {len(questions):,} test questions", len(found) / seconds, "rows/s"),
        share("test questions as they are: 13 words in a row", sum(o.copied for o in verbatim), 200),
        share("one word in twelve replaced: 13 words in a row", sum(o.copied for o in changed), 200),
        share(
            "one word in twelve replaced: 20 % of the 8-grams",
            sum((o.ratio or 0) >= 0.2 for o in changed),
            200,
        ),
        share("real answers on other subjects: 13 words in a row", len(alone), len(clean)),
    ]


def recombined(texts: list[str], count: int, rng: random.Random) -> list[str]:
    """As many rows as asked that share no more than a piece of 18 words with any other."""
    words = " ".join(texts).split(" ")
    starts = ((rng.randrange(len(words) - 18) for _ in range(4)) for _ in range(count))
    return [" ".join(word for at in row for word in words[at : at + 18]) for row in starts]


def main() -> None:
    options = arguments(__doc__ or "")
    rng = random.Random(SEED)
    real = stretches(rng)
    subset, copies = with_copies(real[: 4_000 if options.quick else 14_000], rng)
    pairs = exact_pairs(subset, THRESHOLD)
    python = peer_python("datasketch", DATASKETCH)
    programs = [("stillhouse", sys.executable)] + ([] if python is None else [("datasketch", python)])
    other = peer_python("text-dedup", TEXT_DEDUP, bare="text-dedup==0.4.0")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        judged = {who: passed(who, which, subset, folder) for who, which in programs}
        large = with_copies(real[: 14_000 if options.quick else 140_000], rng)[0]
        timed = {
            who: min((passed(who, which, large, folder) for _ in range(2)), key=lambda done: done.seconds)
            for who, which in programs
        }
        rows = speed(timed["stillhouse"], timed.get("datasketch"))
        rows += quality(judged["stillhouse"], judged.get("datasketch"), subset, copies, pairs)
        if other is not None:
            rows += beside_text_dedup(timed["stillhouse"], other, large, subset, pairs, folder)
        if not options.quick:
            million = passed("stillhouse", sys.executable, recombined(real, 1_000_000, rng), folder)
            rows.append(
                Row(
                    "peak memory at 1,000,000 distinct rows",
                    million.peak / 1e9,
                    "GB",
                    target="< 2 GB",
                    holds=million.peak < 2e9,
                )
            )
            rows.append(Row("  their speed", million.rows / million.seconds, "rows/s"))
    rows += corners(large, options.quick) + leaks(real, rng, options.quick)
    if python is None:
        rows.append(Row("datasketch could not be installed", None, ""))
    show(header(SEED, ["stillhouse", "rensa", "numpy", "pyarrow"]), rows, options.json)


if __name__ == "__main__":
    main()
