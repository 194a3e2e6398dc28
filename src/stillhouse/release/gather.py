"""The facts of a release, read once from run folder, recipe, ledger and what the operator wrote down."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow.parquet as pq

from stillhouse.errors import LedgerError, ModelError, UsageError
from stillhouse.ledger import Ledger
from stillhouse.ledger.anchors import stored_anchors
from stillhouse.ledger.manifest import sha256_of
from stillhouse.models import source_folder, weights_digest
from stillhouse.recipe import WORDS, Recipe
from stillhouse.release.facts import (
    Decision,
    Evaluation,
    Facts,
    Figure,
    Samples,
    Student,
    Teacher,
    Training,
    Use,
)
from stillhouse.terms import ruling
from stillhouse.terms.facts import Obligation, Publisher
from stillhouse.terms.lineage import as_base, known_of
from stillhouse.terms.obligations import BASE, Owed, due, of_decisions, of_seeds, redistributes, seeds, settle
from stillhouse.workspace import RunFolder, read_marker

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_Who = tuple[str, str, str]  # endpoint as recorded, model, revision


def gather(
    run: RunFolder,
    recipe: Recipe,
    ledger: Ledger,
    operator: Publisher,
    now: datetime,
    decided: Sequence[int] = (),
) -> Facts:
    """Read everything once; `decided` are leaves of the decisions taken again for the release.

    Raises UsageError when a stage is not done, and LedgerError when run and ledger do not belong together.
    """
    collected, curated, trained = (result_of(run, stage) for stage in ("collect", "curate", "train"))
    evaluation = json.loads(run.evaluation.read_bytes())
    again = {index: ledger.leaf(index).body for index in decided}
    owed = _due(recipe, list(again.values()))
    settlement = settle(owed, recipe.release.name or recipe.run.name, recipe.release.licence)
    teachers, uses = _teachers(run, recipe, ledger, collected, evaluation, decided)
    config = json.loads((run.student / "config.json").read_bytes())
    marker = read_marker(run, "train") or {}
    return Facts(
        name=recipe.release.name or recipe.run.name,
        run=run.root.name,
        version=trained["weights"][:12],
        licence=recipe.release.licence,
        written=now,
        size=(size := ledger.size()),
        root=ledger.root(size).hex(),
        origin=ledger.origin,
        files={path.name: sha256_of(path) for path in sorted(run.student.iterdir()) if path.is_file()},
        teachers=teachers,
        student=_student(run, recipe, trained, config),
        samples=Samples(
            prompts=shown(recipe.prompts.source),
            grown=recipe.prompts.grow is not None or recipe.prompts.focus is not None,
            answers=curated["rows"],
            kept=curated["kept"],
            dropped=curated["reasons"],
            unscored=curated["unscored"],
            languages=tuple(recipe.curate.languages) if recipe.curate.languages else None,
            deferred=0 if recipe.prompts.landed is None else ledger.leaf(recipe.prompts.landed).body["taken"],
        ),
        training=Training(
            objective=trained["objective"],
            seed=recipe.run.seed,
            steps=trained["steps"],
            epochs=trained["epochs"],
            tokens=trained["tokens"],
            target_tokens=trained["target_tokens"],
            seconds=trained["seconds"],
            device=trained["device"],
            dtype=trained["dtype"],
            settings=recipe.train.model_dump(
                mode="json", exclude={"track", "checkpoint_seconds"}, exclude_none=True
            ),
            finished=marker.get("finished"),
        ),
        evaluation=_evaluation(recipe, evaluation),
        uses=uses,
        operator=operator,
        software=evaluation.get("versions") or {},
        anchored=_anchored(ledger),
        credits=(*settlement.credits, *settlement.notes),
        due=owed,
        begun=next((as_base(at, body) for at, body in again.items() if body["use"] == BASE), None),
    )


def _due(recipe: Recipe, decisions: Sequence[Mapping[str, Any]]) -> tuple[Owed, ...]:
    """What these decisions and the prompts' licence ask of this release, with teachers as it names them."""
    owed = [*of_decisions(decisions), *of_seeds(seeds(recipe), recipe.prompts.licence or "")]
    named = (replace(one, teacher=shown(one.teacher)) for one in owed)
    return due(dict.fromkeys(named), recipe.release.mode, redistributes(recipe))


def _anchored(ledger: Ledger) -> int | None:
    """The largest size for which an anchor of the workspace holds, and this ledger has that root."""
    sizes = [
        one.checkpoint.size
        for one in stored_anchors(ledger.workspace)[0]
        if one.checkpoint.origin == ledger.origin
        and one.checkpoint.size <= ledger.size()
        and one.checkpoint.root == ledger.root(one.checkpoint.size)
    ]
    return max(sizes, default=None)


