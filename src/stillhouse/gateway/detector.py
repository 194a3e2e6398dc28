"""The process in which accounts are watched: it does what the gateway says (watcher.py) until that ends."""

from __future__ import annotations

import gc
import signal
import sys
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

import orjson

from stillhouse.errors import StillhouseError
from stillhouse.gateway import logs
from stillhouse.gateway.watcher import Answered, Told
from stillhouse.gateway.watching import Watching


def main(descriptor: int) -> None:
    for sign in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(sign, signal.SIG_IGN)  # meant for the gateway, which ends this process in its time
    gc.set_threshold(50_000, 20, 100)  # what is held of accounts are bytes, and in no cycle
    said: list[tuple[str, dict[str, Any]]] = []
    with Connection(descriptor) as pipe, suppress(EOFError, OSError):  # the gateway may be killed
        watching = Watching(*pipe.recv(), log=lambda event, **fields: said.append((event, fields)))
        try:
            while True:
                word, *rest = pipe.recv()
                if word == "look":
                    for answered in rest[0]:
                        _look(watching, answered)
                elif word == "apply":
                    watching.apply(*rest)
                else:
                    error = _flushed(watching, *rest) if word == "flush" else None
                    pipe.send(error or _figures(watching, said))
        finally:
            watching.close()


def _look(watching: Watching, answered: Answered) -> None:
    account, route, raw, tokens, at = answered
    watching.put(account, route, orjson.loads(raw), tokens, at, len(raw))


def _flushed(watching: Watching, seconds: float | None) -> Exception | None:
    try:
        watching.flush(seconds)
    except (TimeoutError, StillhouseError) as error:
        return error
    return None


def _figures(watching: Watching, said: list[tuple[str, dict[str, Any]]]) -> Told:
    news, said[:] = said[:], []
    return watching.observed, dict(watching.unobserved), watching.waiting, news


if __name__ == "__main__":
    try:
        main(int(sys.argv[1]))
    except Exception as error:  # a traceback could hold words of a request
        logs.fault(error)
        logs.flush()
