"""What answered requests say of their accounts, looked at off the path of requests, and what follows.

`put` appends to a bounded queue in memory. One thread takes each request into its account's evidence and
scores it; where a step of the ladder is due it takes it. What finds the queue full is counted as not
observed, and no request ever waits. The evidence of live accounts is held in memory and written within half a
minute, so a process that is killed forgets the last of it; a step is on disk before it has any effect.

Each replica keeps evidence of the requests that it served, and the standing is one for all of them: no
request has to be sent to another replica, and an account is as suspicious as it seems to the replica that
suspects it most. Thresholds stay right, since they are calibrated on the same maximum.
"""

from __future__ import annotations

import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from itertools import takewhile
from typing import Any, NamedTuple

from stillhouse.errors import StillhouseError
from stillhouse.gateway.searching import SECONDS, begin
from stillhouse.gateway.steps import Steps, reasons_of, why
from stillhouse.gateway.store.standings import Decided, Watched
from stillhouse.gateway.worker import Worker
from stillhouse.guard import config, ladder
from stillhouse.guard.asked import Route
from stillhouse.guard.clusters import due
from stillhouse.guard.config import Detection
from stillhouse.guard.evidence import Evidence, last_day, last_time, observe
from stillhouse.guard.ladder import Standing
from stillhouse.guard.likeness import Sketch, month_of, note
from stillhouse.guard.lines import Lines
from stillhouse.guard.scoring import reading, score, shipped
from stillhouse.guard.seen import seen_of

Log = Callable[..., None]

WAITING = 2_000  # requests in the queue
WAITING_BYTES = 8 << 20  # and their bodies, which take several times as much once they are parsed
BATCH, LINGER = 64, 0.2
HELD = 100_000  # accounts in memory, the longest unseen go first
OLDEST = 500  # that go at once, or are written at once
SAVE_SECONDS = 30.0  # after which what changed is written
LOOK_SECONDS = 60.0  # between looks at steps that may lapse
TIDY_SECONDS = 3600.0  # between looks for what has expired
MONTHS = 13  # for which the highest scores are kept
NEVER = float("-inf")
_DAY = 86_400


class Asked(NamedTuple):
    """A request that was answered: all that the evidence is made of."""

    account: str
    route: Route
    body: Mapping[str, Any]
    output_tokens: int
    at: float
    size: int


class Entry:
    """What is held of a live account: its evidence, how it is like others in a month (counted from January
    1970), which use came last and its score, the highest score of the month."""

    __slots__ = ("evidence", "highest", "month", "score", "sketch", "use")

    def __init__(self, evidence: Evidence, sketch: Sketch, month: int) -> None:
        self.evidence, self.sketch, self.month = evidence, sketch, month
        self.use, self.score = 0, 0.0
        self.highest = NEVER


