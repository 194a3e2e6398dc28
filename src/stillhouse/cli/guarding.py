"""`stillhouse guard`: serve a model behind limits, and look after its organisations, accounts and keys."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stillhouse.cli import guard_clusters, guard_ladder, guard_price, guard_proof, guard_signals, guard_usage
from stillhouse.cli.options import GUARD, Config, Json, Who, named

if TYPE_CHECKING:
    from pydantic import BaseModel

    from stillhouse.gateway.store.register import Register
    from stillhouse.guard.config import Guard

guard_app = typer.Typer(rich_markup_mode=None)  # its help stands in `later.py`
organisations_app = typer.Typer(rich_markup_mode=None, help="The organisations that accounts belong to.")
accounts_app = typer.Typer(rich_markup_mode=None, help="The customers of a served model.")
keys_app = typer.Typer(rich_markup_mode=None, help="The keys of accounts.")
guard_app.add_typer(organisations_app, name="organisations")
guard_app.add_typer(accounts_app, name="accounts")
guard_app.add_typer(keys_app, name="keys")
guard_app.add_typer(guard_signals.signals_app, name="signals")
guard_usage.register(guard_app)
guard_proof.register(guard_app)
guard_price.register(guard_app)
guard_ladder.register(guard_app)
guard_clusters.register(guard_app)

ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG", help="The settings, a TOML file.")]
_NONE = object()  # said to be none, where None is not said
Id = Annotated[str, typer.Argument(metavar="ID", help="As `list` shows it.")]
Reason = Annotated[str, typer.Option(help="Why: recorded, and needed where it harms somebody.")]
Search = Annotated[str, typer.Option(help="Only those with this in their name, or with this id.")]
After = Annotated[str, typer.Option(metavar="ID", help="Only those after this id.")]
Limit = Annotated[int, typer.Option(help="At most so many.")]
LimitsOption = Annotated[
    list[str] | None,
    typer.Option("--limit", metavar="NAME=NUMBER", help="As requests_per_minute=60; all that shall hold."),
]

STARTER = """\
# The guard of a served model. Every setting: docs/guard-settings.md.
# Before `stillhouse guard serve`: export STILLHOUSE_ADMIN_SECRET="$(openssl rand -base64 32)"
[server]
host = "127.0.0.1"                 # others need a server that speaks TLS in front
port = 8700

[store]
folder = ".stillhouse/guard"       # accounts, counts and events of this machine
# database = "postgresql://USER@HOST/DATABASE"     # that several replicas share
# redis = "redis://HOST:6379/0"
# pepper_env = "STILLHOUSE_PEPPER"

[[models]]
name = "first"                     # as customers call it
# price = "standard"
max_output_tokens = 4096

[[models.upstreams]]               # vLLM, Ollama, `stillhouse serve`, or an API
url = "http://127.0.0.1:11434/v1"
model = "llama3.2"                 # as it is called there
# key_env = "UPSTREAM_KEY"

[tiers.default]
models = ["*"]
limits = { requests_per_minute = 60, output_tokens_per_day = 1_000_000, concurrent = 8 }
# budget = 20.0                    # US dollars a month

# [prices.standard]
# steps = [{ input = 0.10, output = 0.40 }]        # US dollars per million tokens

# [terms]
# version = "2026-01"
# document = "terms.txt"
# training = "with_permission"
# must_accept = true

