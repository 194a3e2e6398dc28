"""What a run folder says: every file read once, a missing or broken one noted and never made up for."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rfc8785

from stillhouse.recipe import Recipe, run_digest
from stillhouse.report.figures import at, number
from stillhouse.workspace import RunFolder, read_marker

STAGES = ("collect", "curate", "train", "evaluate", "release")
EXAMPLES = 3  # dropped rows shown for each reason
PAIRS = 20  # answers shown side by side


@dataclass(frozen=True, slots=True)
class Drop:
    """A dropped row: what was asked and what the teacher answered."""

    prompt: str
    answer: str


@dataclass(frozen=True, slots=True)
class Step:
    """One line of the loss log; losses in nats per token, None where the line does not say."""

    step: float
    loss: float | None
    held_out: float | None
    rate: float | None


@dataclass(frozen=True, slots=True)
class Answer:
    text: str | None  # None where no answer came
    score: float | None
    reason: str
    finish: str


@dataclass(frozen=True, slots=True)
class Pair:
    """One test prompt with the teacher's and the student's answer."""

    prompt_id: str
    family: str
    prompt: str
    reference: str | None
    scorer: str
    teacher: Answer
    student: Answer

    @property
    def change(self) -> float | None:
        """Student's score minus the teacher's; None when either is unscored."""
        if self.teacher.score is None or self.student.score is None:
            return None
        return self.student.score - self.teacher.score


@dataclass(frozen=True, slots=True)
class Tally:
    """How the student's scores compare with the teacher's over all test prompts."""

    worse: int = 0
    same: int = 0
    better: int = 0
    unscored: int = 0


@dataclass(frozen=True, slots=True)
class Questions:
    """The prompts file: counts, and how far test templates were also trained on."""

    test: int | None = None
    groups: int | None = None
    shared_groups: int | None = None
    scorers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Facts:
    """All that the page is made from. Dicts are as stages wrote them; empty where there is no file."""

    run: RunFolder
    name: str
    digest: str | None
    recipe: dict[str, Any]
    markers: dict[str, dict[str, Any]]
    evaluation: dict[str, Any]
    cascade: dict[str, Any]
    steps: tuple[Step, ...]
    drops: dict[str, tuple[Drop, ...]]
    pairs: tuple[Pair, ...]
    tally: Tally
    questions: Questions
    exchanges: int | None
    problems: tuple[str, ...]

    @property
    def groups(self) -> float | None:
        """Groups among the test prompts; a prompt without a group is one by itself."""
        counted = number(self.evaluation, "prompts", "groups")
        return self.questions.groups if counted is None else counted

    def result(self, stage: str, *path: str) -> Any:
        """A value of a stage's own account of itself, None where it has none."""
        return at(self.markers.get(stage), "result", *path)


def read_facts(run: RunFolder) -> Facts:
    """Read the whole run folder. Files may be missing, partial or damaged: damage is listed in `problems`."""
    problems: list[str] = []
    recipe = _json(run.recipe, problems)
    markers = {stage: read_marker(run, stage) or {} for stage in STAGES}
    told = [at(markers["curate"], "result", name) for name in ("reasons", "unscored")]
    reasons = {reason: n for one in told if isinstance(one, dict) for reason, n in one.items()}
    pairs, tally = _pairs(run, problems)
    return Facts(
        run=run,
        name=run.root.name,
        digest=_digest(recipe),
        recipe=recipe,
        markers=markers,
        evaluation=_json(run.evaluation, problems),
        cascade=_json(run.cascade_curve, problems),
        steps=tuple(_steps(run.losses, problems)),
        drops=_drops(run.dropped, reasons, problems),
        pairs=pairs,
        tally=tally,
        questions=_questions(run.prompts, problems),
        exchanges=_row_count(run.exchanges, problems),
        problems=tuple(problems),
    )


def dropped(facts: Facts) -> float | None:
    """Rows that curation dropped, whatever the reason."""
    reasons = facts.result("curate", "reasons")
    if not isinstance(reasons, dict):
        return None
    counts = [number(reasons, reason) for reason in reasons]
    return None if None in counts else sum(c for c in counts if c is not None)


def unscored(facts: Facts) -> float | None:
    """Rows that curation set aside because it could not judge them; none in a run from before it did."""
    aside = facts.result("curate", "unscored")
    counts = [number(aside, reason) for reason in aside] if isinstance(aside, dict) else []
    return None if None in counts else sum(c for c in counts if c is not None)


