"""The pages that only show."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, TypeVar
from urllib.parse import urlencode, urlsplit

from markupsafe import Markup
from starlette.responses import HTMLResponse, RedirectResponse, Response

from stillhouse.gateway.console.charts import Series, Stretches, bars, meter
from stillhouse.gateway.console.shown import compact, environment, money
from stillhouse.gateway.console.traffic import SPANS, Server, first_minute, verdict
from stillhouse.gateway.console.traffic import overview as overview_of
from stillhouse.gateway.console.visit import Visit, page
from stillhouse.gateway.operations import BY_NAME, Desk
from stillhouse.gateway.state import Gateway
from stillhouse.gateway.store.changing import Act
from stillhouse.gateway.store.counts import StoreDown
from stillhouse.gateway.store.events import SEARCHED, Place, Sought
from stillhouse.gateway.store.register import Register
from stillhouse.gateway.store.rows import NotThere
from stillhouse.guard.accounts import BEGINNING, STANDINGS, Account, Key, Organisation
from stillhouse.guard.config import Limits
from stillhouse.guard.events import Part, Usage
from stillhouse.guard.limits import Limit
from stillhouse.guard.subjects import account_limits, limits_of, overridden

Answer = TypeVar("Answer")

ROWS = 50
SOME = 10
DAYS = 30
DAY = 86_400
LIVE_SECONDS = 1.0  # what is live is drawn once for all who look at it
PREFIX = len(BEGINNING) + 6
ENDS = ("whole", "client_left", "upstream_cut", "refused", "failed")
NUMBER = re.compile(r"[0-9]{1,18}")
PLACE = re.compile(r"([0-9]{1,18})-([0-9]{1,18})")


@dataclass(frozen=True, slots=True)
class Use:
    """Of a limit what is used now, with its bar."""

    limit: Limit
    used: int
    bar: Markup


# Overview


async def overview(visit: Visit) -> Response:
    return page(visit, "overview.html", live=Markup(await _live(visit)), span=_span(visit))


async def live(visit: Visit) -> Response:
    """What of the overview changes, for the script."""
    return HTMLResponse(await _live(visit))


async def _live(visit: Visit) -> str:
    console, gateway, span = visit.console, visit.gateway, SPANS[_span(visit)]
    drawn = console.drawn.get(span.name)
    if drawn is not None and 0 <= visit.at - drawn[0] < LIVE_SECONDS:
        return drawn[1]
    events, last = console.reading.events, int(visit.at // 60)
    first = first_minute(span, visit.at)
    traffic = await console.reading.ask(lambda: events.traffic(first, last))
    busiest = await console.reading.ask(lambda: events.busiest(int(visit.at // DAY), SOME))
    names = await names_of(visit, [account for account, _ in busiest])
    servers, record = servers_of(gateway), gateway.record
    seen = overview_of(traffic, span, visit.at)
    kind, said = verdict(servers, record.healthy(), record.lost.total())
    made = (
        environment()
        .get_template("live.html")
        .render(
            now=visit.at,
            seen=seen,
            span=span,
            spans=SPANS,
            servers=servers,
            kind=kind,
            said=said,
            busiest=busiest,
            names=names,
            in_flight=gateway.metrics.in_flight(),
            waiting=record.waiting,
            lost=record.lost.total(),
            meter=meter,
        )
    )
    console.drawn[span.name] = (visit.at, made)
    return made


def servers_of(gateway: Gateway) -> dict[str, list[Server]]:
    """The upstreams of each model and what is known of them, without a password in a URL."""
    now = gateway.clock()
    shown: dict[str, list[Server]] = {}
    for name, model in gateway.models.items():
        shown[name] = []
        for each in model.behind:
            parts = urlsplit(each.url)
            url = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
            times = "failed once" if each.failures == 1 else f"failed {each.failures} times in a row"
            if not each.failures:
                server = Server(url, "well", "answers")
            elif each.rests_until > now:
                server = Server(url, "rests", f"{times}, asked again in {each.rests_until - now:.0f} s")
            else:
                server = Server(url, "failed", f"{times}, asked again with the next request")
            shown[name].append(server)
    return shown


def _span(visit: Visit) -> str:
    asked = visit.asked("span")
    return asked if asked in SPANS else "hour"


async def names_of(visit: Visit, accounts: Sequence[str]) -> dict[str, str]:
    def look(register: Register) -> dict[str, str]:
        found = {}
        for id in accounts:
            try:
                found[id] = register.account(id).name
            except NotThere:
                found[id] = id
        return found

    return await visit.gateway.accounts.ask(look)


# Accounts, organisations and keys


async def accounts(visit: Visit) -> Response:
    """Found by name, id, or the beginning of a key."""
    search, after = visit.asked("search"), visit.asked("after", 64)
    if search.startswith(BEGINNING):
        search = search[:PREFIX]  # the rest of a secret is neither looked for nor shown

    def look(register: Register) -> tuple[list[Account], dict[str, Organisation]]:
        found = register.accounts(search, after, ROWS + 1)
        if search.startswith((BEGINNING, "key_")) and not after:
            there = {account.id for account in found}
            holders = {key.account for key in register.keys(search, limit=ROWS)} - there
            found += [register.account(id) for id in sorted(holders)]
        whose = {account.organisation for account in found if account.organisation is not None}
        return found, {id: register.organisation(id) for id in whose}

    found, organisations = await visit.gateway.accounts.ask(look)
    shown = found[:ROWS]
    events = visit.console.reading.events
    seen = await visit.console.reading.ask(lambda: events.last_seen(account.id for account in shown))
    rows = []
    for account in shown:
        uses = await _uses(visit, f"account:{account.id}", limits_of_account(visit.gateway, account))
        bounded = [use for use in uses or [] if use.limit.measure != "money"]
        rows.append(
            {
                "account": account,
                "organisation": organisations.get(account.organisation or ""),
                "tightest": max(bounded, key=_part, default=None),
                "known": uses is not None,
                "money": next((use for use in uses or [] if use.limit.measure == "money"), None),
                "spent": await _spent(visit, account.id),
                "seen": seen.get(account.id),
            }
        )
    more = f"?{urlencode({'search': search, 'after': shown[-1].id})}" if len(found) > ROWS else ""
    return page(visit, "accounts.html", rows=rows, search=search, after=after, more=more)


async def account(visit: Visit) -> Response:
    id, gateway = visit.request.path_params["id"], visit.gateway
    events = visit.console.reading.events
    desk_says = await _desk(visit, id)
    today = int(visit.at // DAY)
    recent = await visit.console.reading.ask(lambda: events.search(Sought(account=id), SOME))
    used = await visit.console.reading.ask(lambda: events.usage(today - DAYS + 1, today, account=id))
    holder: Account = desk_says["account"]
    keys: Sequence[Key] = desk_says["keys"]
    tier = gateway.config.tiers.get(holder.tier)
    return page(
        visit,
        "account.html",
        **desk_says,
        uses=await _uses(visit, f"account:{id}", limits_of_account(gateway, holder)),
        spent=await _spent(visit, id),
        budget=holder.budget if holder.budget is not None or tier is None else tier.budget,
        tier=tier,
        terms=gateway.config.terms,
        recent=recent,
        charts=days_of(used, today) if used else (),
        models=_by_model(used),
        key_uses={
            key.id: await _uses(visit, f"key:{key.id}", limits_of_key(gateway, holder, key)) for key in keys
        },
    )


async def _desk(visit: Visit, id: str) -> dict[str, Any]:
    """All that the register knows of an account."""

    def look(register: Register) -> dict[str, Any]:
        gateway = visit.gateway
        desk = Desk(register, gateway.config, gateway.pepper, gateway.record.erase, gateway.forget)
        act = Act(visit.session.operator, visit.at)

        def run(operation: str) -> Any:
            return BY_NAME[operation].run(desk, id, None, act)

        found: Account = run("show_account")
        organisation = None if found.organisation is None else register.organisation(found.organisation)
        return {
            "account": found,
            "organisation": organisation,
            "keys": register.keys(account=id, limit=200),
            "payments": list(reversed(run("list_payments").data)),
            "acceptances": list(reversed(run("list_acceptances").data)),
            "agreements": list(reversed(run("list_agreements").data)),
            "log": register.changes(limit=SOME, subject=f"account:{id}", before=1 << 62),
        }

    return await visit.gateway.accounts.ask(look)


async def key(visit: Visit) -> Response:
    """A key is shown on its account's page."""
    id = visit.request.path_params["id"]
    found = await visit.gateway.accounts.ask(lambda register: register.key(id))
    return RedirectResponse(f"/admin/accounts/{found.account}#{found.id}", 303)


