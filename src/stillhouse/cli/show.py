"""What the commands print: plans, scores, ledgers. Text for people; --json gives the same as one object."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stillhouse.evaluate.verdict import Foresight
    from stillhouse.money import Estimate
    from stillhouse.pipeline import Finished, Plan
    from stillhouse.prices import KnownPrice
    from stillhouse.recipe import Recipe


def result(value: Any, text: str, as_json: bool) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False, default=str) if as_json else text)


def say(text: str, quiet: bool = False) -> None:
    if not quiet:
        print(text, file=sys.stderr, flush=True)


def plan_object(recipe: Recipe, plan: Plan) -> dict[str, Any]:
    from stillhouse.collect.prompts import name_broken

    return {
        "run": plan.run.root.name,
        "folder": str(plan.run.root),
        "new": plan.is_new,
        "teacher": recipe.teacher.model,
        "student": recipe.student.init,
        "prompts": {
            "train": len(plan.prompts.train),
            "further": len(plan.prompts.further),
            "grown": plan.grown,
            "to_grow": plan.to_grow,
            "test": len(plan.prompts.test),
            "broken": len(plan.prompts.broken),
            "left_out_as_test": plan.prompts.leaked,
            "broken_rows": name_broken(plan.prompts.broken),
        },
        "exchanges": {
            "needed": plan.questions,
            "in_ledger": plan.answered,
            "to_send": plan.to_send,
            "canaries": plan.canaries,
            "to_read_at_most": plan.to_read,
            "to_judge_at_most": plan.to_judge,
        },
        "further_trainings": plan.trainings,
        "reading": plan.reading or None,
        "price": _price_record(*plan.prices[0]),
        "prices": [{"model": each[0], "price": _price_record(*each)} for each in plan.prices],
        "cost_usd": _estimate(plan.cost),
        "asking_seconds": _estimate(plan.seconds),
        "slowed_by": plan.slowed_by or None,
        "verdict": {
            "margin": plan.foresight.margin,
            "test_prompts": plan.foresight.n,
            "groups": plan.foresight.groups,
            "unscored": plan.foresight.unscored,
            "decidable_margin": plan.foresight.alone,
            "decidable_margin_if_groups_are_alike": plan.foresight.alike,
            "prompts_needed": plan.foresight.needed,
        },
        "terms": list(plan.terms),
        "unmet": list(plan.unmet),
        "unknown": list(plan.unknown),
        "stages_done": list(plan.done),
    }


def plan_text(recipe: Recipe, plan: Plan) -> str:
    where = recipe.teacher.endpoint or (
        "imported answers" if recipe.teacher.imported else "served on loopback"
    )
    from stillhouse.cli.terms_check import terms_lines

    cap = recipe.collect.max_cost
    cost = money(plan.cost) + (f"; stops at US$ {_dollars(cap)}" if cap is not None else "")
    lines = [
        f"run        {plan.run.root.name}  ({'new' if plan.is_new else 'continued'})  in {plan.run.root}",
        f"teacher    {recipe.teacher.model}, {where}",
        f"student    {recipe.student.init}"
        + (f", LoRA r={recipe.student.lora.rank}" if recipe.student.lora else ""),
        f"prompts    {len(plan.prompts.train):,} to learn from, {len(plan.prompts.test):,} to test on"
        + (f", {plan.prompts.leaked:,} left out because they are tested" if plan.prompts.leaked else ""),
        *([f"reading    {plan.reading}"] if plan.reading else []),
        *_more_prompts(recipe, plan),
        *terms_lines(plan.terms),
        *(f"unmet      {line}" for line in plan.unmet),
        *(f"unknown    {line}" for line in plan.unknown),
        f"exchanges  {plan.to_send:,} to send, {plan.answered:,} in the ledger already"
        + (f"; {plan.canaries:,} more to see whether the teacher changes" if plan.canaries else ""),
        *(line for each in plan.prices for line in _teacher_price(recipe, *each)),
        f"cost       {cost}",
        f"asking     {_how_long(recipe, plan)}",
        *_beside(recipe, plan),
        *_what_can_be_decided(plan.foresight),
    ]
    if plan.prompts.broken:
        from stillhouse.collect.prompts import name_broken

        lines.append(f"broken     {len(plan.prompts.broken):,} rows are no prompts and are left out:")
        lines += [f"           {line}" for line in name_broken(plan.prompts.broken)]
    if plan.done:
        lines.append(f"done       {', '.join(plan.done)}")
    return "\n".join(lines)


def _beside(recipe: Recipe, plan: Plan) -> list[str]:
    """What the evaluation asks for beyond the teacher's answers and one student."""
    lines = []
    if (judge := recipe.evaluate.judge) is not None:
        lines.append(f"judge      {judge.model}: {plan.to_judge:,} questions at most, not in the cost above")
    if plan.to_read:
        lines.append(f"reading    {plan.to_read:,} rows at most by the teacher's server, in the cost above")
    if plan.trainings:
        lines.append(f"further    {plan.trainings} more students are trained to compare with")
    return lines