def order(pairs: Sequence[tuple[str, str, float | None, float | None]], limit: int) -> list[str]:
    """Which prompts to show, as ids: largest regressions, then ties, then wins, unscored ones last.

    `pairs` holds (prompt id, family, change of score, student's score). Regressions get up to three fifths
    of the places, ties and wins a fifth each; places that one kind leaves free go to the next in that
    order. Among ties wrong answers come first. Where all is equal the families take turns, so that none
    fills the list.
    """
    kinds: list[list[str]] = [[], [], [], []]
    turn: Counter[tuple[str, float | None, float | None]] = Counter()
    ranked = []
    for prompt_id, family, change, score in sorted(pairs, key=lambda pair: pair[0]):
        turn[family, change, score] += 1
        kind = 3 if change is None else 0 if change < 0 else 1 if change == 0 else 2
        place = (-abs(change or 0.0), score or 0.0, turn[family, change, score], family, prompt_id)
        ranked.append((kind, *place))
    for ranking in sorted(ranked):
        kinds[ranking[0]].append(ranking[-1])
    fifth = limit // 5
    taken = [min(len(kinds[0]), limit - 2 * fifth), min(len(kinds[1]), fifth), min(len(kinds[2]), fifth), 0]
    for kind, ids in enumerate(kinds):
        taken[kind] += min(limit - sum(taken), len(ids) - taken[kind])
    return [prompt_id for kind, ids in enumerate(kinds) for prompt_id in ids[: taken[kind]]]


def _json(path: Path, problems: list[str]) -> dict[str, Any]:
    try:
        tree = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        problems.append(f"{path.name} could not be read: {error}")
        return {}
    if isinstance(tree, dict):
        return tree
    problems.append(f"{path.name} does not hold an object")
    return {}


def named_by(recipe: dict[str, Any]) -> str | None:
    """The digest that the run's folder is named by, computed anew from the stored recipe."""
    try:
        return run_digest(Recipe.model_validate(recipe))
    except (rfc8785.CanonicalizationError, ValueError):
        return None


def _digest(recipe: dict[str, Any]) -> str | None:
    """The digest of the whole recipe, computed anew."""
    if not recipe:
        return None
    try:
        return hashlib.sha256(rfc8785.dumps(recipe)).hexdigest()
    except (rfc8785.CanonicalizationError, ValueError):
        return None


def _steps(path: Path, problems: list[str]) -> Iterator[Step]:
    broken = 0
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return
    except OSError as error:
        problems.append(f"{path.name} could not be read: {error}")
        return
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            broken += 1
            continue
        step = _drawn(row, "step")
        if step is None:
            broken += 1
            continue
        if at(row, "preference") is not None:  # its loss is one of pairs, on no axis with those of tokens
            continue
        yield Step(step, _drawn(row, "loss"), _drawn(row, "held_out"), _drawn(row, "lr"))
    if broken:
        problems.append(f"{path.name}: {broken} of {len(lines)} lines could not be read")


def _drawn(row: Any, key: str) -> float | None:
    """A number that fits on an axis; a diverged run may log others."""
    value = number(row, key)
    return value if value is not None and abs(value) < 1e12 else None


def _rows(
    path: Path, columns: Iterable[str], problems: list[str], **options: Any
) -> Iterator[dict[str, Any]]:
    """Rows of a Parquet file, only the wanted columns; a column that is not there is None."""
    import pyarrow as pa
    from pyarrow import parquet

    if not path.is_file():
        return
    try:
        with parquet.ParquetFile(path) as file:
            wanted = [column for column in columns if column in file.schema_arrow.names]
            missing = {column: None for column in columns if column not in wanted}
            for batch in file.iter_batches(batch_size=4096, columns=wanted):
                for row in batch.to_pylist():
                    yield {**missing, **row}
    except (pa.ArrowException, OSError, ValueError) as error:
        problems.append(f"{path.name} could not be read: {error}")


def _row_count(path: Path, problems: list[str]) -> int | None:
    import pyarrow as pa
    from pyarrow import parquet

    if not path.is_file():
        return None
    try:
        return int(parquet.read_metadata(path).num_rows)
    except (pa.ArrowException, OSError, ValueError) as error:
        problems.append(f"{path.name} could not be read: {error}")
        return None


