"""Does a student betray that it was taught on marked answers? By what share of them, and to whom?

    .venv/bin/python benchmarks/radioactivity.py [--quick] [--json FILE] [--folder FOLDER]

A public model (karpathy/stories260K: 512 pieces, 1.3 nats of choice a token) continues openings of real
stories at temperature 1; marked answers bear `gumbel` with two tokens of context, or `kgw` with two and a
bias of 3, as in the paper that it is compared with. A student of two layers that has learned to tell real
stories is taught on such answers, a share of them marked. Seeds share unmarked answers and the student
before; the key, the marked answers, the rows they stand in and the order of the batches are each seed's own.
What is tested (`stillhouse.watermark.radioactivity`):

    weights           what the student holds likeliest at each place of real stories that nobody learned
    weights and log   the same in the marked answers that were served to its maker, after their contexts
    answers           what it writes itself at temperature 1, after openings of those stories
    answers and log   the same after contexts that were served

p-values are medians over seeds, with the least and the largest. Each pair of context and token is scored
once. Beside each z stands the one that theory gives a student whose every choice follows the mixture that it
was taught: the marked share times what a pair of a marked answer scores above chance, over the same number
of pairs. Of the log it can be above that, as the student reads there what it learned, and may remember it.
Rates of false calls are those of keys that marked nothing on students that saw no mark: for one student keys
are independent, and the interval is over students. The p-values of these keys have to be uniform, and so have
those of many keys, each with a log of its own, on what was written without any: a log holds the contexts that
its key brought about, which with `selection` spoils the test.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from rows import DATA, Row, arguments, header, interval, need, show, working_folder
from scipy.stats import kstest, kstwo
from watermark_texts import stories

from stillhouse.models.local import LocalModel, Request, generate, load_model, score, text_ids
from stillhouse.recipe import Recipe, parse_recipe
from stillhouse.records import unwatched
from stillhouse.stats import holm
from stillhouse.train import loop, rows
from stillhouse.train.student import initial_student
from stillhouse.watermark import Evidence, Gumbel, Key, Kgw, contexts, decoy_keys, evidence
from stillhouse.watermark.hashing import Ids, siphash, values
from stillhouse.watermark.radioactivity import answers, reading
from stillhouse.watermark.schemes import Scheme

SEED = 41
GUMBEL, KGW = Gumbel(width=2), Kgw(width=2, bias=3.0)
SHARES = {GUMBEL: (0.0, 0.01, 0.05, 0.25, 1.0), KGW: (0.0, 0.05, 0.25, 1.0)}
PROMISED, LARGEST = 0.05, 100_000  # of pairs scored
TESTS = ("weights", "weights and log", "answers", "answers and log")
PARTS = (0.25, 0.5, 1.0)  # of what is read
LEVELS = (1e-2, 1e-3)
OPENING, ANSWER, STORY = 12, 200, 400  # tokens
SCORED = 40  # stories by which students are compared
PUBLISHED = {  # arXiv:2402.14904, log10 p below -5
    ("weights", 0.05): "Sander et al. 2024, open weights, below",
    ("answers and log", 0.01): "Sander et al. 2024, supervised, below",
}
LOGGED, LOG_TOKENS = 32, 64  # answers in a log of its own for each of many keys
UNLIKELY = 0.01  # of the p-values' distance from uniform, all students together


@dataclass(frozen=True, slots=True)
class Scale:
    """The student has learned so many `stories` before, then so many `answers` for so many epochs. It is
    tested on `read` stories and on `written` answers of its own."""

    seeds: int
    stories: int
    answers: int
    epochs: int
    read: int
    written: int
    decoys: int
    logs: int


FULL = Scale(5, 1700, 600, 4, 250, 300, 1000, 300)
QUICK = Scale(2, 100, 40, 2, 30, 20, 50, 5)

Answer = tuple[list[int], list[int]]  # what was asked, and what was written
Pairs = NDArray[np.int64]  # (pairs, width + 1): a context and the token after it
Read = list[tuple[Ids, Ids]]  # a text, and what the student holds likeliest after each of its tokens


@dataclass(frozen=True, slots=True)
class Scene:
    teacher: LocalModel
    plain: list[Answer]
    before: dict[str, Any]  # weights
    unseen: list[list[int]]
    scale: Scale
    folder: Path


@dataclass(frozen=True, slots=True)
class Seen:
    """All that is looked at of one student."""

    unseen: Read
    log: Read
    own: list[Answer]


def main() -> None:
    options = arguments((__doc__ or "").split("\n", 1)[0], resumable=True)
    need(DATA / "models" / "stories260K")
    torch.set_num_threads(1)
    with working_folder(options.folder) as folder:
        small = folder / "quick"
        small.mkdir(exist_ok=True)
        made = figures(prepared(small, QUICK) if options.quick else prepared(folder, FULL))
    show(header(SEED, ["stillhouse", "numpy", "torch", "transformers"]), made, options.json)


def prepared(folder: Path, scale: Scale) -> Scene:
    teacher = load_model(str(DATA / "models" / "stories260K"))
    told = [text_ids(teacher, text)[:STORY] for text in stories()]
    learned, unseen = told[: scale.stories], told[scale.stories :]
    plain = served(folder / "unmarked.json", teacher, openings(learned, scale.answers), None, SEED)
    student, made = fresh(teacher, SEED, 1)
    before = weights(folder / "before.pt", student, [([ids[0]], ids[1:]) for ids in learned], made)
    return Scene(teacher, plain, before, unseen, scale, folder)


# ---------------------------------------------------------------- teacher and students


def openings(told: Sequence[list[int]], count: int) -> list[list[int]]:
    """The beginnings of stories, then pieces out of their midst."""
    pieces = [ids[at : at + OPENING] for at in range(1, STORY, 5 * OPENING) for ids in told]
    return [[told[0][0], *piece] for piece in pieces if len(piece) == OPENING][:count]


def served(
    file: Path, teacher: LocalModel, asked: Sequence[list[int]], key: Key | None, seed: int
) -> list[Answer]:
    """The teacher's answers, from the file where an earlier process wrote them."""
    if not file.exists():
        write(file, written(teacher, asked, key, seed))
    return [(before, after) for before, after in json.loads(file.read_text())]