def _what_can_be_decided(foresight: Foresight) -> list[str]:
    """Which share of the teacher's score the test prompts can show to be kept, and what the recipe wants."""
    if foresight.alone is None or foresight.alike is None:
        few = f"{foresight.n:,} test prompts can be scored, in {foresight.groups:,} groups"
        return [f"verdict    none: {few}; {foresight.unscored:,} have no scorer or no reference"]
    lines = [
        f"verdict    {foresight.n:,} test prompts in {foresight.groups:,} groups decide a margin of "
        f"{100 * foresight.alone:.1f} %",
        "           with a chance of 80 %, for a teacher right on 90 % and a student that agrees on 90 %",
    ]
    if foresight.alike > foresight.alone:
        lines.append(f"           ({100 * foresight.alike:.1f} % where prompts of a group are all alike)")
    if foresight.margin is None:
        return [*lines, "           no margin is declared: set `evaluate.margin` before anything is scored"]
    wanted = f"           declared: {100 * foresight.margin:g} %"
    if foresight.alone > foresight.margin:
        return [*lines, f"{wanted}, for which {foresight.needed:,} prompts are needed, more if alike"]
    if foresight.alike > foresight.margin:
        return [*lines, f"{wanted}, decided only if prompts of a group are not too alike"]
    return [*lines, f"{wanted}, which they decide"]


def _more_prompts(recipe: Recipe, plan: Plan) -> list[str]:
    """What comes on top of the prompts of the source's first rows."""
    lines, focus = [], recipe.prompts.focus
    if focus is not None:
        lines.append(f"focus      {len(plan.prompts.further):,} further from the source, after {focus.run}")
        lines += [
            f"           {count:,} more of {family} are not there and can only be grown"
            for family, count in plan.prompts.short.items()
        ]
    if recipe.prompts.landed is not None:
        landed = sum(prompt.family == "deferred" for prompt in plan.prompts.further)
        lines.append(
            f"deferred   {landed:,} prompts that a cascade deferred, by leaf {recipe.prompts.landed}"
        )
    if plan.grown or plan.to_grow:
        lines.append(f"growing    {plan.grown:,} prompts are grown, {plan.to_grow:,} are to come")
    if plan.to_grow:
        lines.append("           what growing them and asking them costs is not known before")
    return lines


def collected_text(collected: dict[str, Any]) -> list[str]:
    """What growing and a focus came to, from the marker of collect."""
    lines = []
    if growth := collected.get("grow"):
        refused = ", ".join(f"{count:,} {reason}" for reason, count in sorted(growth["refused"].items()))
        lines.append(
            f"growing    {growth['grown']:,} of {growth['wanted']:,} prompts; refused: {refused or 'none'}"
        )
        if growth["dry"]:
            lines.append(
                "           it ended early: too few of the last ones were new (grown.parquet says why)"
            )
    if focus := collected.get("focus"):
        for family, of in focus["families"].items():
            wanting = f", {of['wanting']:,} are not to be had" if of["wanting"] else ""
            lines.append(
                f"focus      {of['further']:,} further of {family}: {of['source']:,} from the source, "
                f"{of['grown']:,} grown{wanting}"
            )
        if focus["tested"] != 0:
            where = focus["decided_on"] or "not recorded on which"
            lines.append(f"           decided on prompts that also test this run ({where}):")
            lines.append("           claim nothing by their scores")
    return lines


def focus_lines(recipe: Recipe) -> str:
    """The table that makes the same prompts part of a recipe."""
    focus = recipe.prompts.focus
    assert focus is not None
    further = ", ".join(
        f"{json.dumps(family, ensure_ascii=False)} = {count}" for family, count in focus.further.items()
    )
    return f"[prompts.focus]\nrun = {json.dumps(focus.run)}\nfurther = {{ {further} }}"


def scores_text(finished: Finished, report: str | None) -> str:
    """The verdict in a few lines, where the report is, and the next command."""
    name = finished.run.root.name
    scores = finished.evaluation
    lines = []
    if scores is not None:
        kept = scores.get("retention") or {}
        share = _range(kept.get("value"), kept.get("low"), kept.get("high"))
        lines.append(f"student keeps {share} of the teacher's score")
        lines.append(f"at {_percent(scores.get('flops_ratio'))} of the teacher's FLOPs per answer")
        lines += _ruling_lines(scores.get("verdict") or {})
        lines.append("")
        for system in ("teacher", "student", "student_before", "baseline"):
            entry = scores.get(system) or {}
            figure = _range(entry.get("score"), entry.get("low"), entry.get("high"))
            lines.append(f"  {system.replace('_', ' '):<15} {figure}   n={entry.get('n', 0)}")
        exchanges, seconds = scores.get("exchanges") or {}, scores.get("seconds") or {}
        counted = ", ".join(
            f"{count:,} {kind}" for kind, count in exchanges.items() if count or kind == "sent"
        )
        lines += [
            "",
            f"exchanges  {counted}",
            f"seconds    {', '.join(f'{k} {v:.0f}' for k, v in seconds.items())}",
        ]
    if report is not None:
        lines.append(f"report     {report}")
    release = finished.run.release
    if release.is_dir():
        shown = release.relative_to(Path.cwd()) if release.is_relative_to(Path.cwd()) else release
        lines.append(f"release    {shown}, which anybody can check: stillhouse audit verify {shown}")
    lines.append(f"next       stillhouse chat {name}")
    return "\n".join(lines)


