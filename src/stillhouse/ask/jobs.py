"""Batches at the provider: brought from the intent in the ledger to their end, whatever dies in between."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from stillhouse.ask.results import Results
from stillhouse.ask.sending import fatal, on_interrupt
from stillhouse.ask.shards import shard_path
from stillhouse.errors import EndpointError, Interrupted, StillhouseError, UsageError
from stillhouse.ledger import Ledger, batches
from stillhouse.ledger.batches import Batch
from stillhouse.models import batches as provider
from stillhouse.models.batches import Job
from stillhouse.models.endpoint import Endpoint, Failure

T = TypeVar("T")

PASSING = frozenset({"unreachable", "timeout", "rate_limited", "server", "cut", "malformed"})


@dataclass(frozen=True, slots=True)
class Habits:
    """How batches are cut and looked at; bytes and seconds.

    OpenAI takes 50,000 lines and 200 MB in one. `settling` is how long after a request to create a batch it
    may still turn up in the provider's list, `patience` how long the provider may give no usable reply.
    """

    lines: int = 45_000
    size: int = 180_000_000
    first_wait: float = 10.0
    longest_wait: float = 60.0
    settling: float = 60.0
    patience: float = 3600.0

    def waits(self) -> Iterator[float]:
        """Seconds between one look and the next."""
        wait = self.first_wait
        while True:
            yield wait
            wait = min(self.longest_wait, 1.5 * wait)


@dataclass(slots=True)
class Jobs:
    """The batches of one teacher in one call, for use within `working`. `running` are those that are with the
    provider, `told` is what it last said of them, `full` what it said of those for which it had no room."""

    ledger: Ledger
    run: str
    folder: Path
    results: Results
    timeout: float
    habits: Habits
    show: Callable[[], None]
    cancelling: bool = False
    running: dict[int, Batch] = field(default_factory=dict)
    told: dict[int, Job] = field(default_factory=dict)
    full: list[str] = field(default_factory=list)
    endpoint: Endpoint | None = None
    sessions: AsyncExitStack = field(default_factory=AsyncExitStack)
    stopped: asyncio.Event = field(default_factory=asyncio.Event)
    restore: Callable[[], None] = lambda: None

    @asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        self._listen()
        try:
            async with self.sessions:
                yield
        finally:
            self.restore()

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Ctrl-C is for what is done in the block."""
        self.restore()
        try:
            yield
        finally:
            self._listen()

    def _listen(self) -> None:
        self.restore = on_interrupt(asyncio.get_running_loop(), self.stopped.set)

    async def open(self) -> Endpoint:
        """A session with the provider. Raises UsageError where it has no batches."""
        if self.endpoint is None:
            teacher = self.results.part.teacher
            assert teacher.url is not None
            url = await asyncio.to_thread(teacher.url)
            endpoint = await self.sessions.enter_async_context(Endpoint(url, teacher.key_env))
            there = await provider.listed(endpoint, self.timeout, first_page=True)
            if isinstance(there, Failure) and there.kind != "rate_limited":
                raise self._no(there, endpoint)
            self.endpoint = endpoint
        return self.endpoint

    async def create(self, row: Batch) -> Batch | None:
        """Bring a batch to where it exists at the provider; None when it never will."""
        created = await self._created(row)
        if created is not None:
            self.running[row.id] = created
        return created

    async def _created(self, row: Batch) -> Batch | None:
        endpoint, waits = await self.open(), self.habits.waits()
        until = time.monotonic() + self.habits.patience
        while row.state != "running":
            if row.asked is not None:
                job = await self._find(endpoint, row)
                if job is not None:
                    return batches.record_running(self.ledger, row, job.name)
                age = (self.ledger.clock() - row.asked).total_seconds()
                if age < self.habits.settling:
                    await self.rest(min(next(waits), self.habits.settling - age))
                    continue
            if self.cancelling or not self._path(row).exists():
                self._release(row, "never created", "cancelled")
                return None
            row = await self._upload(endpoint, row)
            row = batches.record_asked(self.ledger, row)
            metadata = {"stillhouse_run": self.run, "stillhouse_shard": row.shard}
            made = await provider.create(endpoint, str(row.file), metadata, self.timeout)
            if isinstance(made, Job):
                return batches.record_running(self.ledger, row, made.name)
            if made.kind not in PASSING:
                self._release(row, "refused", made.kind)
                raise self._no(made, endpoint)
            if time.monotonic() > until:
                raise _out_of_patience(made)
            await self.rest(max(next(waits), made.retry_after or 0.0))
        return row

    async def until_over(self, rows: Sequence[Batch]) -> None:
        """Look at these now and then until each is over, and write down what it brought."""
        running, waits = list(rows), self.habits.waits()
        while running:
            endpoint = await self.open()
            for row in list(running):
                job = await self._look(endpoint, row)
                if job.over:
                    await self._fetch(endpoint, row, job)
                    running.remove(row)
                elif self.cancelling and job.status != "cancelling":
                    await provider.cancel(endpoint, job.name, self.timeout)  # the next look shows whether
                self.show()
            if running:
                await self.rest(next(waits))

    async def rest(self, seconds: float) -> None:
        """Raises Interrupted on SIGINT, at once."""
        try:
            await asyncio.wait_for(self.stopped.wait(), seconds)
        except TimeoutError:
            return
        self.go_on()

    def go_on(self) -> None:
        """Raises Interrupted after SIGINT."""
        if not self.stopped.is_set():
            return
        count = len(batches.open_batches(self.ledger, self.run))
        raise Interrupted(
            "stopped",
            f"interrupted; {count} {'batch goes' if count == 1 else 'batches go'} on without this process",
            "run the same command again for the answers, or `stillhouse collect RECIPE --cancel-batches`",
        )

    async def _upload(self, endpoint: Endpoint, row: Batch) -> Batch:
        """A file whose name was lost is sent again: without a batch it is nothing but a file."""
        if row.file is not None:
            return row
        file = await self._reply(lambda: provider.upload(endpoint, self._path(row)))
        if isinstance(file, Failure):
            self._release(row, "refused", file.kind)
            raise self._no(file, endpoint)
        return batches.record_file(self.ledger, row, file)

    async def _find(self, endpoint: Endpoint, row: Batch) -> Job | None:
        """The batch that an earlier request created, if it did. An older one of the same shard, whose lines
        were asked again, may be in the list too, but its name is known."""
        jobs = await self._reply(lambda: provider.listed(endpoint, self.timeout))
        if isinstance(jobs, Failure):
            raise self._no(jobs, endpoint)
        known = batches.known_names(self.ledger, row.teacher[0])
        mine = (job for job in jobs if job.metadata.get("stillhouse_shard") == row.shard)
        return next((job for job in mine if job.name not in known), None)

    async def _look(self, endpoint: Endpoint, row: Batch) -> Job:
        job = await self._reply(lambda: provider.retrieve(endpoint, str(row.name), self.timeout))
        if isinstance(job, Failure):
            raise self._gone(row, job, endpoint)
        self.told[row.id] = job
        return job

    async def _fetch(self, endpoint: Endpoint, row: Batch, job: Job) -> None:
        """Download what a batch brought, write it down, and remove its files here."""
        shard = self._path(row)
        files = [shard.with_suffix(f".result{number}") for number in range(len(job.files))]
        for name, path in zip(job.files, files, strict=True):
            await self._download(endpoint, row, name, path)
        no_room = await self.results.record(row, job, shard, files, endpoint.base_url)
        if no_room is not None:
            self.full.append(no_room)
        del self.told[row.id], self.running[row.id]
        for path in (*files, shard):
            path.unlink(missing_ok=True)

    async def _download(self, endpoint: Endpoint, row: Batch, file: str, into: Path) -> None:
        failure = await self._reply(lambda: provider.download(endpoint, file, into))
        if isinstance(failure, Failure):
            raise self._gone(row, failure, endpoint)

    async def _reply(self, call: Callable[[], Awaitable[T | Failure]]) -> T | Failure:
        """The first reply that is no passing failure. Raises EndpointError when none comes for too long."""
        waits, until = self.habits.waits(), time.monotonic() + self.habits.patience
        while True:
            reply = await call()
            if not isinstance(reply, Failure) or reply.kind not in PASSING:
                return reply
            if time.monotonic() > until:
                raise _out_of_patience(reply)
            await self.rest(max(next(waits), reply.retry_after or 0.0))

    def _release(self, row: Batch, ending: str, reason: str) -> None:
        self.results.release(row, ending, reason)
        self._path(row).unlink(missing_ok=True)

    def _path(self, row: Batch) -> Path:
        return shard_path(self.folder, row.shard)

    def _no(self, failure: Failure, endpoint: Endpoint) -> StillhouseError:
        if failure.kind == "not_found":
            return UsageError(
                f"{endpoint.base_url} has no batches",
                f"a batch needs /files and /batches there: {failure.detail}",
                'set collect.mode = "online", or correct `teacher.endpoint`',
            )
        if failure.fatal or failure.kind == "unreachable":
            return fatal(failure, endpoint.base_url, self.results.part.teacher)
        return EndpointError(
            f"no batch can be made: {failure.kind}",
            failure.detail,
            'run the same command again later, or set collect.mode = "online"; answers so far are kept',
        )

    def _gone(self, row: Batch, failure: Failure, endpoint: Endpoint) -> StillhouseError:
        """Of a batch, or a file of it, that the provider no longer has, nothing more will come."""
        if failure.kind != "not_found":
            return self._no(failure, endpoint)
        left = batches.end_batch(self.ledger, row, "lost")
        self._path(row).unlink(missing_ok=True)
        return EndpointError(
            f"the provider no longer has the batch {row.name}, or its files",
            failure.detail,
            f"{left:,} questions are `sent, unknown`; run the same command again to ask what is missing",
        )


def _out_of_patience(failure: Failure) -> EndpointError:
    return EndpointError(
        f"the provider has given no usable reply for long: {failure.kind}",
        failure.detail,
        "run the same command again later; batches go on without this process",
    )