async def organisations(visit: Visit) -> Response:
    search, after = visit.asked("search"), visit.asked("after", 64)
    found = await visit.gateway.accounts.ask(lambda register: register.organisations(search, after, ROWS + 1))
    shown = found[:ROWS]
    more = f"?{urlencode({'search': search, 'after': shown[-1].id})}" if len(found) > ROWS else ""
    return page(visit, "organisations.html", rows=shown, search=search, after=after, more=more)


async def organisation(visit: Visit) -> Response:
    id = visit.request.path_params["id"]
    after = visit.asked("after", 64)

    def look(register: Register) -> dict[str, Any]:
        return {
            "organisation": register.organisation(id),
            "accounts": register.accounts(after=after, limit=ROWS + 1, organisation=id),
            "log": register.changes(limit=SOME, subject=f"organisation:{id}", before=1 << 62),
        }

    found = await visit.gateway.accounts.ask(look)
    limits = overridden((), found["organisation"].limits)
    today = int(visit.at // DAY)
    events = visit.console.reading.events
    used = await visit.console.reading.ask(lambda: events.usage(today - DAYS + 1, today, organisation=id))
    shown = found["accounts"][:ROWS]
    more = f"?{urlencode({'after': shown[-1].id})}" if len(found["accounts"]) > ROWS else ""
    return page(
        visit,
        "organisation.html",
        **found | {"accounts": shown},
        more=more,
        uses=await _uses(visit, f"organisation:{id}", limits),
        charts=days_of(used, today) if used else (),
    )


def limits_of_account(gateway: Gateway, account: Account) -> tuple[Limit, ...]:
    """None of a tier that the settings no longer have: its accounts are refused."""
    tier = gateway.config.tiers.get(account.tier)
    return account_limits(account, tier) if tier is not None else ()


def limits_of_key(gateway: Gateway, account: Account, key: Key) -> tuple[Limit, ...]:
    tier = gateway.config.tiers.get(account.tier)
    return overridden(limits_of(tier.key_limits if tier is not None else Limits()), key.limits)


async def _uses(visit: Visit, subject: str, limits: Sequence[Limit]) -> list[Use] | None:
    """None: the counts cannot be read."""
    if not limits:
        return []
    try:
        standing = await visit.gateway.counts.standing(subject)
    except StoreDown:
        return None
    used = [standing.get((limit.measure, limit.window), 0) for limit in limits]
    return [Use(limit, n, meter(n, limit.amount)) for limit, n in zip(limits, used, strict=True)]


async def _spent(visit: Visit, account: str) -> int | None:
    """Billionths of a dollar in this month; None: the counts cannot be read."""
    try:
        return (await visit.gateway.counts.standing(f"account:{account}")).get(("money", "month"), 0)
    except StoreDown:
        return None


def _part(use: Use) -> float:
    return use.used / use.limit.amount if use.limit.amount else 1.0


def days_of(used: Mapping[Part, Usage], today: int) -> list[tuple[str, Markup]]:
    """Requests and spend of the last thirty days."""
    days = [Usage()] * DAYS
    for part, usage in used.items():
        at = part.day - (today - DAYS + 1)
        days[at] = days[at].plus(usage)
    over = Stretches((today - DAYS + 1) * float(DAY), float(DAY), "%d %b")
    asked = [
        Series("answered", "answered", [day.requests - day.refused for day in days]),
        Series("refused", "refused", [day.refused for day in days]),
    ]
    tokens = [
        Series("read", "input", [day.input_tokens for day in days]),
        Series("written", "output", [day.output_tokens for day in days]),
    ]
    spent = [Series("spent", "spent", [day.cost for day in days])]
    dollars: Callable[[float], str] = lambda value: money(round(value))  # noqa: E731
    return [
        ("Requests", bars("Requests", over, asked, compact)),
        ("Tokens", bars("Tokens", over, tokens, compact)),
        ("Spend", bars("Spend", over, spent, dollars)),
    ]


def _by_model(used: Mapping[Part, Usage]) -> list[tuple[str, Usage]]:
    sums: dict[str, Usage] = {}
    for part, usage in used.items():
        sums[part.model] = sums.get(part.model, Usage()).plus(usage)
    return sorted(sums.items(), key=lambda row: (-row[1].cost, -row[1].requests, row[0]))


# Events, changes and models


async def events(visit: Visit) -> Response:
    """Found by what they have; never by what was said, which is not in them."""
    asked = {name: visit.asked(name, 128) for name in ("id", "account", "model", "status", "ended")}
    status = int(asked["status"]) if NUMBER.fullmatch(asked["status"][:3]) else None
    ended = asked["ended"] if asked["ended"] in ENDS else None
    sought = Sought(asked["id"] or None, asked["account"] or None, asked["model"] or None, status, ended)
    given = PLACE.fullmatch(visit.asked("after", 64))
    after = Place(*map(int, given.groups())) if given else None
    store = visit.console.reading.events
    found = await visit.console.reading.ask(lambda: store.search(sought, ROWS + 1, after))
    shown = found[:ROWS]
    more = ""
    if len(found) > ROWS:
        last = shown[-1][0]
        filters = {name: value for name, value in asked.items() if value}
        more = f"?{urlencode({**filters, 'after': f'{last.group}-{last.n}'})}"
    return page(
        visit,
        "events.html",
        rows=[event for _, event in shown],
        asked=asked,
        narrow=any(asked.values()) and sought.id is None and sought.account is None,
        searched=SEARCHED,
        after=after is not None,
        more=more,
        models=list(visit.gateway.models),
        ends=ENDS,
    )


async def event(visit: Visit) -> Response:
    id = visit.request.path_params["id"]
    store = visit.console.reading.events
    found = await visit.console.reading.ask(lambda: store.search(Sought(id=id), 1))
    if not found:
        raise NotThere(f"there is no event {id}", "it was never recorded, or has expired", "see its date")
    return page(visit, "event.html", event=found[0][1], standings=STANDINGS)


async def changes(visit: Visit) -> Response:
    subject, before = visit.asked("subject", 80), visit.asked("before", 18)
    end = int(before) if NUMBER.fullmatch(before) else 1 << 62
    found = await visit.gateway.accounts.ask(
        lambda register: register.changes(limit=ROWS + 1, subject=subject or None, before=end)
    )
    shown = found[:ROWS]
    asked = {"subject": subject} if subject else {}
    more = f"?{urlencode(asked | {'before': shown[-1].id})}" if len(found) > ROWS else ""
    return page(visit, "changes.html", rows=shown, subject=subject, later=bool(before), more=more)


async def models(visit: Visit) -> Response:
    gateway, last = visit.gateway, int(visit.at // 60)
    store, span = visit.console.reading.events, SPANS["day"]
    traffic = await visit.console.reading.ask(lambda: store.traffic(first_minute(span, visit.at), last))
    seen = overview_of(traffic, span, visit.at)
    rows = [
        {
            "model": model.config,
            "schedule": gateway.config.prices.get(model.config.price or ""),
            "servers": servers,
            "sums": seen.models.get(name),
            "uses": await _uses(visit, f"model:{name}", limits_of(model.config.limits)),
            "tiers": [tier for tier, each in gateway.config.tiers.items() if _allows(each.models, name)],
        }
        for (name, model), servers in zip(gateway.models.items(), servers_of(gateway).values(), strict=True)
    ]
    return page(visit, "models.html", rows=rows)


def _allows(patterns: Sequence[str], model: str) -> bool:
    return any(fnmatchcase(model, pattern) for pattern in patterns)
