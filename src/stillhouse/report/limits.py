"""What the report does not show, derived from the run's own files."""

from __future__ import annotations

from stillhouse.report.cost import bill, requests, served_here
from stillhouse.report.figures import (
    at,
    count,
    number,
    plural,
)
from stillhouse.report.layout import UNANCHORED, section
from stillhouse.report.markup import Html, short, tag
from stillhouse.report.read import STAGES, Facts

_FEW_GROUPS = 10  # below, intervals by clustered methods cover too little


def limits(facts: Facts) -> Html:
    items = [tag("li", item) for item in _limits(facts)]
    lead = "Read the verdict with these in mind; the list is made from the run’s own files."
    return section("limits", "What this report does not show", lead, tag("ul", items, class_="limits"))


def _limits(facts: Facts) -> list[str]:
    evaluation, questions, said = facts.evaluation, facts.questions, []
    missing = [stage for stage in STAGES if not facts.markers[stage]]
    if missing:
        said.append(f"The run is not whole: {', '.join(missing)} did not finish.")
    said += [f"A file of the run is damaged: {short(problem, 200)}." for problem in facts.problems]
    seed = number(facts.recipe, "run", "seed")
    if facts.markers["train"]:
        of = f" ({count(seed)})" if seed is not None else ""
        said.append(
            f"The student that is released has one seed{of}; how far others move is under Other students, and"
            " its intervals do not include it."
            if at(evaluation, "further", "seeds")
            else f"One training run with one seed{of}. How far the scores would move with another was not"
            " measured, and the intervals do not include it."
        )
    if at(facts.recipe, "teacher", "model") == "embedded:desk":
        said.append(
            "The teacher belongs to the synthetic support-desk world that ships with stillhouse. The figures"
            " show that the path works; they say nothing about real customers’ text."
        )
    if facts.groups is not None:
        tested = number(evaluation, "prompts", "n") or questions.test
        said.append(
            f"The {count(tested)} test prompts fall into {plural(facts.groups, 'group')} (templates"
            " or source documents). The intervals speak of further prompts of the same kinds."
        )
    if questions.shared_groups:
        said.append(
            f"{plural(questions.shared_groups, 'test group')} also occur among the training prompts: there"
            " the scores may show memory instead of skill."
        )
    said += _limits_of_scores(facts)
    if evaluation and number(evaluation, "baseline", "score") is None:
        said.append("No cheap baseline was scored: that distilling was worth its cost at all is not shown.")
    if evaluation and number(evaluation, "flops_ratio") is None:
        said.append("FLOPs per answer are unknown, so nothing is said about how much cheaper the student is.")
    elif evaluation:
        said.append(
            "FLOPs are counted by formula; speeds were measured on one machine and will differ on another."
        )
    if facts.markers["collect"] and bill(facts).high is None and not served_here(facts):
        said.append("The teacher’s bill is unknown; it is not zero.")
    if requests(facts, "unknown"):
        said.append(
            f"{plural(requests(facts, 'unknown'), 'request')} with an unknown outcome;"
            " they may have been billed."
        )
    said.append(
        f"{UNANCHORED[0].upper()}{UNANCHORED[1:]}. Nobody else holds an earlier checkpoint of the ledger,"
        " so it cannot show that its history was not rewritten; and no log shows that all was logged."
    )
    notes = evaluation.get("notes")
    said += [_sentence(short(str(note), 400)) for note in notes[:20]] if isinstance(notes, list) else []
    return said


def _limits_of_scores(facts: Facts) -> list[str]:
    evaluation, said = facts.evaluation, []
    families = at(evaluation, "families")
    few = [
        f"{short(str(name), 40)} ({count(number(entry, 'groups'))})"
        for name, entry in (families.items() if isinstance(families, dict) else ())
        if (number(entry, "groups") or _FEW_GROUPS) < _FEW_GROUPS
    ]
    if few:
        more = f" and {len(few) - 12} more" if len(few) > 12 else ""
        said.append(
            f"Families with fewer than {_FEW_GROUPS} groups, whose intervals lean on few independent cases:"
            f" {', '.join(few[:12])}{more}."
        )
    scorers = evaluation.get("scored_by") or facts.questions.scorers
    if isinstance(scorers, (list, tuple)) and scorers:
        names = ", ".join(short(str(name), 30) for name in scorers[:12])
        said.append(
            f"Answers were scored by {names}; what these do not compare (tone, style, safety) was not judged."
        )
    return said


def _sentence(note: str) -> str:
    return note[:1].upper() + note[1:] + ("" if note.endswith((".", "…")) else ".")