# Who seems to copy the model: looked at, and nothing done (docs/guard-ladder.md).
# [detection]
# mode = "shadow"                  # off, shadow, enforce
"""


@guard_app.command("init")
def init(
    file: Annotated[Path, typer.Argument(metavar="CONFIG", help="The file to write.")] = GUARD,
    as_json: Json = False,
) -> None:
    """Write settings to begin with, for a model that is served on this machine."""
    from stillhouse.cli import show
    from stillhouse.errors import UsageError, storage

    if file.exists():
        raise UsageError(f"{file} is there already", "it would be overwritten", "name another file")
    with storage("write", file):
        file.write_text(STARTER)
    show.result(
        {"config": str(file)}, f"settings   {file}\nnext       stillhouse guard check {file}", as_json
    )


@guard_app.command("serve")
def serve(config: ConfigFile = GUARD) -> None:
    """Serve the models of the settings until SIGTERM."""
    from stillhouse.gateway import serve as serve_guard
    from stillhouse.guard.reading import read_config

    serve_guard(
        read_config(config),
        lambda: read_config(config),
        lambda url: typer.echo(f"serving at {url}", err=True),
    )


@guard_app.command("check")
def check(config: ConfigFile = GUARD, as_json: Json = False) -> None:
    """Check the settings and this machine and, where there are accounts already, their tiers."""
    import os
    from dataclasses import asdict

    from stillhouse.cli import show
    from stillhouse.guard.reading import check as check_config
    from stillhouse.guard.reading import read_config, unknown_tiers

    settings = read_config(config)
    findings = check_config(settings, os.environ)
    errors = sum(finding.level == "error" for finding in findings)
    if not errors and (settings.store.database or (Path(settings.store.folder) / "accounts.db").exists()):
        with _opened(settings) as (register, _):
            findings += unknown_tiers(settings, register.tiers())
    errors = sum(finding.level == "error" for finding in findings)
    lines = [f"{one.level:<8} {one.where}: {one.what}\n{'':<8} {one.mend}" for one in findings]
    lines.append(f"{config}: {errors} errors, {len(findings) - errors} warnings")
    show.result({"ok": not errors, "findings": [asdict(one) for one in findings]}, "\n".join(lines), as_json)
    if errors:
        raise typer.Exit(1)


@guard_app.command("changes")
def changes(
    subject: Annotated[str | None, typer.Option(help="Only of this one, as account:ID.")] = None,
    after: Annotated[int, typer.Option(help="Only those after this number.")] = 0,
    limit: Limit = 100,
    config: Config = GUARD,
    as_json: Json = False,
) -> None:
    """Who changed what and why, oldest first."""
    _do("list_changes", config, as_json, {"subject": subject, "after": after, "limit": limit})


@organisations_app.command("add")
def organisations_add(
    name: Annotated[str, typer.Argument(metavar="NAME")],
    limits: LimitsOption = None,
    who: Who = "",
    config: Config = GUARD,
    as_json: Json = False,
) -> None:
    """Add an organisation; its limits are over all of its accounts."""
    _do("add_organisation", config, as_json, {"name": name, "limits": _limits(limits)}, who=who)


@organisations_app.command("list")
def organisations_list(
    search: Search = "", after: After = "", limit: Limit = 100, config: Config = GUARD, as_json: Json = False
) -> None:
    """Print organisations."""
    _do("list_organisations", config, as_json, {"search": search, "after": after, "limit": limit})


@organisations_app.command("set")
def organisations_set(
    id: Id,
    name: Annotated[str | None, typer.Option(help="Another name.")] = None,
    limits: LimitsOption = None,
    reason: Reason = "",
    who: Who = "",
    config: Config = GUARD,
    as_json: Json = False,
) -> None:
    """Change an organisation's name or limits."""
    order = {"name": name, "limits": _limits(limits), "reason": reason}
    _do("change_organisation", config, as_json, order, id, who)


@accounts_app.command("add")
def accounts_add(
    name: Annotated[str, typer.Argument(metavar="NAME")],
    organisation: Annotated[str | None, typer.Option(metavar="ID", help="Of which it is one.")] = None,
    tier: Annotated[str, typer.Option(help="One of the settings' tiers.")] = "default",
    budget: Annotated[str | None, typer.Option(metavar="USD", help="US dollars a month, or none.")] = None,
    limits: LimitsOption = None,
    consent: Annotated[bool, typer.Option("--consent", help="It agreed that its texts may be kept.")] = False,
    who: Who = "",
    config: Config = GUARD,
    as_json: Json = False,
) -> None:
    """Add an account."""
    order = {"name": name, "organisation": organisation, "tier": tier, "budget": _number(budget)}
    order |= {"limits": _limits(limits), "consent": consent}
    _do("add_account", config, as_json, order, who=who)


@accounts_app.command("list")
def accounts_list(
    search: Search = "",
    organisation: Annotated[str | None, typer.Option(metavar="ID", help="Only of this one.")] = None,
    after: After = "",
    limit: Limit = 100,
    config: Config = GUARD,
    as_json: Json = False,
) -> None:
    """Print accounts."""
    page = {"search": search, "organisation": organisation, "after": after, "limit": limit}
    _do("list_accounts", config, as_json, page)


@accounts_app.command("set")
def accounts_set(
    id: Id,
    name: Annotated[str | None, typer.Option(help="Another name.")] = None,
    tier: Annotated[str | None, typer.Option(help="One of the settings' tiers.")] = None,
    budget: Annotated[str | None, typer.Option(metavar="USD", help="US dollars a month, or none.")] = None,
    limits: LimitsOption = None,
    consent: Annotated[bool | None, typer.Option("--consent/--no-consent", help="May texts be kept?")] = None,
    reason: Reason = "",
    who: Who = "",
    config: Config = GUARD,
    as_json: Json = False,
) -> None:
    """Change an account's name, tier, budget, limits or consent."""
    order = {
        "name": name,
        "tier": tier,
        "budget": _number(budget),
        "limits": _limits(limits),
        "consent": consent,
    }
    _do("change_account", config, as_json, order | {"reason": reason}, id, who)


