"""`stillhouse guard standing`, `decide` and what belongs to them: accounts that seem to copy the model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stillhouse.cli.options import GUARD, Config, Json, Who, named

if TYPE_CHECKING:
    from stillhouse.gateway.stands import Stands, TakenStep, Term
    from stillhouse.gateway.steps import Steps
    from stillhouse.guard.config import Guard
    from stillhouse.guard.ladder import Standing
    from stillhouse.guard.replaying import Past, Replayed

Account = Annotated[str, typer.Argument(metavar="ACCOUNT", help="As `accounts list` shows it.")]
Reason = Annotated[str, typer.Option(help="Why: recorded, and shown to the customer.")]
Limit = Annotated[int, typer.Option(min=1, help="At most so many.")]
_DAY = 86_400.0


def register(app: typer.Typer) -> None:
    """Give the commands to `stillhouse guard`."""
    app.command("standing")(standing)
    app.command("appeals")(appeals)
    app.command("decide")(decide)
    app.command("declare")(declare)
    app.command("forget")(forget)
    app.command("replay")(replay)
    app.command("answers")(answers)
    app.command("calibrate")(calibrate)


def standing(
    account: Annotated[str | None, typer.Argument(metavar="ACCOUNT", help="Only this one, in full.")] = None,
    limit: Limit = 20,
    config: Config = GUARD,
    as_json: Json = False,
) -> None:
    """Accounts on a step and those with the highest scores; of one account every step and why."""
    from dataclasses import asdict

    from stillhouse.cli import show
    from stillhouse.gateway import stands

    with opened_steps(config) as (settings, steps):
        if account is None:
            rows = stands.overview(steps, limit)
            show.result(list(map(asdict, rows)), _overview_text(rows, settings.detection.mode), as_json)
            return
        told = stands.told(steps, account)
    row = asdict(told)
    lists = ("steps", "reasons")
    lines = [f"{name:<13} {_said(name, value)}" for name, value in row.items() if name not in lists]
    lines += map(_term, told.reasons)
    for step in told.steps:
        lines += ["", *_step_lines(step), f"  ledger: {_leaf(step)}"]
    show.result(row, "\n".join(lines), as_json)


def appeals(config: Config = GUARD, as_json: Json = False) -> None:
    """Appeals that wait for a person, the oldest first."""
    from dataclasses import asdict

    from stillhouse.cli import show
    from stillhouse.gateway import stands

    with opened_steps(config) as (_, steps):
        rows = [stands.taken(steps, step) for step in steps.standings.appeals()]
    lines = [line for row in rows for line in _step_lines(row)]
    show.result(list(map(asdict, rows)), "\n".join(lines) or "none", as_json)


def decide(
    account: Account,
    decision: Annotated[str, typer.Argument(metavar="DECISION", help="review, keep, undo or kill.")],
    reason: Reason = "",
    who: Who = "",
    config: Config = GUARD,
    as_json: Json = False,
) -> None:
    """Put an account to review, turn its appeal down, undo its steps, or stop it after the review."""
    import time

    from stillhouse.errors import UsageError
    from stillhouse.guard.ladder import DECISIONS

    if decision not in DECISIONS:
        known = ", ".join(DECISIONS)
        raise UsageError(f"{decision} is no decision", f"there are {known}", "name one of them")
    with opened_steps(config, account) as (settings, steps):
        done = steps.decide(account, decision, settings.detection, named(who), reason, time.time())
    _show(done, as_json)


def declare(
    account: Account,
    use: Annotated[str, typer.Argument(metavar="USE", help="As the customer says it; none takes it back.")],
    reason: Reason = "",
    who: Who = "",
    config: Config = GUARD,
    as_json: Json = False,
) -> None:
    """Record the use that an account declared: it is then compared with others that declared one."""
    import time

    with opened_steps(config, account) as (_, steps):
        said = "" if use == "none" else use[:64]
        done = steps.declare(account, said, named(who), reason, time.time())
    _show(done, as_json)


def forget(
    account: Account, reason: Reason = "", who: Who = "", config: Config = GUARD, as_json: Json = False
) -> None:
    """Erase what is known of an account's requests, its steps and its standing."""
    import time

    from stillhouse.cli import show

    with opened_steps(config) as (_, steps):
        complete = steps.forget(account, named(who), reason, time.time())
    said = "" if complete else "\nagain      another process was reading: give the order once more"
    show.result({"account": account, "complete": complete}, f"forgotten  {account}{said}", as_json)


