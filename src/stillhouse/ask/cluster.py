"""Asking from many machines: the processes of a Ray cluster send, and this one decides and writes.

There is one dispatcher, the same as without a cluster: it holds each teacher's pace, the cap and the ledger.
It hands a request to a worker when it may leave, with its attempt written and its worst case reserved, so
every bound holds for all workers together. The worker's shard has the outcome before the dispatcher hears of
it, and the dispatcher writes it to the ledger. When a worker dies, another process of its machine reads from
its shard what it did not tell; what is not there either is lost, and its attempt unknown.

Ray's actors are used as they are, not Ray Data: that repeats a whole block when a worker dies, and so would
buy its answers again.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AsyncExitStack, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

from stillhouse.ask.lane import Here
from stillhouse.ask.settling import Begun, Ended, settle_found
from stillhouse.ask.shard import shards
from stillhouse.ask.worker import Errand, Place, Told, Worker, left_behind, read_one, remove
from stillhouse.errors import EndpointError, StillhouseError, UsageError, storage
from stillhouse.ledger import Ledger
from stillhouse.models.endpoint import Endpoint, Failure, Reply

START_SECONDS = 180.0  # how long the first worker may take to start
READ_SECONDS = 60.0  # how long the shard of a dead worker may take to read
OVERDUE_SECONDS = 60.0  # after a request's own time limit, until its worker is taken for dead
BARREN = 3  # workers that die one after the other, for each that was wanted, before the run stops
OBJECT_BYTES = 200 << 20  # of shared memory for a cluster on this machine: what is on its way to a worker
ELSEWHERE = "elsewhere"  # a file beside the shards that says that there may be some on other machines
LOST = Failure("lost", "the process that sent it died", sent=True)


@dataclass(slots=True)
class Remote:
    """A worker as seen from here; `open` are its attempts, and `outbox` what it will be given next."""

    handle: Any
    place: Place
    open: dict[int, asyncio.Future[tuple[Reply | Failure, float]]] = field(default_factory=dict)
    outbox: list[Errand] = field(default_factory=list)


class Cluster:
    """`count` workers, kept at that number, from `async with` to its end. `folder` is where they put their
    shards, each on its own machine, and `ledger` the origin of the ledger that all is for."""

    def __init__(self, count: int, folder: Path, ledger: str) -> None:
        self.count = count
        self.workers: list[Remote] = []
        self._folder = folder
        self._ledger = ledger
        self._teachers: list[tuple[str, str | None]] = []
        self._serving: set[asyncio.Task[None]] = set()
        self._sessions = AsyncExitStack()  # of this process
        self._changed = asyncio.Event()
        self._error: StillhouseError | None = None
        self._barren = 0  # workers that died since the last outcome

    async def __aenter__(self) -> Self:
        self._serving = {asyncio.create_task(self._serve()) for _ in range(self.count)}
        return self

    async def __aexit__(self, *exc: object) -> None:
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)
        await self._sessions.aclose()
        self.workers = []

    async def open(self, url: str, key_env: str | None) -> Elsewhere:
        """A sender of this teacher's requests. Raises UsageError where a worker lacks the key."""
        from ray.exceptions import RayActorError

        self._teachers.append((url, key_env))
        await self._worker()
        for worker in list(self.workers):
            with suppress(RayActorError):  # `_serve` will see to it
                await _theirs(worker.handle.begin.remote(self._teachers))
        here = None
        with suppress(UsageError):  # the key is with the workers alone
            here = Here(await self._sessions.enter_async_context(Endpoint(url, key_env)))
        return Elsewhere(self, url, key_env, here)

    async def send(self, errand: Errand) -> tuple[Reply | Failure, float]:
        """Have the request sent by the worker that has least to do. Raises what that one raised."""
        worker = await self._worker()
        loop = asyncio.get_running_loop()
        future: asyncio.Future[tuple[Reply | Failure, float]] = loop.create_future()
        worker.open[errand.begun.attempt] = future
        worker.outbox.append(errand)
        if len(worker.outbox) == 1:  # what is handed out at one time travels together
            loop.call_soon(self._give, worker)
        done, _ = await asyncio.wait({future}, timeout=errand.timeout + OVERDUE_SECONDS)
        if not done:
            import ray

            ray.kill(worker.handle)
        return await future

    def _give(self, worker: Remote) -> None:
        errands, worker.outbox = worker.outbox, []
        worker.handle.give.remote(errands)

    async def _worker(self) -> Remote:
        """The one with least to do, as soon as there is one."""
        while not self.workers and self._error is None:
            self._changed.clear()
            try:
                await asyncio.wait_for(self._changed.wait(), START_SECONDS)
            except TimeoutError:
                self._error = EndpointError(
                    f"no worker of the Ray cluster was ready within {START_SECONDS:.0f} s",
                    "the cluster has no room for it, or its machines cannot start it",
                    "see `ray status`",
                )
        if self._error is not None:
            raise self._error
        return min(self.workers, key=lambda worker: len(worker.open))

    async def _serve(self) -> None:
        """Keep one worker: hear from it until it dies, see to what it left, and start the next."""
        import ray
        from ray.exceptions import RayActorError

        actor = ray.remote(Worker).options(num_cpus=0, max_restarts=0, scheduling_strategy="SPREAD")
        while self._error is None:
            handle = actor.remote(str(self._folder), self._ledger)
            worker: Remote | None = None
            try:
                worker = Remote(handle, await _theirs(handle.begin.remote(self._teachers)))
                self.workers.append(worker)
                self._changed.set()
                while True:
                    self._heard(worker, await handle.take.remote())
                    self._barren = 0
            except RayActorError as error:
                self._barren += 1
                if self._barren > BARREN * self.count:
                    self._error = EndpointError(
                        f"{self._barren} workers of the Ray cluster died, one after the other",
                        last_line(error),
                        "see Ray's logs, and that this version of stillhouse is installed on each machine",
                    )
            except StillhouseError as error:
                self._error = self._error or error
            except Exception as error:  # a worker's own, most likely; unseen, it would leave all waiting
                self._error = self._error or EndpointError(
                    f"a worker of the Ray cluster failed: {type(error).__name__}",
                    last_line(error),
                    "see Ray's logs, and that this version of stillhouse is installed on each machine",
                )
            finally:
                ray.kill(handle)
            self._changed.set()
            if worker is not None:
                self.workers.remove(worker)
                await self._bury(worker)

    def _heard(self, worker: Remote, news: list[tuple[int, Told]]) -> None:
        for attempt, told in news:
            future = worker.open.pop(attempt)
            if future.done():
                continue
            if isinstance(told, Exception):
                future.set_exception(told)
            else:
                future.set_result(told)

    async def _bury(self, worker: Remote) -> None:
        """What the dead worker had written but not told is told now; the rest is lost."""
        found: list[tuple[int, Told]] = []
        if worker.open:
            with suppress(Exception):  # its machine may be gone as well
                read = _on(worker.place.node, read_one, worker.place.shard, set(worker.open))
                shard = await asyncio.wait_for(read, READ_SECONDS)
                found = [(ended.begun.attempt, (ended.outcome, ended.seconds)) for ended in shard]
        self._heard(worker, found)
        self._heard(worker, [(attempt, (LOST, 0.0)) for attempt in list(worker.open)])


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """Requests to one teacher leave from the workers of a cluster; canaries from this process, where it has
    the key, so that what a round hears does not depend on which machine was free."""

    cluster: Cluster
    url: str
    key_env: str | None
    here: Here | None

    async def send(self, begun: Begun, body: bytes, timeout: float) -> Ended:  # noqa: ASYNC109
        if self.here is not None and "epoch" in begun.leaf:
            return await self.here.send(begun, body, timeout)
        told = await self.cluster.send(Errand(begun, body, self.url, self.key_env, timeout))
        return Ended(begun, told[0], body, told[1])