@accounts_app.command("pay")
def accounts_pay(
    id: Id,
    amount: Annotated[str, typer.Argument(metavar="USD", help="US dollars; below 0: paid back.")],
    reference: Annotated[str, typer.Option(help="Names the payment, which counts once.")],
    reason: Reason = "",
    who: Who = "",
    config: Config = GUARD,
    as_json: Json = False,
) -> None:
    """Add to what an account paid in."""
    order = {"amount": amount, "reference": reference, "reason": reason}
    _do("pay_in", config, as_json, order, id, who)


@accounts_app.command("payments")
def accounts_payments(id: Id, config: Config = GUARD, as_json: Json = False) -> None:
    """Print what an account paid in."""
    _do("list_payments", config, as_json, {}, id)


@accounts_app.command("accept-terms")
def accounts_accept_terms(
    id: Id,
    version: Annotated[str, typer.Option(help="The present version.")],
    who: Who = "",
    config: Config = GUARD,
    as_json: Json = False,
) -> None:
    """Record that an account accepted the terms."""
    _do("accept_terms", config, as_json, {"version": version}, id, who)


@accounts_app.command("agree-training")
def accounts_agree_training(
    id: Id,
    version: Annotated[str, typer.Option(help="The present version of the terms.")],
    reason: Reason = "",
    who: Who = "",
    config: Config = GUARD,
    as_json: Json = False,
) -> None:
    """Record that an account agreed that models may be trained on its texts."""
    _do("agree_training", config, as_json, {"version": version, "reason": reason}, id, who)


@accounts_app.command("training")
def accounts_training(id: Id, config: Config = GUARD, as_json: Json = False) -> None:
    """Print when an account agreed to training, and took that back."""
    _do("list_agreements", config, as_json, {}, id)


@accounts_app.command("erase-texts")
def accounts_erase_texts(
    id: Id, reason: Reason = "", who: Who = "", config: Config = GUARD, as_json: Json = False
) -> None:
    """Erase the prompts and answers that were kept of an account; its events and usage stay."""
    _do("erase_texts", config, as_json, {"reason": reason}, id, who)


@keys_app.command("add")
def keys_add(
    account: Annotated[str, typer.Argument(metavar="ACCOUNT", help="The id of its account.")],
    name: Annotated[str, typer.Option(help="What it is for.")] = "",
    models: Annotated[list[str] | None, typer.Option("--model", help="Only these, or such.")] = None,
    days: Annotated[str | None, typer.Option(help="It expires after so many, or none.")] = None,
    limits: LimitsOption = None,
    who: Who = "",
    config: Config = GUARD,
    as_json: Json = False,
) -> None:
    """Add a key and print its secret, which is kept nowhere."""
    order = {"name": name, "models": models, "expires": _in_days(days), "limits": _limits(limits)}
    _do("add_key", config, as_json, order, account, who)


@keys_app.command("list")
def keys_list(
    search: Annotated[str, typer.Option(help="Part of a name, an id, or the beginning of the secret.")] = "",
    account: Annotated[str | None, typer.Option(metavar="ID", help="Only of this one.")] = None,
    after: After = "",
    limit: Limit = 100,
    config: Config = GUARD,
    as_json: Json = False,
) -> None:
    """Print keys, without their secrets."""
    page = {"search": search, "account": account, "after": after, "limit": limit}
    _do("list_keys", config, as_json, page)


@keys_app.command("set")
def keys_set(
    id: Id,
    name: Annotated[str | None, typer.Option(help="What it is for.")] = None,
    models: Annotated[list[str] | None, typer.Option("--model", help="Only these, or such.")] = None,
    days: Annotated[str | None, typer.Option(help="It expires after so many, or none.")] = None,
    limits: LimitsOption = None,
    reason: Reason = "",
    who: Who = "",
    config: Config = GUARD,
    as_json: Json = False,
) -> None:
    """Change a key's name, models, expiry or limits."""
    order = {"name": name, "models": models, "expires": _in_days(days), "limits": _limits(limits)}
    _do("change_key", config, as_json, order | {"reason": reason}, id, who)


