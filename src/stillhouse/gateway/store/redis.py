"""Counts of replicas that share one Redis: one atomic script there decides, by Redis's own clock.

A Redis that could forget what it answered is refused: it must append every write to its file and sync it
before it answers, evict nothing, and still hold the counts. One that was emptied stays closed until `rebuild`
has entered again what durable records tell.

Each replica says every few seconds that it lives. What a dead one had in flight is not waited for: where a
limit on that is reached it no longer counts, and its tokens and money stay charged whole, since nobody knows
how much of them was used.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import secrets
import time
from array import array
from collections import deque
from collections.abc import Iterable, Mapping
from importlib.resources import files
from typing import Any

import orjson

from stillhouse.errors import UsageError
from stillhouse.gateway.store.counts import CountsLost, StoreDown
from stillhouse.gateway.store.resp import Address, Gone, Said, Wire, Word, address_of, connect
from stillhouse.guard import counting
from stillhouse.guard.counting import Spent
from stillhouse.guard.limits import Granted, Refused, Used, Wanted
from stillhouse.guard.windows import MOST, SECOND, Code, Counters

BASE = "{stillhouse}:"  # all keys in one slot of a cluster
CLOCK = f"{BASE}clock"
REBUILDING = f"{BASE}rebuilding"
SETTLING = 10.0  # seconds for which settling is tried again; the script remembers longer that it was done
PAUSE = 0.25  # seconds between two tries
HOLD = 60_000  # milliseconds that one replica has for each step of rebuilding
AT_ONCE = 500  # subjects of one step
ALIVE = 15_000  # milliseconds, by Redis's clock, after which a replica that says nothing is taken for dead
BEAT = 4.0  # seconds between two such words
MANY = 10_000

ENTER = """
if redis.call('GET', KEYS[2]) ~= ARGV[1] or redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
redis.call('PEXPIRE', KEYS[2], ARGV[2])
local i = 4
while i <= #ARGV do
  local key, count = string.sub(KEYS[1], 1, -6) .. 's:' .. ARGV[i], 2 * ARGV[i + 1]
  redis.call('DEL', key)
  redis.call('HSET', key, unpack(ARGV, i + 2, i + 1 + count))
  if redis.call('HEXISTS', key, 'money ever') == 0 then
    redis.call('EXPIRE', key, 63 * 86400)
  end
  i = i + 2 + count
end
if ARGV[3] == 'last' then
  local time = redis.call('TIME')
  redis.call('HSET', KEYS[1], 'raw', string.format('%.0f', time[1] * 1e6 + time[2]), 'ahead', 0)
  redis.call('DEL', KEYS[2])
