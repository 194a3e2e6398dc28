"""A local model as an OpenAI-compatible HTTP server: `serve` here and now, `background` in a child process.

Importing this costs nothing: torch is loaded in `serve`, which `background` runs in the child.
"""

from __future__ import annotations

import errno
import os
import queue
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING

from stillhouse.errors import ModelError, UsageError, storage
from stillhouse.models.wire import MAX_TOP_LOGPROBS

if TYPE_CHECKING:
    from stillhouse.watermark.keys import Key

_READY_SECONDS = 600.0  # to load the weights, perhaps from the hub or a slow disk
MAX_ROWS = 128  # requests that one thread of a model works on at once
_KEEP_ALIVE_SECONDS = 75  # longer than clients keep a connection: they close it, none breaks under a request
_STOP_SECONDS = 5.0
_LOG_LINES = 12


def serve(
    source: str,
    host: str = "127.0.0.1",
    port: int = 8080,
    name: str | None = None,
    ready: Callable[[str], None] | None = None,
    max_logprobs: int = MAX_TOP_LOGPROBS,
    mark: Key | None = None,
) -> None:
    """Load `source` and answer requests until interrupted. `port` 0 takes a free one.

    `ready` is called with the base URL once connections are accepted. The model is called `name`, else by
    its folder's name or, for a shipped model or a hub id, by `source`. `max_logprobs` bounds how many tokens
    are told beside each one of a prompt that is read; -1 for no bound. Answers are marked with the key
    `mark`, which a header names.

    Raises ModelError for a source that is no usable model, UsageError for an address that cannot be had or a
    key that marks no tokens.
    """
    if mark is not None and mark.scheme.name == "selection":
        raise UsageError(
            f"the watermark key {mark.id} cannot mark what a model writes",
            "its scheme, selection, chooses among whole answers",
            "make one of another scheme with `stillhouse watermark rotate`",
        )
    import uvicorn

    from stillhouse.models.local import load_model, threads_for, workers_for
    from stillhouse.models.serve.app import Served, application

    with listen(host, port) as listener:
        model = load_model(source)
        app = application(Served(model, name, workers_for(model), max_logprobs, mark))
        config = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            lifespan="off",
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        )
        if ready is not None:
            shown = f"[{host}]" if ":" in host else host
            ready(f"http://{shown}:{listener.getsockname()[1]}/v1")
        with threads_for(model):  # its threads start in the block and take their number from here
            uvicorn.Server(config).run(sockets=[listener])


def listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        mend = "stop what listens there or choose another port; 0 takes a free one"
        if error.errno != errno.EADDRINUSE:
            mend = "choose an address of this machine and a port above 1023"
        raise UsageError(f"cannot listen on {host}:{port}", error.strerror or str(error), mend) from error
    listener.listen(2048)
    return listener


@contextmanager
def background(source: str, log: Path | None = None, *options: str) -> Iterator[str]:
    """Serve `source` from a child process on a free port of loopback; gives the base URL.

    The child ends with the block, and also when this process dies, however it dies: it reads a pipe from
    here and stops at its end. What it says goes to `log`. `options` are further ones of its command line.

    Raises ModelError, with the log's last lines, when it does not come up within ten minutes.
    """
    command = [sys.executable, "-m", "stillhouse.models.serve", source, "--port", "0", "--until-stdin-ends"]
    command += options
    with ExitStack() as stack:
        said = stack.enter_context(_log(log))
        child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, start_new_session=True
        )
        first: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        reader = threading.Thread(target=_read, args=(child, first, said), daemon=True)
        reader.start()
        stack.callback(_stop, child, reader)
        try:
            url = first.get(timeout=_READY_SECONDS).decode().strip()
            how = "" if url else f"exit {child.wait()}"
        except queue.Empty:
            how = f"not ready after {_READY_SECONDS:g} s"
        if how:
            said.seek(0)
            lines = said.read().decode("utf-8", "replace").strip().splitlines()[-_LOG_LINES:]
            raise ModelError(
                f"the server for {source} did not start ({how})",
                "\n".join(lines) or "it said nothing",
                f"try `stillhouse serve {source}`",
            )
        yield url


def _read(child: subprocess.Popen[bytes], first: queue.SimpleQueue[bytes], log: IO[bytes]) -> None:
    """The child's first line to `first`, what else it writes to `log`."""
    assert child.stdout is not None
    first.put(child.stdout.readline())
    with suppress(OSError, ValueError):  # the log is closed: nobody will read it
        for line in child.stdout:
            os.write(log.fileno(), line)  # past the file's own buffer: the child writes there as well


def _log(log: Path | None) -> IO[bytes]:
    if log is None:
        return tempfile.TemporaryFile()
    with storage("write the server's log", log):
        log.parent.mkdir(parents=True, exist_ok=True)
        return log.open("w+b")


def _stop(child: subprocess.Popen[bytes], reader: threading.Thread) -> None:
    """End the child: politely by closing its pipe, then by signal."""
    assert child.stdin is not None
    assert child.stdout is not None
    with suppress(OSError):
        child.stdin.close()
    for end in (child.terminate, child.kill):
        try:
            child.wait(_STOP_SECONDS)
            break
        except subprocess.TimeoutExpired:
            end()
    child.wait()
    reader.join(_STOP_SECONDS)
    if not reader.is_alive():  # else a process of the child's own has the pipe still
        child.stdout.close()


def stop_with_stdin() -> None:
    """End this process when its standard input ends: whoever started it is gone."""
    with suppress(OSError):
        while os.read(0, 1024):
            pass
    os._exit(0)