def shown(model: str) -> str:
    """A model's or a data set's name without the folders of the machine that it lies on."""
    if model.startswith(("/", "~", ".")) or Path(model).is_absolute():
        return Path(model).name
    return model


@dataclass(slots=True)
class _Count:
    exchanges: int = 0
    uncounted: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    rows: int = 0
    decisions: set[int] = field(default_factory=set)
    times: list[str] = field(default_factory=list)

    def add(self, body: Mapping[str, Any]) -> None:
        self.exchanges += 1
        read, written = body.get("prompt_tokens"), body.get("completion_tokens")
        self.uncounted += read is None or written is None
        self.prompt_tokens += read or 0
        self.completion_tokens += written or 0

    def seen(self, time: str) -> None:
        self.times = [min([*self.times[:1], time]), max([*self.times[1:], time])]


def _teachers(
    run: RunFolder,
    recipe: Recipe,
    ledger: Ledger,
    collected: Mapping[str, Any],
    evaluation: Mapping[str, Any],
    decided: Sequence[int],
) -> tuple[tuple[Teacher, ...], tuple[Use, ...]]:
    counts, uses, owner = _count(run, ledger)
    for leaves in pq.read_table(run.samples, columns=["leaves"])["leaves"].to_pylist():
        for leaf in leaves[:1]:
            counts[owner[leaf]].rows += 1
    answered = {entry["teacher"]: entry["models"] for entry in collected.get("answered_by") or ()}
    found: dict[_Who, Teacher] = {}
    for number, (given, asked) in enumerate(
        zip((recipe.teacher, *recipe.teachers), collected["teachers"], strict=True)
    ):
        who = (asked["endpoint"], asked["model"], asked["revision"])
        if who in found:  # the same model under another system prompt
            continue
        count = counts.pop(who, _Count())
        again = {leaf for leaf in decided if _is_about(ledger.leaf(leaf).body, given.model)}
        leaves = sorted(count.decisions | {asked["decision"]} | again)
        bodies = [ledger.leaf(leaf).body for leaf in leaves]
        found[who] = Teacher(
            model=shown(asked["model"]),
            revision=asked["revision"] or None,
            access=bodies[-1].get("teacher", {}).get("access"),
            host=urlsplit(given.endpoint).hostname if given.endpoint else None,
            answered_by=tuple(sorted(filter(None, map(shown, answered.get(asked["model"]) or ())))),
            decisions=tuple(read_decision(i, body, ledger) for i, body in zip(leaves, bodies, strict=True)),
            exchanges=count.exchanges,
            uncounted=count.uncounted,
            prompt_tokens=count.prompt_tokens,
            completion_tokens=count.completion_tokens,
            rows=count.rows,
            times=(count.times[0], count.times[1]) if count.times else None,
            # Evaluation asks the first teacher alone, so the size of others is not known from it.
            parameters=(evaluation.get("parameters") or {}).get("teacher") if number == 0 else None,
            lineage=bodies[-1].get("lineage"),
            upstream=bodies[-1].get("upstream"),
            known=known_of(bodies[-1].get("asked")),
        )
    if counts:
        raise LedgerError(
            f"the run {run.root.name} has answers of a teacher that it does not name",
            f"the ledger says they are from {sorted(counts)[0]}",
            "collect again, with the recipe of this run",
        )
    return tuple(found.values()), uses


def _count(run: RunFolder, ledger: Ledger) -> tuple[dict[_Who, _Count], tuple[Use, ...], dict[int, _Who]]:
    """What each teacher answered of the run's exchanges, what else was asked, and whose each answer is."""
    wanted = set(pq.read_table(run.exchanges, columns=["leaf"])["leaf"].to_pylist())
    counts: dict[_Who, _Count] = {}
    others: dict[tuple[str, str], _Count] = {}
    owner: dict[int, _Who] = {}
    for leaf in ledger.leaves():
        if leaf.kind not in ("exchange", "import"):
            continue
        body = leaf.body
        teacher = body["teacher"]
        if leaf.index in wanted:
            who = (teacher["endpoint"], teacher["model"], teacher["revision"])
            owner[leaf.index] = who
            count = counts.setdefault(who, _Count())
            count.add(body)
            if leaf.kind == "exchange":  # of an imported answer only the day of its import is known
                count.seen(leaf.time)
            count.decisions.add(body["decision"])
        elif body.get("run") == run.root.name and body.get("stage", "collect") != "collect":
            others.setdefault((body["stage"], shown(teacher["model"])), _Count()).add(body)
    if owner.keys() != wanted:
        raise LedgerError(
            f"the ledger lacks answers of the run {run.root.name}",
            f"{len(wanted) - len(owner)} of {len(wanted)} leaves in exchanges.parquet are no answers there",
            "use the ledger under which the run was made",
        )
    uses = tuple(
        Use(stage, model, count.exchanges, count.prompt_tokens, count.completion_tokens)
        for (stage, model), count in sorted(others.items())
    )
    return counts, uses, owner