# ---------------------------------------------------------------- before and after


@contextmanager
def on_ray(count: int, folder: Path, ledger: Ledger, run: str) -> Iterator[Cluster]:
    """A cluster to ask from: the one that RAY_ADDRESS names, else one on this machine for as long as the
    block lasts. `count` 0 means a worker for each machine, and two at least.

    What workers left behind, in an earlier call or in this one, is merged before the block and after it.
    Raises UsageError when Ray is not installed or the cluster not there.
    """
    address = os.environ.get("RAY_ADDRESS") or "local"
    others = address != "local"
    with ExitStack() as stack:
        ray = _joined(address, stack)

        def merge() -> int:
            machines = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
            _recover(machines if others else [], folder, ledger, run)
            return len(machines)

        if others:
            with storage("write", folder):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                (folder / ELSEWHERE).write_text(address + "\n")
        machines = merge()
        try:
            yield Cluster(count or max(2, machines), folder, ledger.origin)
        finally:
            merge()
            (folder / ELSEWHERE).unlink(missing_ok=True)
            with suppress(OSError):  # never made, or a shard of somebody else is in it
                folder.rmdir()


def recover(folder: Path, ledger: Ledger, run: str) -> None:
    """Merge what workers left behind on this machine, and remove it: attempts of the run that were never
    settled get their outcome. Again, or after a crash half-way, it changes nothing that is merged already.

    Raises UsageError when other machines may hold more, and StorageError while a worker lives on.
    """
    if (folder / ELSEWHERE).exists():
        raise UsageError(
            "answers of this run may lie on other machines",
            f"a collection over the Ray cluster at {(folder / ELSEWHERE).read_text().strip()} did not end",
            f"run it again with `--on ray`, or delete {folder / ELSEWHERE} to ask what is missing once more",
        )
    if shards(folder, ledger.origin):
        _recover([], folder, ledger, run)


