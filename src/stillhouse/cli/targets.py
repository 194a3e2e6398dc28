"""Views of a run's targets for `stillhouse targets`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from stillhouse.collect.targets import TargetTally, total
from stillhouse.collect.taught import Taught, need_taught
from stillhouse.ledger.targets import SUFFIX, TargetReader, holds_chunks, verify_shard
from stillhouse.ledger.targets.measure import Measured, measure
from stillhouse.workspace import RunFolder, Workspace


def info(workspace: Workspace, run: RunFolder) -> tuple[dict[str, Any], str]:
    """Every byte of the run's shards is read. Raises UsageError for a run without targets, LedgerError for a
    shard that is missing, damaged or bound otherwise."""
    taught = need_taught(run)
    readers = [TargetReader(workspace.targets, one.tally.shards, one.binding) for one in taught]
    for shard in (shard for reader in readers for shard in reader.shards):
        verify_shard(shard.path)
    teachers = [
        {"binding": asdict(one.binding), "shards": [s.path.stem for s in reader.shards]}
        | _figures(measure([reader]), one.tally)
        for one, reader in zip(taught, readers, strict=True)
    ]
    whole = _figures(measure(readers), total(one.tally for one in taught))
    found = {"run": run.root.name, "folder": str(workspace.targets), **whole, "teachers": teachers}
    lines = [f"run        {run.root.name}", *_lines(whole)]
    for one, figures in zip(taught, teachers, strict=True):
        lines += _who(one)
        lines += [f"           {digest}{SUFFIX}" for digest in figures["shards"]]
        lines += [f"  {line}" for line in _lines(figures)] if len(teachers) > 1 else []
    return found, "\n".join(lines)


def tally_text(teachers: list[dict[str, Any]]) -> list[str]:
    """What collecting says of the targets that it wrote, from its marker."""
    lines = []
    for one in teachers:
        without = sum(one["reasons"].values())
        lines.append(
            f"targets    {one['rows']:,} answers of {one['teacher']}, {one['known']:,} of "
            f"{one['positions']:,} tokens with targets, {one['bytes_per_token']:.1f} bytes a token"
        )
        if without:
            lines.append(f"           {without:,} without any: {_counted(one['reasons'])}")
        if one["counts"]:
            lines.append(f"           by rule: {_counted(one['counts'])}")
    return lines


def _figures(measured: Measured, tally: TargetTally) -> dict[str, Any]:
    """`rows` are those of the shards, `answers` all that were to have one."""
    return {
        **asdict(measured),
        "answers": tally.rows,
        "with_targets": tally.with_targets,
        "without_targets": dict(tally.reasons),
        "rules": dict(tally.counts),
        "bytes_per_token": measured.bytes / measured.positions if measured.positions else None,
        "coverage": tally.coverage if measured.positions else None,
        "mass_mapped": tally.mass_mapped if tally.given else None,
    }


def _lines(of: Mapping[str, Any]) -> list[str]:
    per = of["bytes_per_token"]
    return [
        f"rows       {of['rows']:,} of {of['answers']:,} answers; {of['with_targets']:,} have targets",
        f"tokens     {of['positions']:,}, of which {_share(of['coverage'])} have targets",
        f"size       {of['bytes']:,} bytes, {'unknown' if per is None else format(per, '.1f')} a token",
        f"kept mass  {_number(of['kept'])} mean, {_number(of['kept_p10'])} at the lowest tenth",
        f"mapped     {_share(of['mass_mapped'])} of what the teacher named became ids of the student",
        f"bias       at most {_number(of['bias'])} (total variation of a gradient: the mass of the tail)",
        f"variance   {_number(of['variance'])} of drawing",
        f"without    {_counted(of['without_targets'])}",
        f"by rule    {_counted(of['rules'])}",
    ]


def _who(one: Taught) -> list[str]:
    bound = one.binding
    drawn = f" and {bound.draws} drawn" if bound.draws else " and the tail" if bound.head else ""
    kept = "how likely each chunk is" if holds_chunks(bound) else f"the {bound.head} likeliest{drawn}"
    revision, engine = bound.revision or "not declared", bound.engine or "unknown"
    return [
        f"teacher    {bound.teacher}, revision {revision}, at {engine}",
        f"tokenizer  {bound.tokenizer} ({bound.vocabulary:,} ids)",
        f"template   {bound.template or 'none'}",
        f"estimator  {kept}",
    ]


def _share(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.1%}"


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.4f}"


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in sorted(counts.items())) or "none"