def read_decision(leaf: int, body: Mapping[str, Any], ledger: Ledger) -> Decision:
    return Decision(
        leaf=leaf,
        verdict=body["verdict"],
        reasons=tuple(map(_reason, body.get("reasons") or [body["reason"]])),
        terms=body.get("terms") or None,
        terms_sha256=_texts(leaf, body, ledger),
        read_on=body.get("read_on"),
        basis=body.get("basis"),
        policy=body.get("policy"),
        registry_sha256=body.get("registry_sha256"),
        authorisation=body.get("authorisation"),
        obligations=tuple(map(_owed, body.get("obligations") or ())),
    )


def _is_about(body: Mapping[str, Any], model: str) -> bool:
    return bool(body["use"] == "train_target" and shown(body["teacher"]["model"]) == shown(model))


def _reason(found: str | Mapping[str, Any]) -> str:
    """What one text came to, in a line."""
    if isinstance(found, str):
        return found
    read = f"read on {found['read_on']}" if found.get("read_on") else "not read by anybody known"
    lifted = f" (lifted by {found['lifted_by']})" if found.get("lifted_by") else ""
    return f"{found['text']}, {read}: {'; '.join(found['why'])}{lifted}"


def _texts(decision: int, body: Mapping[str, Any], ledger: Ledger) -> tuple[str, ...]:
    """SHA-256 of the declared texts, and of the newest text kept of each row before it decided."""
    declared = {body.get("terms_snapshot"), *body.get("terms_snapshots", ())}
    rows = {layer["row"] for layer in body.get("layers") or ()}
    found: dict[Any, str] = {}
    for leaf in ledger.leaves("terms_snapshot"):
        if leaf.index in declared:
            found[leaf.index] = leaf.body["sha256"]
        elif leaf.body.get("row") in rows and leaf.index < decision:
            found[leaf.body["row"]] = leaf.body["sha256"]
    return tuple(sorted(set(found.values())))


def _owed(record: Mapping[str, Any]) -> ruling.Owed:
    owed = Obligation(record["kind"], tuple(record.get("texts") or ()), where=record.get("where") or "")
    modes = tuple(record.get("modes") or owed.modes)
    whole = replace(owed, modes=modes, redistributes=bool(record.get("redistributes")))
    return ruling.Owed(record.get("row") or "", whole)


def _student(
    run: RunFolder, recipe: Recipe, trained: Mapping[str, Any], config: Mapping[str, Any]
) -> Student:
    init = recipe.student.init
    base = {"config": None, "from_teacher": recipe.teacher.model}.get(init, init)
    folder = source_folder(base) if base else None
    try:
        digest = weights_digest(folder) if folder and Path(folder).is_dir() else None
    except ModelError:
        digest = None
    on_hub = bool(base and digest is None and init not in WORDS and _HUB_ID.fullmatch(base))
    return Student(
        base=shown(base) if base else None,
        base_is_on_hub=on_hub,
        base_sha256=digest,
        sha256=trained["weights"],
        architecture=next(iter(config.get("architectures") or ()), None),
        parameters=trained["parameters"],
        layers=config.get("num_hidden_layers"),
        width=config.get("hidden_size"),
        vocabulary=config.get("vocab_size"),
        context=config.get("max_position_embeddings"),
    )


def _evaluation(recipe: Recipe, evaluation: Mapping[str, Any]) -> Evaluation:
    verdict = evaluation.get("verdict") or {}
    source = recipe.evaluate.source or f"{recipe.prompts.source}, kept apart from training"
    shipped = recipe.prompts.source.startswith("embedded:") and recipe.evaluate.source is None
    return Evaluation(
        figures=tuple(
            _figure(name, evaluation.get(system) or {}, "score")
            for system, name in (
                ("teacher", "teacher"),
                ("student_before", "student before training"),
                ("student", "this model"),
                ("baseline", "TF-IDF baseline"),
            )
        ),
        retention=_figure("share of the teacher's score kept", evaluation.get("retention") or {}, "value"),
        flops_ratio=evaluation.get("flops_ratio"),
        margin=verdict.get("margin"),
        ruling=verdict.get("ruling"),
        source=f"{recipe.prompts.source}, {recipe.evaluate.split} split" if shipped else shown(source),
        notes=tuple(evaluation.get("notes") or ()),
    )


def _figure(name: str, entry: Mapping[str, Any], value: str) -> Figure:
    return Figure(name, entry.get(value), entry.get("low"), entry.get("high"), entry.get("n"))


def result_of(run: RunFolder, stage: str) -> dict[str, Any]:
    marker = read_marker(run, stage)
    if marker is None:
        raise UsageError(
            f"the run {run.root.name} has not come to its release",
            f"its stage {stage} is not done",
            "finish it with `stillhouse run`",
        )
    return dict(marker["result"])
