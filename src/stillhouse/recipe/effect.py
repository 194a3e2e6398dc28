"""Settings of [train] that nothing would read, so that no recipe asks for what it does not get."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from stillhouse.recipe.base import Table
from stillhouse.recipe.training import Train

KEPT = ("keep", "head", "draws")


def without_effect(train: Train, reads_there: bool) -> Iterator[tuple[str, str]]:
    """The settings that were changed and change nothing, each with why; `reads_there` says whether [teacher]
    reads the student's tokens at an endpoint.

    One that has its default is let pass wherever it stands: the `recipe.json` of a run states all settings,
    and is a recipe.
    """
    distil, own = train.distil, train.on_policy
    if train.objective == "sequence":
        yield from _changed("train.distil", distil, '`objective = "sequence"` learns text alone')
    if train.objective != "on_policy":
        yield from _changed(
            "train.on_policy", own, f'with `objective = "{train.objective}"` no student writes'
        )
    for table, measure in (("train.distil", distil), ("train.on_policy", own)):
        if measure.divergence != "jensen_shannon":
            yield from _changed(table, measure, f"`{measure.divergence}` has no beta", ["beta"])
        if not measure.divergence.startswith("skew"):
            yield from _changed(table, measure, f"`{measure.divergence}` has no skew", ["skew"])
    if not reads_there:
        why = "it is for a teacher that reads at its `endpoint`, and none does"
        yield from _changed("train.distil", distil, why, ["tokenizer"])
    if distil.targets == "answers" and not reads_there:
        why = '`targets = "answers"` learns what `collect.top_logprobs` asked for'
        yield from _changed("train.distil", distil, why, KEPT)
    elif distil.online:
        yield from _changed("train.distil", distil, "`online` keeps no probabilities", KEPT)
    elif distil.unit == "chunk" and not reads_there:
        yield from _changed("train.distil", distil, '`unit = "chunk"` keeps one for each chunk', KEPT)
    elif distil.keep != "some":
        why = f'`keep = "{distil.keep}"` keeps what tells of every token'
        yield from _changed("train.distil", distil, why, KEPT[1:])


def _changed(
    place: str, table: Table, why: str, names: Sequence[str] | None = None
) -> Iterator[tuple[str, str]]:
    fields = type(table).model_fields
    for name in names or fields:
        if getattr(table, name) != fields[name].default:
            yield f"{place}.{name}", why