def written(
    model: LocalModel, asked: Sequence[list[int]], key: Key | None, seed: int, tokens: int = ANSWER
) -> list[Answer]:
    requests = [
        Request(ids, tokens, 1.0, seed=1_000_000 * seed + at, continues=True, mark=key)
        for at, ids in enumerate(asked)
    ]
    found = generate(model, requests, batch=256)
    return [(ids, list(answer.token_ids)) for ids, answer in zip(asked, found, strict=True)]


def fresh(teacher: LocalModel, seed: int, epochs: int) -> tuple[LocalModel, Recipe]:
    """A student with random weights, and how it is taught."""
    config = {"hidden_size": 96, "intermediate_size": 264, "num_hidden_layers": 2, "num_attention_heads": 4}
    config |= {"max_position_embeddings": 512, "tie_word_embeddings": True}
    train = {"dtype": "float32", "optimiser": "muon", "learning_rate": 4e-3, "batch_tokens": 1024}
    made = parse_recipe(
        {
            "run": {"name": "radioactivity", "seed": seed},
            "teacher": {"model": teacher.source},
            "prompts": {"source": "stories"},
            "student": {"init": "config", "config": config},
            "train": {**train, "epochs": epochs},
        }
    )
    return initial_student(made, teacher.folder), made


def weights(file: Path, student: LocalModel, told: Sequence[Answer], made: Recipe) -> dict[str, Any]:
    """What the student becomes by these answers, from the file where an earlier process taught it."""
    if not file.exists():
        begun = time.process_time()
        learned = [
            rows.Row(np.array(before + after, dtype=np.int32), len(before), str(at))
            for at, (before, after) in enumerate(told)
        ]
        model = student.model.requires_grad_(True)
        with tempfile.TemporaryDirectory() as name:
            place, seed = Path(name), made.run.seed
            log = place / "losses.jsonl"
            loop.fit(model, learned, [], made.train, seed, place, log, "", unwatched, time.monotonic)
        torch.save(model.state_dict(), file.with_suffix(".part"))
        file.with_suffix(".part").replace(file)
        print(f"{file.stem}: {time.process_time() - begun:.0f} s of a core", file=sys.stderr, flush=True)
    found: dict[str, Any] = torch.load(file)
    return found


def taught(scene: Scene, name: str, told: Sequence[Answer], seed: int) -> LocalModel:
    student, made = fresh(scene.teacher, seed, scene.scale.epochs)
    student.model.load_state_dict(scene.before)
    found = weights(scene.folder / f"{name}.pt", student, told, made)
    student.model.load_state_dict(found)
    return replace(student, model=student.model.eval())