@keys_app.command("rotate")
def keys_rotate(
    id: Id,
    grace_hours: Annotated[float, typer.Option(help="For so long the old secret goes on.")] = 24.0,
    reason: Reason = "",
    who: Who = "",
    config: Config = GUARD,
    as_json: Json = False,
) -> None:
    """Give a key a new secret and print that."""
    _do("rotate_key", config, as_json, {"grace_seconds": grace_hours * 3600, "reason": reason}, id, who)


def _showing(kind: str) -> Callable[..., None]:
    def command(id: Id, config: Config = GUARD, as_json: Json = False) -> None:
        _do(f"show_{kind}", config, as_json, {}, id)

    return command


def _ordering(verb: str, kind: str) -> Callable[..., None]:
    def command(
        id: Id, reason: Reason = "", who: Who = "", config: Config = GUARD, as_json: Json = False
    ) -> None:
        _do(f"{verb}_{kind}", config, as_json, {"reason": reason}, id, who)

    return command


accounts_app.command("withdraw-training", help="Record that an account took its consent to training back.")(
    _ordering("withdraw", "training")
)
for _group, _kind, _end in (
    (organisations_app, "organisation", "close"),
    (accounts_app, "account", "close"),
    (keys_app, "key", "revoke"),
):
    _group.command("show", help=f"Print one {_kind}.")(_showing(_kind))
    for _verb, _says in (
        ("block", f"Refuse what the {_kind} asks from now on, within a second everywhere."),
        ("unblock", f"Let the {_kind} ask again."),
        (_end, f"{_end.capitalize()} the {_kind}, for ever."),
    ):
        _group.command(_verb, help=_says)(_ordering(_verb, _kind))


def _do(name: str, path: Path, as_json: bool, given: dict[str, Any], id: str = "", who: str = "") -> None:
    """One operation on the register of the settings at `path`. What is None is not given."""
    import time
    from functools import partial

    from stillhouse.cli import show
    from stillhouse.cli.guard_show import plain, text
    from stillhouse.gateway.operations import BY_NAME, Desk
    from stillhouse.gateway.steps import forget_in
    from stillhouse.gateway.store.changing import Act
    from stillhouse.gateway.texts import erase_in
    from stillhouse.guard.reading import read_config

    operation = BY_NAME[name]
    order = None
    if operation.order is not None:
        said = {field: value for field, value in given.items() if value is not None}
        order = _order(operation.order, {f: None if v is _NONE else v for f, v in said.items()})
    settings = read_config(path)
    with _opened(settings) as (register, pepper):
        act = Act(named(who), time.time(), given.get("reason", ""))
        desk = Desk(
            register,
            settings,
            pepper,
            partial(erase_in, settings.store),
            partial(forget_in, settings.store),
        )
        done = operation.run(desk, id, order, act)
    show.result(plain(done), text(done), as_json)


def _order(model: type[BaseModel], values: dict[str, Any]) -> BaseModel:
    from pydantic import ValidationError

    from stillhouse.errors import UsageError

    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = " ".join(map(str, first["loc"])).replace("_", " ")
        raise UsageError(
            f"{where or 'this'} is not usable", first["msg"], "add --help to see its form"
        ) from None


@contextmanager
def _opened(settings: Guard) -> Iterator[tuple[Register, bytes]]:
    import os

    from stillhouse.gateway.store.place import pepper_of
    from stillhouse.gateway.store.register import Register

    pepper = pepper_of(settings.store, os.environ)
    register = Register(settings.store, pepper)
    try:
        yield register, pepper
    finally:
        register.close()


def _limits(given: list[str] | None) -> dict[str, Any] | None:
    """`["requests_per_minute=60"]` as a table; `["none"]` is the empty one."""
    from stillhouse.errors import UsageError

    if given is None:
        return None
    limits: dict[str, Any] = {}
    for one in given:
        name, equals, number = one.partition("=")
        if one != "none" and not (equals and number.isdecimal()):
            raise UsageError(f"{one} is no limit", "it is not NAME=NUMBER", "write requests_per_minute=60")
        if one != "none":
            limits[name] = int(number)
    return limits


def _number(given: str | None) -> Any:
    """A number, or what takes it away."""
    return _NONE if given == "none" else given


def _in_days(given: str | None) -> Any:
    import time

    from stillhouse.errors import UsageError

    if given is None or given == "none":
        return _number(given)
    try:
        return time.time() + 86_400 * float(given)
    except ValueError:
        raise UsageError(
            f"{given} is no number of days", "days are counted from now", "write --days 30, or --days none"
        ) from None