def _drops(path: Path, reasons: dict[str, Any], problems: list[str]) -> dict[str, tuple[Drop, ...]]:
    """The first dropped rows of each reason; reading stops when every known reason has its examples."""
    found: dict[str, list[Drop]] = {str(reason): [] for reason in reasons}
    for row in _rows(path, ("messages", "completion", "reason"), problems):
        examples = found.setdefault(_text(row["reason"]) or "no reason given", [])
        if len(examples) < EXAMPLES:
            examples.append(Drop(_conversation(row["messages"]), _text(row["completion"])))
            if reasons and all(len(known) == EXAMPLES for known in found.values()):
                break
    return {reason: tuple(examples) for reason, examples in found.items()}


def _pairs(run: RunFolder, problems: list[str]) -> tuple[tuple[Pair, ...], Tally]:
    """The answers to show and the tally of all. Scores are read first, texts only of those shown."""
    scores: dict[str, dict[str, float | None]] = {}
    families: dict[str, str] = {}
    for row in _rows(run.predictions, ("prompt_id", "family", "system", "score"), problems):
        if row["system"] in ("teacher", "student"):
            prompt_id = _text(row["prompt_id"])
            scores.setdefault(prompt_id, {})[row["system"]] = number(row, "score")
            families[prompt_id] = _text(row["family"])
    changes = []
    for prompt_id, of in scores.items():
        if len(of) == 2:
            teacher, student = of["teacher"], of["student"]
            change = None if teacher is None or student is None else student - teacher
            changes.append((prompt_id, families[prompt_id], change, student))
    if not changes:
        return (), Tally()
    chosen = order(changes, PAIRS)
    answers = _answers(run.predictions, set(chosen))
    questions = {
        _text(row["id"]): row
        for row in _rows(run.prompts, ("id", "messages", "reference", "scorer"), problems)
        if row["id"] in answers
    }
    pairs = []
    for prompt_id in chosen:
        question = questions.get(prompt_id, {})
        pairs.append(
            Pair(
                prompt_id=prompt_id,
                family=families[prompt_id],
                prompt=_conversation(question.get("messages")),
                reference=None if question.get("reference") is None else _text(question["reference"]),
                scorer=_text(question.get("scorer")),
                teacher=answers[prompt_id]["teacher"],
                student=answers[prompt_id]["student"],
            )
        )
    known = [change for _, _, change, _ in changes if change is not None]
    worse, better = sum(c < 0 for c in known), sum(c > 0 for c in known)
    return tuple(pairs), Tally(worse, len(known) - worse - better, better, len(changes) - len(known))


def _answers(path: Path, ids: set[str]) -> dict[str, dict[str, Answer]]:
    found: dict[str, dict[str, Answer]] = {}
    columns = ("prompt_id", "system", "answer", "score", "reason", "finish_reason")
    for row in _rows(path, columns, []):
        if row["system"] in ("teacher", "student") and row["prompt_id"] in ids:
            answer = Answer(
                None if row["answer"] is None else _text(row["answer"]),
                number(row, "score"),
                _text(row["reason"]),
                _text(row["finish_reason"]),
            )
            found.setdefault(row["prompt_id"], {})[row["system"]] = answer
    return found


def _questions(path: Path, problems: list[str]) -> Questions:
    groups: dict[str, set[str]] = {"train": set(), "test": set()}
    counts = {"train": 0, "test": 0}
    scorers = set()
    for row in _rows(path, ("group", "split", "scorer"), problems):
        split = row["split"]
        if split in counts:
            counts[split] += 1
            if row["group"]:
                groups[split].add(_text(row["group"]))
            if split == "test" and row["scorer"]:
                scorers.add(_text(row["scorer"]))
    if not sum(counts.values()):
        return Questions()
    shared = len(groups["train"] & groups["test"]) if groups["test"] and groups["train"] else None
    return Questions(counts["test"], len(groups["test"]) or None, shared, tuple(sorted(scorers)))


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def _conversation(messages: Any) -> str:
    """The messages as one text; a single user message stands without its role."""
    if not isinstance(messages, list):
        return _text(messages)
    turns = [(_text(at(message, "role")), _text(at(message, "content"))) for message in messages]
    if len(turns) == 1 and turns[0][0] == "user":
        return turns[0][1]
    return "\n\n".join(f"{role}: {content}" for role, content in turns)