def replay(
    file: Annotated[
        Path | None,
        typer.Argument(metavar="FILE", help="JSONL of requests; without it, requests whose text was kept."),
    ] = None,
    days: Annotated[float, typer.Option(help="Without FILE: of the last so many.")] = 31.0,
    config: Config = GUARD,
    as_json: Json = False,
) -> None:
    """What would have been done to the traffic of the past. Nothing is recorded, and nothing done."""
    import os

    from stillhouse.cli import show
    from stillhouse.gateway.store.place import evidence_key, pepper_of
    from stillhouse.guard.lines import read_lines
    from stillhouse.guard.reading import read_config
    from stillhouse.guard.replaying import replay as replayed

    settings = read_config(config)
    pepper = pepper_of(settings.store, os.environ)
    lines = read_lines(settings.detection.thresholds)
    done = replayed(_past(file, settings, pepper, days), evidence_key(pepper), lines, settings.detection)
    show.result(_replay_object(done, lines.source), "\n".join(_replay_lines(done, lines.source)), as_json)


def calibrate(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where to write the thresholds.")],
    month: Annotated[str, typer.Option(metavar="MONTH", help="As 2026-10 (UTC); by default the last.")] = "",
    flag: Annotated[float, typer.Option(help="Of ordinary accounts a month, flagged at most.")] = 0.01,
    kill: Annotated[float, typer.Option(help="And above the line for a kill.")] = 0.001,
    config: Config = GUARD,
    as_json: Json = False,
) -> None:
    """Set the thresholds by what your own accounts reached in a month. Stopped accounts are left out."""
    from stillhouse.cli import show
    from stillhouse.errors import UsageError
    from stillhouse.guard.lines import as_toml, calibrated, promises
    from stillhouse.workspace import write_atomic

    for name, value in (("flag", flag), ("kill", kill)):
        if not 0.0 < value < 1.0:
            raise UsageError(f"--{name} {value} is no share", "it lies between 0 and 1", "write --flag 0.01")
    number, named = _month(month)
    with opened_steps(config) as (_, steps):
        reached = steps.standings.highest(number)
    if not reached:
        raise UsageError(
            f"nothing is known of {named}",
            "no request of that month was looked at",
            "let the gateway run in shadow for a month, or name another one",
        )
    lines = calibrated(
        [score for _, score, declared in reached if not declared],
        [score for _, score, declared in reached if declared],
        f"own accounts, {named}",
        flag,
        kill,
    )
    write_atomic(file, as_toml(lines).encode())
    said = [
        f"thresholds {file}",
        *promises(lines),
        "",
        "on average over calibrations, and for accounts like these: another kind of customer, a new model or",
        "another season breaks it. Accounts that copied and were not stopped raise the lines.",
        f'next       [detection] thresholds = "{file}"',
    ]
    show.result({"thresholds": str(file), **lines.model_dump()}, "\n".join(said), as_json)


@contextmanager
def opened_steps(config: Path, account: str | None = None) -> Iterator[tuple[Guard, Steps]]:
    """The settings and the steps; of an account that is there, where one is named."""
    import os

    from stillhouse.gateway.steps import Steps
    from stillhouse.gateway.store.place import pepper_of
    from stillhouse.gateway.store.register import Register
    from stillhouse.guard.reading import read_config

    settings = read_config(config)
    if account is not None:
        register = Register(settings.store, pepper_of(settings.store, os.environ))
        try:
            register.account(account)
        finally:
            register.close()
    steps = Steps(settings.store)
    try:
        yield settings, steps
    finally:
        steps.close()


def _overview_text(rows: list[Stands], mode: str) -> str:
    lines = [f"mode {mode}; scores are at most half a minute old", "", *map(stands_line, rows)]
    return "\n".join(lines) if rows else f"mode {mode}; no account is known"


def stands_line(row: Stands) -> str:
    score = "      -" if row.score is None else f"{row.score:7.3f}"
    asked = "-" if row.requests is None else f"{row.requests:,}"
    notes = ["in shadow"] if row.shadow and row.rung != "observe" else []
    notes += ["APPEAL OPEN"] if row.appeal else []
    return f"{row.account:<24} {row.rung:<9}{score} {asked:>9}  {row.code} {' '.join(notes)}".rstrip()


def _step_lines(step: TakenStep) -> list[str]:
    shadow = " (in shadow)" if step.shadow and step.act in ("step", "lapse") else ""
    moved = f"{step.was} -> {step.rung}" if step.was != step.rung else step.rung
    lines = [f"{stamp(step.at)}  {step.act} by {step.who}: {moved}{shadow}  {step.code}"]
    lines += [f"  {step.account}"] if step.act == "appeal" else []
    lines += [f"  {_term(each)}" for each in step.reasons]
    return lines + ([f"  said: {step.said}"] if step.said else [])


def _term(each: Term) -> str:
    return f"{each.adds:+.3f}  {each.words}: {each.found:.2f}, ordinary {each.ordinary:.2f}"


def _leaf(step: TakenStep) -> str:
    return f"leaf {step.leaf}" if step.witness == "shown" else f"NOT SHOWN: {step.witness}"


def _show(done: Standing, as_json: bool) -> None:
    from stillhouse.cli import show

    lines = [f"{name:<13} {_said(name, value)}" for name, value in done._asdict().items()]
    show.result(done._asdict(), "\n".join(lines), as_json)


