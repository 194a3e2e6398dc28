"""What runs on the machines of a cluster: it sends what it is given, and writes down what became of it before
it tells. It decides nothing: when a request leaves, and what its failure means, is for the dispatcher to say.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from stillhouse.ask.lane import Here
from stillhouse.ask.settling import Begun, Ended
from stillhouse.ask.shard import Shard, frame, read_shard, shard_name, shards
from stillhouse.errors import StillhouseError, UsageError
from stillhouse.models.endpoint import Endpoint, Failure, Reply

GATHER_SECONDS = 0.01  # what ends within this time is told together: a message costs as much as ten answers

# An outcome and its seconds, or what kept it from being sent or written down
Told = tuple[Reply | Failure, float] | Exception


class Errand(NamedTuple):
    """A request to send, and where to: `key_env` names a variable of the worker's own environment."""

    begun: Begun
    body: bytes
    url: str
    key_env: str | None
    timeout: float


class Place(NamedTuple):
    """Where a worker is: its Ray node, and its shard there."""

    node: str
    shard: str


class Worker:
    """One process of the cluster, as a Ray actor; its methods run on one event loop."""

    def __init__(self, folder: str, ledger: str) -> None:
        self._path = Path(folder) / shard_name(ledger, f"{os.getpid()}-{secrets.token_hex(4)}")
        self._shard: Shard | None = None
        self._endpoints: dict[tuple[str, str | None], Endpoint] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._told: list[tuple[int, Told]] = []
        self._some = asyncio.Event()
        self._unsaved: list[tuple[bytes, asyncio.Future[None]]] = []
        self._saving: asyncio.Task[None] | None = None

    async def begin(self, teachers: Collection[tuple[str, str | None]]) -> Place:
        """Prepare for these teachers. Raises UsageError where this machine lacks a key, and StorageError
        where it has no room for a shard."""
        import ray

        try:
            for url, key_env in teachers:
                await self._endpoint(url, key_env)
        except UsageError as error:
            raise UsageError(
                f"{error.what} on {socket.gethostname()}",
                error.why,
                "workers have the environment of `ray start`: set it there, on each machine",
            ) from None
        self._shard = self._shard or Shard(self._path)
        return Place(ray.get_runtime_context().get_node_id(), str(self._path))

    async def give(self, errands: list[Errand]) -> None:
        """Send these now."""
        for errand in errands:
            task = asyncio.create_task(self._run(errand))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def take(self) -> list[tuple[int, Told]]:
        """What became of attempts since the last call; waits until there is something."""
        await self._some.wait()
        await asyncio.sleep(GATHER_SECONDS)
        self._some.clear()
        told, self._told = self._told, []
        return told

    async def _run(self, errand: Errand) -> None:
        told: Told
        try:
            endpoint = await self._endpoint(errand.url, errand.key_env)
            ended = await Here(endpoint).send(errand.begun, errand.body, errand.timeout)
            await self._save(frame(ended))
            told = (ended.outcome, ended.seconds)
        except StillhouseError as error:
            told = error
        except Exception as error:  # of any class, and so perhaps not one that can be sent
            told = RuntimeError(f"in a worker: {type(error).__name__}: {error}")
        self._told.append((errand.begun.attempt, told))
        self._some.set()

    async def _endpoint(self, url: str, key_env: str | None) -> Endpoint:
        if (url, key_env) not in self._endpoints:
            self._endpoints[url, key_env] = await Endpoint(url, key_env).__aenter__()
        return self._endpoints[url, key_env]

    async def _save(self, data: bytes) -> None:
        """Return once the frame is on disk. Those that wait together are synced together."""
        saved: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._unsaved.append((data, saved))
        if self._saving is None or self._saving.done():
            self._saving = asyncio.create_task(self._sync())
        await saved

    async def _sync(self) -> None:
        assert self._shard is not None
        while self._unsaved:
            group, self._unsaved = self._unsaved, []
            try:
                await asyncio.to_thread(self._shard.append, [data for data, _ in group])
            except Exception as error:  # for each that waits
                for _, saved in group:
                    saved.set_exception(error)
            else:
                for _, saved in group:
                    saved.set_result(None)


def left_behind(folder: str, ledger: str, wanted: set[int]) -> tuple[list[str], list[Ended]]:
    """The shards in a folder of this machine, and what they hold of the wanted attempts."""
    paths = shards(Path(folder), ledger)
    found = [ended for path in paths for ended in read_shard(path, wanted)] if wanted else []
    return [str(path) for path in paths], found


def read_one(path: str, wanted: set[int]) -> list[Ended]:
    return list(read_shard(Path(path), wanted))


def remove(paths: list[str]) -> None:
    """Shards of which everything is in the ledger."""
    for path in map(Path, paths):
        path.unlink(missing_ok=True)