class Watching:
    """Close it. What it decides is in the store, where the gateway looks for it."""

    def __init__(
        self,
        store: config.Store,
        settings: Detection,
        lines: Lines,
        key: bytes,
        *,
        log: Log = lambda *_, **__: None,
        held: int = HELD,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`key` is that of the marks: without it the evidence tells no words. Raises StorageError or
        LedgerError when the store or the ledger cannot be opened."""
        self.settings = settings
        self.lines = lines
        self.observed = 0
        self.unobserved: Counter[str] = Counter()  # requests by why
        self._key = key
        self._log = log
        self._held = held
        self._clock = clock
        self._weights = shipped()
        self._store = store
        self._steps = Steps(store)
        self._searching: subprocess.Popen[bytes] | None = None
        self._searched = 0.0  # when that began
        self._claimed = (0, 0)  # the last search that was due
        self._using = threading.Lock()  # the store, and what is held
        self._entries: dict[str, Entry] = {}
        self._changed: dict[str, float] = {}  # accounts to be written, by since when
        self._reached: list[tuple[str, int, float]] = []  # of months that are over
        self._ended: list[tuple[str, int, bytes]] = []  # sketches of these
        self._alarmed: dict[str, float] = {}  # when an account was last above the flag's threshold
        self._came = self._went = 0  # bytes put, and taken out
        self._decided = Decided(self._steps.standings)
        self._looked = self._tidied = self._beaten = time.monotonic()
        self._worker: Worker[Asked] = Worker(
            "watching", self._work, batch=BATCH, linger=LINGER, failed=self._complain, beat=self._beat
        )

    def apply(self, settings: Detection, lines: Lines) -> None:
        """Go on with settings that were read anew."""
        self.settings, self.lines = settings, lines

    def put(
        self, account: str, route: Route, body: Mapping[str, Any], output_tokens: int, at: float, size: int
    ) -> None:
        """Look at an answered request, of `size` bytes, later. Never waits and never raises."""
        if self.settings.mode == "off" or route == "embeddings":
            return
        if len(self._worker) >= WAITING or self._came - self._went + size > WAITING_BYTES:
            self.unobserved["the queue was full"] += 1
            return
        self._came += size
        self._worker.put(Asked(account, route, body, output_tokens, at, size))

    @property
    def waiting(self) -> int:
        return len(self._worker)

    def flush(self, seconds: float | None = None) -> None:
        """Wait until all that was put before is observed and on disk, but of accounts that were forgotten.
        Raises TimeoutError when it is not after so long, and StorageError when the store fails."""
        self._worker.flush(seconds)
        with self._using:
            self._decided.look(self._erase)
            self._save(float("inf"))

    def close(self, seconds: float = 10.0) -> None:
        """Observe what waits, write what changed, and close the store."""
        left = len(self._worker.close(seconds))
        if left:
            self.unobserved["not looked at in the end"] += left
        try:
            with self._using:
                self._save(float("inf"))
        except StillhouseError as error:
            self._complain(error)
        self._end_search()
        self._steps.close()

    # The worker's thread

    def _work(self, batch: list[Asked]) -> None:
        with self._using, suppress(StillhouseError):  # which each of them meets again
            if new := list({asked.account for asked in batch} - self._entries.keys()):
                self._take_up(new)
        for asked in batch:
            self._went += asked.size
            try:
                with self._using:
                    self._observe(asked)
                self.observed += 1
            except StillhouseError as error:
                self.unobserved["the store failed"] += 1
                self._complain(error)
            except Exception as error:
                # Its kind and not its text, in which words of the request could stand
                self.unobserved["not understood"] += 1
                self._log("a request was not understood", error=type(error).__name__)

    def _observe(self, asked: Asked) -> None:
        account, at = asked.account, asked.at
        entry = self._entry(account)
        before = month_of(last_day(entry.evidence))
        if entry.highest > NEVER and month_of(int(at) // _DAY) != before:
            self._reached.append((account, before, entry.highest))
            entry.highest = NEVER
        if (month := month_of(int(at) // _DAY)) > entry.month:
            if entry.sketch.requests:
                self._ended.append((account, entry.month, entry.sketch.packed()))
            entry.sketch, entry.month = Sketch(), month
        seen = seen_of(self._key, asked.body, asked.route, asked.output_tokens, at)
        entry.use = use = observe(entry.evidence, seen)
        note(entry.sketch, entry.evidence, seen, str(asked.body.get("model")))
        entry.score = reached = score(entry.evidence, use, self._weights)
        entry.highest = max(entry.highest, reached)
        self._changed.setdefault(account, self._beaten)
        standing = self._decided.by_account.get(account) or Standing(account)
        if reached > self.lines.flag_of(standing.declared):
            self._alarmed[account] = at
            if ladder.climbs(standing, reached, self.lines, self.settings, at):
                self._climb(standing, entry, at)

    def _climb(self, standing: Standing, entry: Entry, at: float) -> None:
        told = reading(entry.evidence, entry.use, self._weights)
        code = ladder.code_of(told.pattern)
        after = ladder.climbed(standing, told.score, code, self.lines, self.settings, at)
        if after is None:
            return
        taken = self._steps.climb(standing, after, told, at)
        self._decided.look(self._erase)
        if taken is not None:
            self._log(
                "step",
                account=taken.account,
                rung=taken.rung,
                mode=self.settings.mode,
                code=code,
                score=round(told.score, 3),
                why=why(reasons_of(told)[:3]),
            )

    def _entry(self, account: str) -> Entry:
        """Moved to the end of what is held."""
        if account not in self._entries:
            self._take_up([account])
        entry = self._entries[account] = self._entries.pop(account)
        return entry

    def _take_up(self, accounts: list[str]) -> None:
        """Hold what is stored of these; the oldest go where there is no room."""
        kept = self._steps.standings.evidence(accounts, self._steps.replica)
        if len(self._entries) + len(accounts) > self._held:
            self._drop_oldest()
        for account in accounts:
            self._entries[account] = _entry_of(kept.get(account))

    def _drop_oldest(self) -> None:
        some = list(self._entries)[:OLDEST]
        self._write([account for account in some if account in self._changed])
        for account in some:
            del self._entries[account]

    def _beat(self, last: bool) -> None:
        now = self._beaten = time.monotonic()
        with self._using:
            if self._decided.stale():
                self._decided.look(self._erase)
            self._save(now - SAVE_SECONDS)
            if now - self._looked > LOOK_SECONDS:
                self._lapse()
                self._search()
                self._looked = now
            if now - self._tidied > TIDY_SECONDS:
                self._tidy()
                self._tidied = now

    def _erase(self, gone: list[str]) -> None:
        for account in gone:
            self._entries.pop(account, None)
            self._changed.pop(account, None)
            self._alarmed.pop(account, None)
            self._steps.standings.drop_evidence(account)
        self._reached = [row for row in self._reached if row[0] not in gone]
        self._ended = [row for row in self._ended if row[0] not in gone]
        self._steps.erase()

    def _save(self, before: float) -> None:
        """Write what changed before that moment of the monotonic clock."""
        due = list(takewhile(lambda account: self._changed[account] < before, self._changed))
        for at in range(0, len(due), OLDEST):
            self._write(due[at : at + OLDEST])

    def _write(self, accounts: list[str]) -> None:
        if not accounts and not self._reached and not self._ended:
            return
        entries = [(account, self._entries[account]) for account in accounts]
        watched, reached = [], list(self._reached)
        for account, entry in entries:
            evidence, use = entry.evidence, entry.use
            told = evidence.packed(), use, entry.score, evidence.requests, last_time(evidence, use)
            watched.append(Watched(account, *told, entry.month, entry.sketch.packed()))
            reached.append((account, month_of(last_day(evidence)), entry.highest))
        self._steps.standings.save(self._steps.replica, watched, reached, self._alarmed.items(), self._ended)
        self._reached, self._ended, self._alarmed = [], [], {}
        for account in accounts:
            del self._changed[account]
        if not self._changed:
            self._changed = {}  # or it stayed as large as it ever was

    def _lapse(self) -> None:
        now = self._clock()
        for held in list(self._decided.by_account.values()):
            if ladder.lapsed(held, self.settings, now) is None:
                continue
            # When it was last alarmed is written beside the steps, also by other replicas
            before = self._steps.standings.standing(held.account)
            before = before._replace(alarmed=max(before.alarmed, self._alarmed.get(held.account, 0.0)))
            after = ladder.lapsed(before, self.settings, now)
            if after is not None and self._steps.lapse(before, after, now) is not None:
                self._log("step lapsed", account=held.account, rung=held.rung)
        self._decided.look(self._erase)

    def _search(self) -> None:
        """Begin a search for clusters whose time it is and that no replica made, unless one is under way."""
        if self._searching is not None:
            code, late = self._searching.poll(), time.monotonic() - self._searched > 2 * SECONDS
            if code is None and not late:
                return
            self._end_search()
            self._log("a search for clusters ended", well=code == 0)
        look = due(self._clock())
        if self.settings.mode != "off" and look != self._claimed:
            self._claimed = look  # by this replica or another one
            if self._steps.standings.findings.claim(*look, self._steps.replica, self._clock()):
                self._searching = begin(self._store, *look, self._key)
                self._searched = time.monotonic()

    def _end_search(self) -> None:
        if self._searching is not None:
            self._searching.kill()
            self._searching.wait()
            self._searching = None

    def _tidy(self) -> None:
        self._claimed = (0, 0)  # whoever had it may have died
        self._steps.link()
        now = self._clock()
        month = month_of(int(now) // _DAY)
        gone = self._steps.standings.expire(
            now - self.settings.evidence_days * _DAY, month - MONTHS, month - 1
        )
        if gone:
            self._log("evidence deleted", accounts=gone)

    def _complain(self, error: Exception) -> None:
        why = f"{error.what}: {error.why}" if isinstance(error, StillhouseError) else repr(error)
        self._log("accounts are not being watched", waiting=self.waiting, why=why)


def _entry_of(kept: Watched | None) -> Entry:
    if kept is not None:
        with suppress(ValueError):  # another version wrote it: the account begins anew
            return Entry(Evidence.unpacked(kept.evidence), Sketch.unpacked(kept.sketch), kept.month)
    return Entry(Evidence(), Sketch(), 0)