def _said(name: str, value: Any) -> str:
    if name in ("since", "alarmed", "spared_until"):
        return stamp(value) if value else "-"
    if isinstance(value, list):
        value = ", ".join(map(str, value))
    return "-" if value in ("", None, 0) and value is not False else str(value)


def stamp(at: float) -> str:
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M:%S}"


def _month(text: str) -> tuple[int, str]:
    """Months since January 1970, and the name of the month."""
    import time

    from stillhouse.guard.invoices import days_of
    from stillhouse.guard.likeness import month_of

    number = month_of(days_of(text)[0]) if text else month_of(int(time.time() // _DAY)) - 1
    return number, f"{1970 + number // 12}-{number % 12 + 1:02}"


def _past(file: Path | None, settings: Guard, pepper: bytes, days: float) -> Iterable[Past | str]:
    import time

    from stillhouse.errors import UsageError, storage
    from stillhouse.gateway.kept import kept_requests
    from stillhouse.gateway.store.place import sealing_key
    from stillhouse.guard.replaying import past_requests

    if file is None:
        yield from kept_requests(settings.store, sealing_key(pepper), time.time() - days * _DAY)
        return
    if not file.is_file():
        raise UsageError(f"there is no file {file}", "it was named on the command line", "name another one")
    with storage("read", file), file.open("rb") as lines:
        yield from past_requests(lines)


def answers(
    account: Account,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The file to write, JSONL.")],
    days: Annotated[float, typer.Option(min=0, help="Of the last so many days.")] = 31.0,
    config: Config = GUARD,
    as_json: Json = False,
) -> None:
    """Write what an account was answered, where its text was kept, with the keys that marked it."""
    import json
    import os
    import time
    from collections import Counter

    from stillhouse.cli import show
    from stillhouse.errors import UsageError, storage
    from stillhouse.gateway.kept import kept_answers
    from stillhouse.gateway.store.place import pepper_of, sealing_key
    from stillhouse.guard.reading import read_config
    from stillhouse.workspace import write_private

    settings = read_config(config)
    sealing = sealing_key(pepper_of(settings.store, os.environ))
    if file.exists():
        raise UsageError(f"{file} is there already", "it would be overwritten", "name another file")
    left: Counter[str] = Counter()
    rows = []
    for row in kept_answers(settings.store, sealing, time.time() - days * _DAY, account):
        if isinstance(row, str):
            left[row] += 1
        else:
            rows.append(row)
    with storage("write", file):
        write_private(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())
    marked = sum(bool(row["marked"]) for row in rows)
    lines = [f"answers    {len(rows):,}, {marked:,} of them marked: {file}"]
    lines += [f"left out   {count:,}: {why}" for why, count in left.items()]
    show.result(
        {"answers": len(rows), "marked": marked, "left_out": left, "file": str(file)},
        "\n".join(lines),
        as_json,
    )


def _replay_object(done: Replayed, source: str) -> dict[str, Any]:
    from dataclasses import asdict

    from stillhouse.gateway.stands import month_named
    from stillhouse.guard.ladder import RUNGS

    return {
        "requests": done.requests,
        "accounts": len(done.highest),
        "skipped": dict(done.skipped),
        "thresholds": source,
        "clusters": [
            {"month": month_named(month)} | asdict(cluster)
            for month, found in done.found.items()
            for cluster in found.clusters
        ],
        "rungs": {rung: [each._asdict() for each in done.on(rung)] for rung in RUNGS[1:]},
        "highest": {account: round(score, 4) for account, score in sorted(done.highest.items())},
    }


def _replay_lines(done: Replayed, source: str) -> list[str]:
    from collections import Counter

    from stillhouse.gateway.stands import month_named
    from stillhouse.guard.clusters import in_words as cluster_words
    from stillhouse.guard.ladder import RUNGS

    lines = [
        f"{done.requests:,} requests of {len(done.highest):,} accounts, by the thresholds of {source}",
        *(f"{count:,} rows were not looked at: {why}" for why, count in done.skipped.items()),
        "",
        "rung       accounts  first                why",
    ]
    for rung in RUNGS[1:]:
        taken = done.on(rung)
        codes = ", ".join(f"{code} {n:,}" for code, n in Counter(each.code for each in taken).most_common())
        first = stamp(taken[0].at) if taken else "-"
        lines.append(f"{rung:<9} {len(taken):>9,}  {first:<19}  {codes}".rstrip())
    for month, found in done.found.items():
        lines += [
            "",
            f"{month_named(month)}: {len(found.clusters)} clusters among {found.compared:,} accounts; "
            f"{found.too_few:,} asked too little to be compared",
        ]
        for cluster in found.clusters:
            lines += [f"  {cluster_words(cluster)}", f"  {', '.join(cluster.accounts)}"]
    for each in done.on("notify")[:10]:
        lines += ["", f"{each.account} at its request {each.request:,} ({each.score:.2f})", f"  {each.why}"]
    return lines
