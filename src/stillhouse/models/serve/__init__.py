"""A local model as an OpenAI-compatible HTTP server: `serve` here and now, `background` in a child process.

Importing this costs nothing: torch is loaded in `serve`, which `background` runs in the child.
"""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO

from stillhouse.errors import ModelError, UsageError, storage

_STOP_SECONDS = 5.0
_LOG_LINES = 12


def serve(
    source: str,
    host: str = "127.0.0.1",
    port: int = 8080,
    name: str | None = None,
    ready: Callable[[str], None] | None = None,
) -> None:
    """Load `source` and answer requests until interrupted. `port` 0 takes a free one.

    `ready` is called with the base URL once connections are accepted. The model is called `name`, else by
    its folder's name or, for a shipped model or a hub id, by `source`.

    Raises ModelError for a source that is no usable model, UsageError for an address that cannot be had.
    """
    import uvicorn

    from stillhouse.models.local import load_model
    from stillhouse.models.serve.app import Served, application

    with _listen(host, port) as listener:
        app = application(Served(load_model(source), name))
        config = uvicorn.Config(app, log_level="warning", access_log=False, lifespan="off")
        if ready is not None:
            shown = f"[{host}]" if ":" in host else host
            ready(f"http://{shown}:{listener.getsockname()[1]}/v1")
        uvicorn.Server(config).run(sockets=[listener])


def _listen(host: str, port: int) -> socket.socket:
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
def background(source: str, log: Path | None = None) -> Iterator[str]:
    """Serve `source` from a child process on a free port of loopback; gives the base URL.

    The child ends with the block, and also when this process dies, however it dies: it reads a pipe from
    here and stops at its end. What it says goes to `log`.

    Raises ModelError, with the log's last lines, when it does not come up.
    """
    command = [sys.executable, "-m", "stillhouse.models.serve", source, "--port", "0", "--until-stdin-ends"]
    with ExitStack() as stack:
        said = stack.enter_context(_log(log))
        child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, start_new_session=True
        )
        stack.callback(_stop, child)
        assert child.stdout is not None
        url = child.stdout.readline().decode().strip()
        if not url:
            code = child.wait()
            said.seek(0)
            lines = said.read().decode("utf-8", "replace").strip().splitlines()[-_LOG_LINES:]
            raise ModelError(
                f"the server for {source} did not start (exit {code})",
                "\n".join(lines) or "it said nothing",
                f"try `stillhouse serve {source}`",
            )
        yield url


def _log(log: Path | None) -> IO[bytes]:
    if log is None:
        return tempfile.TemporaryFile()
    with storage("write the server's log", log):
        log.parent.mkdir(parents=True, exist_ok=True)
        return log.open("w+b")


def _stop(child: subprocess.Popen[bytes]) -> None:
    """End the child: politely by closing its pipe, then by signal."""
    for stream in (child.stdin, child.stdout):
        if stream is not None:
            with suppress(OSError):
                stream.close()
    for end in (child.terminate, child.kill):
        try:
            child.wait(_STOP_SECONDS)
            return
        except subprocess.TimeoutExpired:
            end()
    child.wait()


def stop_with_stdin() -> None:
    """End this process when its standard input ends: whoever started it is gone."""
    with suppress(OSError):
        while os.read(0, 1024):
            pass
    os._exit(0)