def write(file: Path, content: object) -> None:
    unfinished = file.with_suffix(".part")
    unfinished.write_text(json.dumps(content))
    unfinished.replace(file)


# ---------------------------------------------------------------- one student, tested


def key_of(seed: int, scheme: Scheme) -> Key:
    return Key(scheme, bytes([SEED, seed]) * 16, datetime(2026, 1, 1, tzinfo=UTC))


def student(scene: Scene, scheme: Scheme, share: float, seed: int) -> dict[str, Any]:
    """What is found of the student of this share and seed. One of no marked answers is tested for the log
    that the promised share has."""
    file = scene.folder / f"{scheme.name} {share:g}, seed {seed}.json"
    if file.exists():
        found: dict[str, Any] = json.loads(file.read_text())
        return found
    key, count = key_of(seed, scheme), len(scene.plain)
    order = np.random.default_rng([SEED, seed]).permutation(count).tolist()
    asked = [scene.plain[at][0] for at in order]
    kept = scene.folder / f"marked {scheme.name} {seed}.json"
    marked = served(kept, scene.teacher, asked, key, SEED + 1 + seed)
    told = list(scene.plain)
    for at, answer in list(zip(order, marked, strict=True))[: round(share * count)]:
        told[at] = answer
    log = marked[: round((share or PROMISED) * count)]
    name = f"student {scheme.name} {share:g} {seed}" if share else f"student unmarked {seed}"
    one = taught(scene, name, told, SEED + seed)
    seen = looked(scene, one, log, seed)
    pairs = scored_pairs(scheme.width, seen, log)
    heard = {test: [asdict(hear(key, seen, log, test, part)) for part in PARTS] for test in TESTS}
    chances = {test: [log_p(decoy, pairs[test]) for decoy in decoys(key, scene, share)] for test in TESTS}
    for test in TESTS:
        assert math.isclose(log_p(key, pairs[test]), heard[test][-1]["log_p"], rel_tol=1e-9)
    nats = [-token.logprob for text in score(one, scene.unseen[:SCORED]) for token in text if token]
    gain = evidence(scheme, key.sip, [np.array(after) for _, after in marked]).mean or 0.0
    found = {"heard": heard, "chances": chances, "nats": float(np.mean(nats)), "marked": gain}
    write(file, found)
    return found


def decoys(key: Key, scene: Scene, share: float) -> list[Key]:
    return [] if share else decoy_keys(key, scene.scale.decoys)


def own_logs(scene: Scene, scheme: Scheme) -> list[float]:
    """ln p of many keys, each with a log of its own, on the unmarked answers: after contexts of the log."""
    file = scene.folder / f"logs {scheme.name}.json"
    if not file.exists():
        said, before = (
            [np.array(after) for _, after in scene.plain],
            [np.array(ids) for ids, _ in scene.plain],
        )
        found = []
        for at, key in enumerate(decoy_keys(key_of(0, scheme), scene.scale.logs)):
            asked = [ids for ids, _ in scene.plain[:LOGGED]]
            log = written(scene.teacher, asked, key, SEED + 2000 + at, LOG_TOKENS)
            known = contexts(scheme, key.sip, [np.array(after) for _, after in log])
            found.append(answers(scheme, key.sip, said[LOGGED:], before[LOGGED:], known).log_p)
        write(file, found)
    logs: list[float] = json.loads(file.read_text())
    return logs


def looked(scene: Scene, one: LocalModel, log: Sequence[Answer], seed: int) -> Seen:
    rest = openings(scene.unseen, scene.scale.written)
    return Seen(
        predicted(one, scene.unseen[: scene.scale.read]),
        predicted(one, [before + after for before, after in log]),
        written(one, rest, None, SEED + 1000 + seed),
    )


def predicted(one: LocalModel, texts: Sequence[list[int]]) -> Read:
    found: Read = []
    for begin in range(0, len(texts), 16):
        some = texts[begin : begin + 16]
        ids = torch.zeros((len(some), max(map(len, some))), dtype=torch.long)
        for at, text in enumerate(some):
            ids[at, : len(text)] = torch.tensor(text)
        with torch.inference_mode():
            best = one.model(ids, use_cache=False).logits.argmax(dim=-1).numpy()
        found += [(np.array(text), best[at, : len(text)]) for at, text in enumerate(some)]
    return found


