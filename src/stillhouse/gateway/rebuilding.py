"""Counts that were lost, made again of what was recorded: until then nothing is granted.

Records know days, not minutes; so a minute must have passed since the last request before counts are entered,
and of a day as much counts as if all of it had been used at its end. Refused requests are not
entered, though those that had been read counted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from typing import TYPE_CHECKING

from stillhouse.errors import StillhouseError
from stillhouse.gateway import logs
from stillhouse.gateway.store.counts import CountsLost, StoreDown
from stillhouse.gateway.store.events import Events
from stillhouse.guard.config import Store
from stillhouse.guard.counting import Spent
from stillhouse.guard.events import Part, Usage
from stillhouse.guard.limits import Measure, Window

if TYPE_CHECKING:
    from stillhouse.gateway.store.local import LocalCounts
    from stillhouse.gateway.store.redis import RedisCounts

DAY = 86_400
MINUTE = 66.0  # seconds, with the slot in which it began
LOOK_SECONDS = 1.0


async def keep_whole(counts: RedisCounts, store: Store, clock: Callable[[], float]) -> None:
    """Look whether the counts are there, and enter them anew where they are not; for ever."""
    told = ""
    while True:
        try:
            told = await _look(counts, store, clock, told)
        except Exception as error:  # whatever it is, without this task nothing would ever be granted again
            logs.fault(error)
        await asyncio.sleep(LOOK_SECONDS)


async def _look(counts: RedisCounts, store: Store, clock: Callable[[], float], told: str) -> str:
    """Why the counts cannot be read, empty where they can; said once, not with every look."""
    try:
        await counts.standing("")
    except CountsLost:
        try:
            await rebuild(counts, store, clock)
        except StillhouseError as error:
            logs.say("counts not entered", error=error.what, why=error.why)
    except StoreDown as error:
        if error.why != told:
            logs.say("counts down", error=error.what, why=error.why)
        return error.why
    return ""


async def rebuild(counts: LocalCounts | RedisCounts, store: Store, clock: Callable[[], float]) -> None:
    """Enter what was recorded into counts that were lost or are new. Raises StillhouseError where the record
    cannot be read or the counts cannot be written."""
    usage, last = await asyncio.to_thread(_recorded, store, clock())
    wait = last + MINUTE - clock()
    if wait > 0:
        logs.say("counts lost", note="nothing is granted until they are entered anew", seconds=wait)
        await asyncio.sleep(wait)
        usage, _ = await asyncio.to_thread(_recorded, store, clock())
    if await counts.rebuild(spent(usage.items(), clock())) and usage:
        logs.say("counts entered anew", parts=len(usage))


def _recorded(store: Store, now: float) -> tuple[dict[Part, Usage], float]:
    """All that was ever used, and when the last request came (unix seconds; 0 for never)."""
    tomorrow = int(now // DAY) + 1  # a replica's clock may be ahead
    with closing(Events(store)) as events:
        newest = events.newest(most=1)
        return events.usage(0, tomorrow), newest[0].at if newest else 0.0


def spent(usage: Iterable[tuple[Part, Usage]], now: float) -> Iterator[Spent]:
    """What each subject used on each day, with the windows in which it can still count."""
    for part, used in usage:
        at = min(now, (part.day + 1) * DAY - 1.0)
        amounts: dict[tuple[Measure, Window], int] = {
            ("requests", "day"): used.requests - used.refused,
            ("input_tokens", "day"): used.input_tokens,
            ("output_tokens", "day"): used.output_tokens,
        }
        money: dict[tuple[Measure, Window], int] = {
            ("money", "month"): used.cost,
            ("money", "ever"): used.cost,
        }
        volume = {part.schedule: used.input_tokens + used.output_tokens} if part.schedule else {}
        for subject in (f"key:{part.key}", f"organisation:{part.organisation}", f"model:{part.model}"):
            if not subject.endswith(":"):
                yield Spent(subject, at, amounts)
        if part.account:
            yield Spent(f"account:{part.account}", at, amounts | money, volume)
