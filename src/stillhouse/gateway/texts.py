"""Prompts and answers of accounts that consented, kept sealed for some days, if the operator wants that.

Kept as `text` they are for the operator to read; as `deferred` they are what a cascade's teacher was asked,
for the next student to learn from. Each needs a consent and a setting of its own, and lies apart.

`put` appends to a queue in memory and a thread seals and writes. What finds the queue full, or cannot be
written in time, is not kept: it is counted, and no request is refused for it.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from typing import NamedTuple

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from stillhouse.errors import StillhouseError
from stillhouse.gateway.sealing import Sealer, seal, unseal
from stillhouse.gateway.store.texts import Forgotten, Of, TextStore
from stillhouse.gateway.worker import Worker
from stillhouse.guard import config
from stillhouse.guard.accounts import Account
from stillhouse.guard.events import label

BATCH = 64
LINGER = 1.0  # seconds
WAITING_BYTES = 32 << 20
KEYS_HELD = 4096
TIDY = 3600.0  # seconds between looks for what has expired
DAY = 86_400  # seconds


class Text(NamedTuple):
    id: str
    account: str
    day: int
    request: bytes
    answer: bytes


class Erased(NamedTuple):
    """`complete` is False where another process was reading the file just then: give the order again."""

    texts: int
    complete: bool


def erase_in(store: config.Store, account: str) -> Erased:
    """As `Record.erase`, for whoever is not the gateway: what one has not written yet is not reached. Raises
    StorageError."""
    with closing(TextStore(store)) as texts, closing(TextStore(store, "deferred")) as deferred:
        return both(Erased(*texts.erase(account)), Erased(*deferred.erase(account)))


def both(one: Erased, other: Erased) -> Erased:
    return Erased(one.texts + other.texts, one.complete and other.complete)


def sealer_of(secret: bytes, of: Of) -> Sealer:
    return Sealer(secret, "kept texts" if of == "text" else "deferred exchanges")


class Texts:
    """Close it. Every method may be called from any thread."""

    def __init__(
        self,
        store: config.Store,
        settings: config.Record,
        secret: bytes,
        log: Callable[..., None],
        of: Of = "text",
    ) -> None:
        """Raises StorageError when the store cannot be opened."""
        self.settings = settings
        self.kept = 0  # by this process
        self.lost: Counter[str] = Counter()  # texts by why
        self._of = of
        self._sealer = sealer_of(secret, of)
        self._store = TextStore(store, of)
        self._log = log
        self._bytes = 0
        self._counting = threading.Lock()
        self._keys: dict[tuple[str, int], AESGCM] = {}
        self._using = threading.Lock()  # the store and the keys
        self._tidied = float("-inf")
        self._worker: Worker[Text] = Worker(
            of, self._write, batch=BATCH, linger=LINGER, failed=self._complain, beat=self._tidy
        )

    def put(self, id: str, account: Account, request: bytes, answer: bytes) -> None:
        """Keep a text where the operator wants that and the account consented. Never waits, never raises."""
        if not self._wanted(account):
            return
        with self._counting:
            full = self._bytes + len(request) + len(answer) > WAITING_BYTES
            if full:
                self.lost["the queue was full"] += 1
            else:
                self._bytes += len(request) + len(answer)
        if not full:
            self._worker.put(Text(label(id), account.id, int(time.time()) // DAY, request, answer))

    def _wanted(self, account: Account) -> bool:
        if self._of == "deferred":
            return self.settings.deferred == "with_consent" and account.training is not None
        return self.settings.text == "with_consent" and account.consent

    def read(self, id: str) -> tuple[bytes, bytes] | None:
        """The request and the answer of an event; None where they are not kept. Raises StorageError when they
        were sealed under another secret."""
        id = label(id)
        with self._using:
            kept = self._store.read(id)
        if kept is None or kept.wrapped is None:
            return None
        key = self._sealer.unwrapped(kept.wrapped, kept.account, kept.day)
        return unseal(key, id, kept.account, kept.sealed)

    def erase(self, account: str, seconds: float = 60.0) -> Erased:
        """Make what is kept of an account unreadable and remove it: its keys, its texts, their bytes in the
        WAL and in free pages. What was put before is included. It does not end the account's consent.

        Backups and a server's own log keep wrapped keys and sealed texts: they stay readable for whoever has
        those and the secret. Raises StorageError when the store fails, and TimeoutError.
        """
        self.flush(seconds)
        with self._using:
            for held in [held for held in self._keys if held[0] == account]:
                del self._keys[held]
            return Erased(*self._store.erase(account))

    def flush(self, seconds: float | None = None) -> None:
        """Wait until all that was put before is on disk. Raises TimeoutError when it is not after so long."""
        self._worker.flush(seconds)

    def close(self, seconds: float = 10.0) -> int:
        """Write what waits and close the store; how many texts could not be written in that time."""
        left = len(self._worker.close(seconds))
        if left:
            self.lost["not written at the end"] += left
            self._log("texts lost", count=left, why="the store failed until the end")
        self._store.close()
        return left

    # The worker's thread

    def _write(self, texts: list[Text]) -> None:
        under = self._sealer.under
        with self._using:
            sealed = [(text.id, text.account, text.day, under, self._sealed(text)) for text in texts]
            try:
                self._store.write(sealed)
                self.kept += len(sealed)
            except Forgotten:  # another replica erased a key that is held here: its next text gets a new one
                self._keys.clear()
                raise
            except ValueError as error:
                self.lost["malformed"] += len(texts)
                self._log("texts lost", count=len(texts), why=str(error))
        with self._counting:
            self._bytes -= sum(len(text.request) + len(text.answer) for text in texts)

    def _sealed(self, text: Text) -> bytes:
        return seal(self._key(text), text.id, text.account, text.request, text.answer)

    def _key(self, text: Text) -> AESGCM:
        account, day = text.account, text.day
        key = self._keys.get((account, day))
        if key is None:
            fresh = self._sealer.fresh(account, day)
            wrapped = self._store.wrapped(account, day, self._sealer.under, fresh)
            if len(self._keys) >= KEYS_HELD:
                self._keys.clear()
            key = self._keys[account, day] = self._sealer.unwrapped(wrapped, account, day)
        return key

    def _tidy(self, last: bool) -> None:
        if last or time.monotonic() - self._tidied < TIDY:
            return
        with self._using:
            days = self.settings.text_days if self._of == "text" else self.settings.deferred_days
            self._store.expire(int(time.time()) // DAY - days)
        self._tidied = time.monotonic()

    def _complain(self, error: Exception) -> None:
        why = f"{error.what}: {error.why}" if isinstance(error, StillhouseError) else repr(error)
        self._log("texts are not being stored", waiting=len(self._worker), why=why)
