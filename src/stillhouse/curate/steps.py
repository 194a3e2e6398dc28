"""Which filters a recipe asks for, in which order: cheap ones first, those that compare rows last."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from stillhouse.curate import duplicates, leaks, personal, quality
from stillhouse.curate.funnel import Filter, Row, Step, filtering, on_a_copy
from stillhouse.curate.rationale import splitting
from stillhouse.curate.verified import Draws, verified
from stillhouse.errors import UsageError
from stillhouse.models import weights_digest
from stillhouse.recipe import Curate
from stillhouse.scoring import BUILTIN, Scorer
from stillhouse.scoring import GROUP as SCORERS

GROUP = "stillhouse.filters"


@dataclass(frozen=True, slots=True)
class Plan:
    """The steps in order: those that look at one row alone, then those that see all rows in order. `draws`
    belongs to one of them and knows afterwards what it saw."""

    alone: tuple[Step, ...]
    ordered: tuple[Step, ...]
    draws: Draws | None

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(step.name for step in (*self.alone, *self.ordered))


def chosen(
    settings: Curate,
    scorers: Mapping[str, Scorer] = BUILTIN,
    exams: Sequence[leaks.Exam] = (),
    sample: Iterable[Row] = (),
) -> Plan:
    """All steps of a recipe's [curate] but the mix. `sample` are rows from which the wording of templates is
    learnt. Raises UsageError where a filter, a file or a package is missing."""
    alone = alone_of(settings, scorers)
    ordered = [Step(f"leaks: {exam.name}", leaks.outside(exam, settings.leaks)) for exam in exams]
    draws = None
    if settings.draws != "all":
        draws = Draws(settings.draws, settings.draws_kept, scorers)
        ordered.append(Step("draws", draws.judge))
    if settings.duplicates:
        ordered.append(Step("duplicates", duplicates.first_of_its_kind()))
    if settings.near_duplicates:
        judge = duplicates.unlike_the_kept(settings.near_duplicates, sample)
        ordered.append(Step("near duplicates", judge))
    if settings.semantic_duplicates and settings.embedding:
        embed = duplicates.embedder(settings.embedding)
        new = duplicates.saying_something_new(settings.semantic_duplicates, embed)
        ordered.append(Step("semantic duplicates", new))
    return Plan(tuple(alone), tuple(ordered), draws)


def check(settings: Curate, scorers: Mapping[str, Scorer]) -> None:
    """Raises UsageError where a filter, a file or a package that the recipe names is missing, before answers
    are paid for."""
    alone_of(settings, scorers)
    for one in settings.leak_sets:
        leaks.questions(one)
    if settings.semantic_duplicates and settings.embedding:
        duplicates.embedder(settings.embedding)


def alone_of(settings: Curate, scorers: Mapping[str, Scorer]) -> list[Step]:
    """The steps that look at one row alone, and may so be taken on any machine."""
    steps = [filtering("tools", quality.without_tools)]
    if settings.rationale is not None:
        steps.append(Step("rationale", edit=splitting(settings.rationale)))
    steps.append(filtering("empty", quality.not_empty))
    for wanted, name, judge in (
        (settings.truncated, "truncated", quality.not_truncated),
        (settings.refusals, "refusals", quality.not_refused),
        (settings.identity, "identity", quality.without_identity),
        (settings.boilerplate, "boilerplate", quality.without_boilerplate),
        (settings.repetitive, "repetitive", quality.not_repetitive),
    ):
        if wanted:
            steps.append(filtering(name, judge))
    if settings.min_words or settings.max_words:
        steps.append(filtering("length", quality.of_length(settings.min_words, settings.max_words)))
    if settings.pattern is not None:
        steps.append(filtering("pattern", quality.matching(settings.pattern)))
    if settings.json_schema is not None:
        steps.append(filtering("JSON schema", quality.of_schema(Path(settings.json_schema))))
    if settings.languages is not None:
        steps.append(filtering("languages", quality.in_languages(settings.languages)))
    steps += _personal(settings)
    steps += [filtering(f"own: {name}", on_a_copy(_loaded(name))) for name in dict.fromkeys(settings.filters)]
    if settings.verify != "off":
        steps.append(filtering("verified", verified(scorers, settings.verify == "all")))
    return steps


def _personal(settings: Curate) -> list[Step]:
    if settings.personal == "off":
        return []
    finders = (personal.find, personal.named()) if settings.names else (personal.find,)
    if settings.personal == "drop":
        return [filtering("personal data", personal.without_personal(finders))]
    edit = personal.counting if settings.personal == "count" else personal.redacting
    return [Step("personal data", edit=edit(finders))]


def _loaded(name: str) -> Filter:
    point = _own(name)
    try:
        own = point.load()
    except Exception as error:
        raise UsageError(
            f"the filter {name!r} could not be loaded",
            f"entry point {name} = {point.value!r} in {GROUP}: {type(error).__name__}: {error}",
            "mend the package, or take the filter out of `curate.filters`",
        ) from error
    if not callable(own):
        raise UsageError(
            f"the filter {name!r} cannot be called",
            f"entry point {name} = {point.value!r} in {GROUP} is a {type(own).__name__}",
            "name a function from a row to a verdict there",
        )
    judge: Filter = own
    return judge


def _own(name: str) -> EntryPoint:
    points = entry_points(group=GROUP)
    named = [point for point in points if point.name == name]
    if len(named) > 1:
        raise UsageError(
            f"there are {len(named)} filters named {name!r}",
            f"entry points in the group `{GROUP}`: {', '.join(point.value for point in named)}",
            "rename one, or uninstall its package",
        )
    if named:
        return named[0]
    known = ", ".join(sorted(points.names)) or "none"
    near = difflib.get_close_matches(name, points.names, n=1)
    raise UsageError(
        f"no filter named {name!r}",
        f"entry points in the group `{GROUP}` of the packages here: {known}",
        f"did you mean {near[0]!r}?" if near else "install the package that declares it",
    )


def knows_references(settings: Curate) -> bool:
    """Whether a step asks for the reference and the scorer of a row's prompt."""
    return settings.verify != "off" or settings.draws == "agreed" or bool(settings.filters)


def read_by(settings: Curate) -> list[str]:
    """What curation depends on beside rows, prompts and settings, each as a digest or a version."""
    files = [one.file for one in settings.leak_sets]
    files += [settings.json_schema] if settings.json_schema else []
    read = [hashlib.sha256(Path(file).read_bytes()).hexdigest() for file in files if Path(file).is_file()]
    if settings.mix is not None and settings.mix.checkpoint is not None:
        read.append(weights_digest(settings.mix.checkpoint))
    if settings.semantic_duplicates and settings.embedding and Path(settings.embedding).is_dir():
        read.append(weights_digest(settings.embedding))
    if settings.verify != "off" or settings.draws == "agreed":
        own = entry_points(group=SCORERS)
        read += sorted(f"{one.name}={one.value} {one.dist.version if one.dist else ''}" for one in own)
    for name in settings.filters:
        point = _own(name)
        read.append(f"{name}={point.value} {point.dist.version if point.dist else ''}")
    return read