end
return 1
"""


class RedisCounts:
    """Connects when first asked, and again whenever the connection was lost. `durable` says that the operator
    vouches for `appendonly yes` and `appendfsync always` where the Redis does not let them be read.

    Raises UsageError for a URL that is none, or when hiredis is not installed.
    """

    def __init__(self, url: str, *, durable: bool = False) -> None:
        try:
            import hiredis  # noqa: F401
        except ImportError as error:
            raise UsageError(
                "counts in Redis need the package hiredis",
                str(error),
                "install it with: pip install stillhouse[guard]",
            ) from error
        self._address = address_of(url)
        self._durable = durable
        self._script = _script()
        self._digest = hashlib.sha1(self._script.encode(), usedforsecurity=False).hexdigest()
        self._name = secrets.token_hex(8)  # of this replica, as long as it lives
        self._beating: asyncio.Task[None] | None = None
        self._wire: Wire | None = None
        self._connecting: asyncio.Task[Wire] | None = None
        self._not_before = 0.0
        self._failure: StoreDown | None = None
        self._open: dict[str, tuple[float, bytes]] = {}  # granted: until when it can be settled, and its plan
        self._forget_at = MANY
        self._unsure: deque[tuple[str, bytes]] = deque(maxlen=MANY)  # perhaps granted, and nobody knows
        self._giving_back: set[asyncio.Task[None]] = set()

    async def reserve(self, wanted: Wanted) -> Granted | Refused:
        plan = _plan(wanted)
        await self._connected()  # what fails here was not sent
        try:
            reply = await self._run("reserve", self._own(wanted.id), plan)
        except (StoreDown, asyncio.CancelledError) as error:
            if not isinstance(error, CountsLost):
                self._give_back_later(wanted.id, plan)
            raise
        decision = _answer(wanted, reply)
        if isinstance(decision, Granted):
            self._open[wanted.id] = time.monotonic() + wanted.seconds + counting.LATE / SECOND, plan
            self._forget()
        return decision

    async def full(self, wanted: Wanted) -> Refused | None:
        decision = _answer(wanted, await self._run("full", self._own(wanted.id), _plan(wanted)))
        return decision if isinstance(decision, Refused) else None

    async def settle(self, id: str, used: Used) -> int:
        """Tries again for SETTLING seconds while Redis is away."""
        words: list[Word] = ["settle", self._own(id)]
        if id in self._open:
            tokens = min(used.input_tokens, MOST), min(used.output_tokens, MOST)
            words += (self._open[id][1], *tokens, int(used.sent))
        until = time.monotonic() + SETTLING
        while True:
            try:
                cost: int = await self._run(*words)
                break
            except CountsLost:
                raise
            except StoreDown:
                if time.monotonic() > until:
                    raise
                await asyncio.sleep(PAUSE)
        self._open.pop(id, None)
        if cost < 0:
            raise StoreDown(
                f"the reservation {id} is not known any more",
                "an hour has gone since its time was up, or Redis was emptied",
                "it stays charged whole; nothing to do",
            )
        return cost

    async def standing(self, subject: str) -> dict[Code, int]:
        now, in_flight, fields = await self._run("standing", subject)
        states = {bytes(name).decode(): blob for name, blob in zip(fields[::2], fields[1::2], strict=True)}
        book = counting.Book({subject: _counters(states)})
        if in_flight:
            book.in_flight[subject] = dict.fromkeys(map(str, range(in_flight)), 0)
        return counting.standing(book, subject, now)

    async def rebuild(self, rows: Iterable[Spent]) -> bool:
        """Enter what durable records tell of the day, the month and, against what was paid in, of ever; then
        open. A new Redis is opened so too, with no rows. False where the counts are there, or another replica
        has just entered them; nothing is changed then."""
        entered: dict[str, Counters] | None = None
        token = secrets.token_hex(8)
        while True:
            wire = await self._connected()
            try:
                if await wire.ask("EXISTS", CLOCK):
                    return False
                if await wire.ask("SET", REBUILDING, token, "NX", "PX", HOLD):
                    if entered is None:
                        entered = await _entered(wire, rows)
                    return await _enter(wire, token, entered)
            except (Gone, Said) as error:
                raise self._down(error) from error
            await asyncio.sleep(PAUSE)

    async def close(self) -> None:
        """Waits for SETTLING seconds at most to give back what an unanswered call may have reserved."""
        if self._beating is not None:
            self._beating.cancel()
        until = time.monotonic() + SETTLING
        while self._giving_back or (self._unsure and time.monotonic() < until):
            if self._giving_back:
                await asyncio.wait(self._giving_back)
            try:
                await self._connected()
            except StoreDown:
                await asyncio.sleep(PAUSE)
        if self._wire is not None:
            self._wire.close()
            self._wire = None

    async def _run(self, *words: Word) -> Any:
        wire = await self._connected()
        try:
            return await wire.ask("EVALSHA", self._digest, 1, CLOCK, *words)
        except (Gone, Said) as error:
            if str(error).startswith("NOSCRIPT"):
                with contextlib.suppress(Gone, Said):  # the next try tells it
                    await wire.ask("SCRIPT", "LOAD", self._script)
                    return await wire.ask("EVALSHA", self._digest, 1, CLOCK, *words)
            elif isinstance(error, Said) and not str(error).startswith("LOST"):
                wire.close()  # a replica that was made one, a full disk: look again who is there
            raise self._down(error) from error

    async def _connected(self) -> Wire:
        """All callers wait for one try, and for a while after it failed none is made."""
        if self._wire is not None and self._wire.open:
            return self._wire
        if self._connecting is None:
            if (failure := self._failure) is not None and time.monotonic() < self._not_before:
                raise StoreDown(failure.what, failure.why, failure.mend)
            self._connecting = asyncio.create_task(self._connect())
        return await asyncio.shield(self._connecting)

    async def _connect(self) -> Wire:
        try:
            wire = await connect(self._address)
            try:
                await wire.ask("EXISTS", CLOCK)  # refused while it reads its file after a restart
                await _look_at(wire, self._address, self._durable)
                await wire.ask("SCRIPT", "LOAD", self._script)
                await self._live(wire)
            except BaseException:
                wire.close()
                raise
        except (Gone, Said, StoreDown) as error:
            self._not_before = time.monotonic() + PAUSE
            self._failure = error if isinstance(error, StoreDown) else self._down(error)
            raise self._failure from error
        finally:
            self._connecting = None
        self._wire, self._failure = wire, None
        if self._beating is None:
            self._beating = asyncio.create_task(self._beat())
        while self._unsure:
            self._settle_soon(*self._unsure.popleft())
        return wire

    def _own(self, id: str) -> str:
        return f"{self._name}:{id}"

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(BEAT)
            if self._wire is not None and self._wire.open:
                with contextlib.suppress(Gone, Said):  # whoever connects again says it first
                    await self._live(self._wire)

    async def _live(self, wire: Wire) -> None:
        await wire.ask("SET", f"{BASE}alive:{self._name}", "", "PX", ALIVE)

    def _forget(self) -> None:
        """What nobody settled in time."""
        if len(self._open) >= self._forget_at:
            now = time.monotonic()
            self._open = {id: kept for id, kept in self._open.items() if kept[0] > now}
            self._forget_at = 2 * len(self._open) + MANY

    def _give_back_later(self, id: str, plan: bytes) -> None:
        if self._wire is not None and self._wire.open:
            self._settle_soon(id, plan)
        else:
            self._unsure.append((id, plan))

    def _settle_soon(self, id: str, plan: bytes) -> None:
        task = asyncio.create_task(self._settle_quietly(id, plan))
        self._giving_back.add(task)
        task.add_done_callback(self._giving_back.discard)

    async def _settle_quietly(self, id: str, plan: bytes) -> None:
        """It may have been granted and nobody will settle it: unless given back here, it stays charged."""
        try:
            await self._run("settle", self._own(id), plan, 0, 0, 0)
        except CountsLost:
            return
        except StoreDown:
            self._unsure.append((id, plan))

    def _down(self, error: Gone | Said) -> StoreDown:
        name, said = self._address.name, str(error)
        if said.startswith("LOST"):
            return CountsLost(
                f"the Redis at {name} has lost its counts, or never had any",
                "it was emptied or is new; how much of the limits is used is not known",
                "the gateway enters them again from its durable events; until then nothing is granted",
            )
        return StoreDown(
            f"no counts from the Redis at {name}",
            said,
            "see that it runs and can write its file; the gateway connects again by itself",
        )


def _script() -> str:
    return files("stillhouse.gateway.store").joinpath("counts.lua").read_text()


async def _look_at(wire: Wire, address: Address, durable: bool) -> None:
    """Raises StoreDown unless what this Redis has answered is sure to be kept."""

    def refused(why: str, mend: str) -> StoreDown:
        return StoreDown(f"the Redis at {address.name} is not fit to keep counts", why, mend)

    told = bytes(await wire.ask("INFO", "memory")).decode()
    memory = dict(line.split(":", 1) for line in told.splitlines() if ":" in line)
    if memory.get("maxmemory", "0") != "0" and memory.get("maxmemory_policy") != "noeviction":
        raise refused(
            "it throws keys away when its memory is full, and with them counts",
            "set `maxmemory-policy noeviction` there",
        )
    try:
        pairs = await wire.ask("CONFIG", "GET", "append*")
    except Said as error:
        if durable:
            return
        raise refused(
            f"whether it keeps what it answers cannot be read ({error})",
            "see that it has `appendonly yes` and `appendfsync always`, and say so: `redis_durable = true`"
            " under [store] in guard.toml",
        ) from error
    settings = {bytes(pairs[i]).decode(): bytes(pairs[i + 1]).decode() for i in range(0, len(pairs), 2)}
    if (settings.get("appendonly"), settings.get("appendfsync")) != ("yes", "always"):
        raise refused(
            "a crash of it would give back what was granted before",
            "set `appendonly yes` and `appendfsync always` there",
        )


def _plan(wanted: Wanted) -> bytes:
    """As counts.lua reads it."""
    words: list[str | int] = [
        round(wanted.seconds * SECOND),
        wanted.input_tokens,
        wanted.output_tokens,
        wanted.payer,
        wanted.schedule,
        len(wanted.steps),
    ]
    for step in wanted.steps:
        words += (step.over, step.input, step.output)
    words.append(len(wanted.subjects))
    for subject in wanted.subjects:
        words += (subject.name, len(subject.limits))
        for limit in subject.limits:
            amount = limit.amount
            words += (limit.measure, limit.window, amount if amount < MOST else MOST)
    return orjson.dumps(words)


def _answer(wanted: Wanted, reply: list[Any]) -> Granted | Refused:
    granted, now, cost = reply[:3]
    used, details = reply[3::2], reply[4::2]
    limits = [limit for subject in wanted.subjects for limit in subject.limits]
    if granted:
        newest = [None if slot < 0 else slot for slot in details]
        return Granted(wanted.id, cost, counting.rooms(limits, used, newest.__getitem__, now))
    rows: list[counting.Row] = []
    for limit, detail in zip(limits, details, strict=True):
        code = (limit.measure, limit.window)
        rows.append((_counters({" ".join(code): detail}), code) if isinstance(detail, bytes) else None)
    return counting.refuse(wanted, used, rows, cost, details.__getitem__, now)


def _counters(fields: Mapping[str, bytes]) -> Counters:
    codes = []
    numbers = array("q")
    for field, blob in fields.items():
        what, _, window = field.rpartition(" ")
        codes.append((what, window))
        numbers.extend(map(int, array("d", blob)))
    return Counters(tuple(codes), numbers.tobytes())


async def _entered(wire: Wire, rows: Iterable[Spent]) -> dict[str, Counters]:
    seconds, microseconds = await wire.ask("TIME")
    states: dict[str, Counters] = {}
    counting.enter(states, rows, int(seconds) * SECOND + int(microseconds))
    return states


async def _enter(wire: Wire, token: str, states: Mapping[str, Counters]) -> bool:
    waiting = [(name, apart) for name, counters in states.items() if (apart := counters.packed_apart())]
    while True:
        some, waiting = waiting[:AT_ONCE], waiting[AT_ONCE:]
        words: list[Word] = []
        for name, apart in some:
            words += [name, len(apart)]
            for code, numbers in apart:
                words += [" ".join(code), array("d", numbers).tobytes()]
        last = "last" if not waiting else "more"
        if not await wire.ask("EVAL", ENTER, 2, CLOCK, REBUILDING, token, HOLD, last, *words):
            return False
        if not waiting:
            return True