def _ruling_lines(verdict: dict[str, Any]) -> list[str]:
    """The verdict on the declared margin; nothing where none was declared."""
    if verdict.get("margin") is None:
        return []
    margin = f"with a margin of {100 * verdict['margin']:g} %"
    if verdict["ruling"] is None:
        return [f"no verdict {margin}: {verdict['reason']}"]
    if verdict["ruling"] != "not decided":
        return [f"{verdict['ruling']} {margin}"]
    if verdict["more"] is None:
        return [f"not decided {margin}: the share kept stands at the margin itself"]
    return [f"not decided {margin}: about {verdict['more']:,} more prompts needed"]


def _price_record(_: str, known: KnownPrice | None, days_old: int | None) -> dict[str, Any] | None:
    return None if known is None else {**known.record(), "days_old": days_old}


def _teacher_price(recipe: Recipe, model: str, known: KnownPrice | None, days_old: int | None) -> list[str]:
    """Of several teachers each is named above its price."""
    lines = price_lines(known, days_old, recipe.collect.mode == "batch")
    if not recipe.teachers:
        return lines
    lines = lines or ["price      none: nobody sends a bill"]
    return [lines[0].replace("price      ", f"price      {model}: ", 1), *lines[1:]]


def price_lines(known: KnownPrice | None, days_old: int | None, in_batches: bool = False) -> list[str]:
    """The price by which the plan reckons, who told it and when, and a warning where that is long ago."""
    lines = _price_lines(known, days_old)
    if in_batches and known is not None and known.batch is not None:
        lines.insert(1, f"           in batches {known.batch.input:g} in, {known.batch.output:g} out")
    elif in_batches and known is not None:
        lines.insert(1, "           in batches not known: reckoned by these, which is a bound")
    return lines


def _price_lines(known: KnownPrice | None, days_old: int | None) -> list[str]:
    from stillhouse.prices import NO_BILL, OLD, RECIPE

    if known is None:
        return ["price      unknown: not in the recipe, and none recorded for this endpoint and model"]
    if known is NO_BILL:
        return []
    lines = [f"price      US$ {known.price.input:g} in, {known.price.output:g} out, per million tokens"]
    if known.source == RECIPE:
        return [f"{lines[0]}, by the recipe"]
    if known.note:
        lines.append(f"           {known.note}")
    lines.append(f"           read on {known.read_on} at {known.source}")
    if days_old is not None and days_old > OLD:
        lines.append(f"warning    this price was read {days_old} days ago: look there, and give {RECIPE} if")
        lines.append("           it has changed")
    return lines


def money(estimate: Estimate) -> str:
    if estimate.high is None:
        return "unknown"
    if estimate.expected is None:
        bound = f"at most US$ {_dollars(estimate.high)}"
        return f"{bound} (bound from max_tokens; not known better before a first run)"
    if estimate.high == 0:
        return "nothing"
    low, expected, high = map(_dollars, (estimate.low or 0.0, estimate.expected, estimate.high))
    return f"US$ {expected} ({low} to {high})"


def _dollars(amount: float) -> str:
    """With cents, and with as many digits more as a small amount needs to be told from nothing."""
    places = 2 if amount <= 0 else max(2, 1 - math.floor(math.log10(amount)))
    return f"{amount:,.{min(places, 9)}f}"


def _how_long(recipe: Recipe, plan: Plan) -> str:
    if recipe.collect.mode == "batch" and plan.to_send:
        return "in batches, each of which may take up to 24 hours"
    return duration(plan.seconds, plan.slowed_by)


def duration(estimate: Estimate, slowed_by: str) -> str:
    by = f", by collect.{slowed_by}"
    if estimate.expected is None and estimate.low is None:
        return "time unknown before the first answers"
    if estimate.expected is None:
        return f"at least {_seconds(estimate.low)} s{by} (not known better before the first answers)"
    if estimate.high == 0:
        return "nothing left to ask"
    low, expected, high = map(_seconds, (estimate.low, estimate.expected, estimate.high))
    return f"about {expected} s ({low} to {high}){by}"


def _seconds(seconds: float | None) -> str:
    return f"{seconds or 0.0:,.{0 if seconds and seconds >= 10 else 1}f}"


def _estimate(estimate: Estimate) -> dict[str, float | None]:
    return {"low": estimate.low, "expected": estimate.expected, "high": estimate.high}


def _percent(value: float | None) -> str:
    return "unknown" if value is None else f"{100 * value:.1f} %"


def _range(value: float | None, low: float | None, high: float | None) -> str:
    if value is None or low is None or high is None:
        return _percent(value)
    return f"{100 * value:.1f} % ({100 * low:.1f} to {100 * high:.1f})"