def hear(key: Key, seen: Seen, log: Sequence[Answer], test: str, part: float) -> Evidence:
    scheme, sip = key.scheme, key.sip
    known = contexts(scheme, sip, [np.array(after) for _, after in log]) if test.endswith("log") else None
    if test.startswith("answers"):
        some = seen.own[: round(part * len(seen.own))]
        said = [np.array(after) for _, after in some]
        return answers(scheme, sip, said, [np.array(before) for before, _ in some], known)
    read = seen.unseen if test == "weights" else seen.log
    some_read = read[: math.ceil(part * len(read))]
    return reading(scheme, sip, [text for text, _ in some_read], [best for _, best in some_read], known)


# ---------------------------------------------------------------- decoys


def scored_pairs(width: int, seen: Seen, log: Sequence[Answer]) -> dict[str, Pairs]:
    """What each test scores, whichever the key: thousands of keys are tried faster so than by `hear`."""
    known = np.unique(codes(np.concatenate([cut(after[:-1], width) for _, after in log])))
    own, again = read_pairs(width, seen.unseen), read_pairs(width, seen.log)
    said = written_pairs(width, seen.own)
    return {
        "weights": own,
        "weights and log": again[np.isin(codes(again[:, :-1]), known)],
        "answers": said,
        "answers and log": said[np.isin(codes(said[:, :-1]), known)],
    }


def read_pairs(width: int, read: Read) -> Pairs:
    """Each context where it stands first, and what is held likeliest after it."""
    before = np.concatenate([cut(text, width) for text, _ in read])
    after = np.concatenate([best[width - 1 :] for text, best in read if len(text) >= width])
    first = np.unique(codes(before), return_index=True)[1]
    return np.column_stack([before[first], after[first]])


def written_pairs(width: int, own: Sequence[Answer]) -> Pairs:
    """Each pair once, without those that stand in the answer's own prompt."""
    found = []
    for before, after in own:
        pairs = cut(after, width + 1)
        found.append(pairs[~np.isin(codes(pairs), codes(cut(before, width + 1)))])
    every = np.concatenate(found)
    return every[np.unique(codes(every), return_index=True)[1]]


def cut(ids: Sequence[int] | Ids, size: int) -> Pairs:
    if len(ids) < size:
        return np.zeros((0, size), dtype=np.int64)
    return sliding_window_view(np.asarray(ids, dtype=np.int64), size)


def codes(windows: Pairs) -> NDArray[np.int64]:
    """A number for each window of pieces: 512 of them, so that nine bits hold one."""
    return windows @ (1 << 9 * np.arange(windows.shape[1], dtype=np.int64))


def log_p(key: Key, pairs: Pairs) -> float:
    before = [column.astype(np.uint64) for column in pairs.T]
    bits = values(siphash(key.sip, before[:-1]), before[-1])
    return key.scheme.log_p(float(key.scheme.scores(bits).sum()), len(bits)) if len(bits) else 0.0


# ---------------------------------------------------------------- rows


def figures(scene: Scene) -> list[Row]:
    base, _ = fresh(scene.teacher, SEED, 1)
    base.model.load_state_dict(scene.before)
    size = sum(each.numel() for each in base.model.parameters())
    whole = sum(each.numel() for each in scene.teacher.model.parameters())
    made = [
        Row("parameters of the student", size, "", peer="teacher", peer_value=whole, ratio=size / whole),
        Row("tokens of answers that a student learns", sum(len(after) for _, after in scene.plain), ""),
    ]
    for scheme, shares in SHARES.items():
        made += figures_of(scene, scheme, shares)
    return made


def figures_of(scene: Scene, scheme: Scheme, shares: Sequence[float]) -> list[Row]:
    seeds, named = range(scene.scale.seeds), label(scheme)
    by_seed = [[student(scene, scheme, share, seed) for share in shares] for seed in seeds]
    of = {share: [each[at] for each in by_seed] for at, share in enumerate(shares)}
    gain, chance = [each["marked"] for each in of[PROMISED]], scheme.expected()
    middle = float(np.mean(gain))
    what = f"{named}mean score of a pair in marked answers"
    made = [
        Row(f"{named}seeds", scene.scale.seeds, ""),
        Row(what, middle, "", min(gain), max(gain), "by chance", chance, middle / chance),
    ]
    for share, found in of.items():
        nats = [each["nats"] for each in found]
        made.append(interval(f"{named}{share:.0%} marked: student on real stories", nats, "nats/token"))
        for test in TESTS:
            made += cell(scheme, share, test, found)
    for test in TESTS:
        chances = [each["chances"][test] for each in of[0.0]]
        made += false_calls(f"{named}false calls by {test}", chances)
        made.append(uniform(f"{named}unmarked students' p by {test}", chances))
    made.append(uniform(f"{named}unmarked answers' p by the key of the log", [own_logs(scene, scheme)]))
    return made


