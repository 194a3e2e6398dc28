"""Views of a run's targets for `stillhouse targets`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from stillhouse.collect.targets import TargetTally, total
from stillhouse.collect.taught import Taught, need_taught, read_taught
from stillhouse.errors import LedgerError
from stillhouse.ledger.targets import SUFFIX, Binding, TargetReader, holds_chunks, verify_shard
from stillhouse.ledger.targets.measure import Measured, measure
from stillhouse.workspace import RunFolder, Workspace


def info(workspace: Workspace, run: RunFolder) -> tuple[dict[str, Any], str]:
    """Of what came with the answers, and of what the teacher said when it read the training rows; every byte
    of the run's shards is read. Raises UsageError for a run without targets, LedgerError for a shard that is
    missing, damaged or bound otherwise."""
    captured = _captured(workspace, run)
    taught = [*((read_taught(run) or []) if captured else need_taught(run)), *captured]
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


def _captured(workspace: Workspace, run: RunFolder) -> list[Taught]:
    """The shards that training wrote, where it has."""
    try:
        said = json.loads(run.captured.read_bytes())
        binding, shards = Binding(**said["binding"]), list(said["shards"])
    except FileNotFoundError:
        return []
    except (ValueError, LookupError, TypeError) as error:
        raise LedgerError(
            f"{run.captured} is damaged",
            f"it does not say which shards the teacher filled ({type(error).__name__}: {error})",
            "delete it and train again: what a server read is in the ledger, and is not asked again",
        ) from None
    rows = sum(len(shard.sample_ids) for shard in TargetReader(workspace.targets, shards, binding).shards)
    return [Taught(binding, (TargetTally(rows=rows, with_targets=rows, shards=shards),))]


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
    kept = f"the {bound.head} likeliest{drawn}"
    if holds_chunks(bound):
        kept = "how likely each chunk is"
    elif bound.width:
        numbers = f"{bound.width:,} numbers in {bound.dtype}, rounded to that at most"
        kept = f"none: vectors of {numbers}, for the head {bound.readout[:12]}"
    elif bound.whole:
        kept = "none: whole distributions"
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