def _recover(machines: list[str], folder: Path, ledger: Ledger, run: str) -> None:
    unsettled = ledger.unsettled(run)
    given = (str(folder), ledger.origin, set(unsettled))
    kept = [left_behind(*given), *_each(machines, left_behind, *given)]
    found = {ended.begun.attempt: ended for _, all_ended in kept for ended in all_ended}
    settle_found(ledger, found.values(), unsettled)
    remove(kept[0][0])
    paths = sorted({path for names, _ in kept[1:] for path in names})
    _each(machines if paths else [], remove, paths)


def _joined(address: str, stack: ExitStack) -> Any:
    """Ray, connected until the stack ends to the cluster at the address, or to a new one on this machine."""
    try:
        import ray
    except ImportError:
        raise UsageError(
            "Ray is not installed",
            "`--on ray` needs the extra `ray`, here and on each machine of the cluster",
            "pip install 'stillhouse[ray]'",
        ) from None
    if address.startswith("ray://"):
        raise UsageError(
            f"RAY_ADDRESS is that of a client, {address}",
            "answers are read from the disks of the cluster's machines, by one that belongs to it",
            "run the command on a machine of the cluster, with RAY_ADDRESS=auto",
        )
    new: dict[str, Any] = {}
    if address == "local":
        scratch = TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True)  # short: sockets
        folder = stack.enter_context(scratch)
        new = {"include_dashboard": False, "object_store_memory": OBJECT_BYTES, "_temp_dir": folder}
    join(ray, address, new)
    stack.callback(ray.shutdown)
    return ray


def join(ray: Any, address: str, new: Mapping[str, Any]) -> None:
    """Connect this process to the cluster, or to a `new` one with these settings. Raises UsageError."""
    import logging

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to anybody
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **new)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UsageError(
            f"could not join the Ray cluster at {address}",
            str(error).strip().splitlines()[0],
            "correct RAY_ADDRESS, or unset it to work on this machine alone",
        ) from error


def _on(node: str, function: Callable[..., Any], *given: Any) -> Any:
    """Have a function called on one machine; the reference to its result."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    there = NodeAffinitySchedulingStrategy(node, soft=False)
    return ray.remote(function).options(num_cpus=0, max_retries=0, scheduling_strategy=there).remote(*given)


def _each(machines: list[str], function: Callable[..., Any], *given: Any) -> list[Any]:
    """The results from the machines that answer."""
    if not machines:  # nothing to call, and Ray need not be here to merge what lies on this machine
        return []
    import ray
    from ray.exceptions import GetTimeoutError, RayError, RayTaskError

    results = []
    for reference in [_on(machine, function, *given) for machine in machines]:
        try:
            results.append(ray.get(reference, timeout=READ_SECONDS))
        except RayTaskError as error:
            raise error.cause from None
        except (RayError, GetTimeoutError):
            continue  # the machine is gone; what was sent from there stays unknown
    return results


async def _theirs(reference: Any) -> Any:
    """The result of a worker; raises the worker's own error where it is one of stillhouse's."""
    from ray.exceptions import RayTaskError

    try:
        return await reference
    except RayTaskError as error:
        if isinstance(error.cause, StillhouseError):
            raise error.cause from None
        raise


def last_line(error: Exception) -> str:
    """What an error of Ray's says in the end; before that stands a trace."""
    return (str(error).strip().splitlines() or [""])[-1]