def label(scheme: Scheme) -> str:
    return "" if scheme is GUMBEL else f"{scheme.name}: "


def cell(scheme: Scheme, share: float, test: str, found: Sequence[dict[str, Any]]) -> list[Row]:
    whole = [Evidence(**each["heard"][test][-1]) for each in found]
    ten = sorted(each.log_p / math.log(10) for each in whole)
    scored = int(np.median([each.scored for each in whole]))
    unit = f"of {scored:,} scored, {int(np.median([each.tokens for each in whole])):,} read"
    what = f"{label(scheme)}{share:.0%} marked, {test}: log10 p"
    found_p = Row(what, float(np.median(ten)), unit, ten[0], ten[-1])
    if peer := PUBLISHED.get((test, share)):
        found_p = replace(found_p, peer=peer, peer_value=-5.0)
    if share == PROMISED:
        holds = float(np.median(ten)) < -5 and scored <= LARGEST
        found_p = replace(found_p, target=f"median < -5 within {LARGEST:,} scored", holds=holds)
    z = [over(scheme, each.mean, each.scored) for each in whole]
    ideal = [share * over(scheme, each["marked"], one.scored) for each, one in zip(found, whole, strict=True)]
    middle, theory = float(np.median(z)), float(np.median(ideal))
    beside = {"peer": "theory", "peer_value": theory, "ratio": middle / theory} if share else {}
    made = [found_p, Row("  z", middle, "", min(z), max(z), **beside)]
    if share >= PROMISED:
        for at, part in enumerate(PARTS[:-1]):
            some = [Evidence(**each["heard"][test][at]) for each in found]
            p = float(np.median([each.log_p / math.log(10) for each in some]))
            count = int(np.median([each.scored for each in some]))
            made.append(Row(f"  of the first {part:.0%}: log10 p", p, f"of {count:,} scored"))
    return made


def over(scheme: Scheme, mean: float | None, count: int) -> float:
    """Standard deviations by which so many pairs of this mean are above chance: a score's own is 1, or that
    of a green one or none."""
    chance = scheme.expected()
    own = math.sqrt(chance * (1 - chance)) if isinstance(scheme, Kgw) else 1.0
    return 0.0 if mean is None else (mean - chance) * math.sqrt(count) / own


def false_calls(what: str, chances: Sequence[Sequence[float]]) -> list[Row]:
    """Rates over the decoys of each student; their mean and interval over students."""
    made = []
    for level in LEVELS:
        rates = [float(np.mean(np.array(each) <= math.log(level))) for each in chances]
        row = interval(
            f"{what} at p <= {level:g}", rates, f"of {len(chances)} students x {len(chances[0]):,} keys"
        )
        enough = level * sum(map(len, chances)) >= 5
        holds = (row.value or 0.0) <= 2 * level
        made.append(replace(row, target=f"<= {2 * level:g}", holds=holds) if enough else row)
    return made


def uniform(what: str, chances: Sequence[Sequence[float]]) -> Row:
    """How far p-values lie from uniform (Kolmogorov and Smirnov): the largest distance of any set, beside the
    one that a set of true ones passes with chance 1 in 20."""
    tested = [kstest(np.exp(each), "uniform") for each in chances]
    far = [float(each.statistic) for each in tested]
    least = min(holm([float(each.pvalue) for each in tested]), key=lambda p: p or 0.0) or 0.0
    count = len(chances[0])
    students = "" if len(chances) == 1 else f"{len(chances)} students x "
    return Row(
        f"{what}: distance from uniform",
        max(far),
        f"of {students}{count:,} keys, p {least:.2g}",
        min(far),
        max(far),
        "of true ones, 1 in 20 above",
        float(kstwo.isf(0.05, count)),
        target=f"p > {UNLIKELY:g}, corrected",
        holds=least > UNLIKELY,
    )


if __name__ == "__main__":
    main()
