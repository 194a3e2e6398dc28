"""A Redis server for tests and benchmarks, from Debian's packages: on a free socket, gone afterwards.

.venv/bin/python benchmarks/redis_server.py COMMAND...      run it with the URL in REDIS_URL
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

DURABLE = {"appendonly": "yes", "appendfsync": "always", "save": ""}


class Unavailable(Exception):
    """There is no server to be had here, and why."""


class Server:
    """Started by `start`, which also starts it again after `stop`; `settings` go before those that keep what
    was answered."""

    def __init__(self, program: str, folder: Path) -> None:
        self.folder = folder
        self.socket = folder / "socket"
        self.url = f"unix://{self.socket}"
        self._program = program
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, **settings: str) -> None:
        known = {"port": "0", "unixsocket": str(self.socket), "dir": str(self.folder)} | DURABLE | settings
        options = [word for name, value in known.items() for word in (f"--{name.replace('_', '-')}", value)]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen([self._program, *options], stdout=log, stderr=log)
        deadline = time.monotonic() + 30
        while self.ask("PING") != "+PONG":
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise Unavailable((self.folder / "log").read_text()[-2000:])
            time.sleep(0.02)

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(30)

    def signal(self, how: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(how)

    def ask(self, *words: str) -> str:
        """The first line of the answer; "" when there is nobody."""
        try:
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(5)
                client.connect(str(self.socket))
                client.sendall(f"{' '.join(words)}\r\n".encode())
                return client.makefile().readline().strip()
        except OSError:
            return ""


def program() -> str:
    """Where the server lies; installed first on a Debian where it is missing and we are root."""
    if shutil.which("redis-server") is None and os.geteuid() == 0 and shutil.which("apt-get"):
        for words in (["update"], ["install", "-y", "--no-install-recommends", "redis-server"]):
            quiet = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
            done = subprocess.run(
                ["apt-get", "-q", *words], env=quiet, capture_output=True, text=True, check=False, timeout=300
            )
            if done.returncode:
                raise Unavailable(f"apt-get {' '.join(words)}: {done.stderr[-500:]}")
    found = shutil.which("redis-server")
    if found is None:
        raise Unavailable("the server of Redis is not installed: apt-get install redis-server")
    return found


@contextmanager
def running(where: str = "/tmp") -> Iterator[Server]:
    """With its file under `where`, whose path has to be short. Raises Unavailable."""
    folder = Path(tempfile.mkdtemp(prefix="redis", dir=where))
    server = None
    try:
        server = Server(program(), folder)
        server.start()
        yield server
    finally:
        if server is not None:
            server.stop(signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    with running() as started:
        sys.exit(
            subprocess.run(sys.argv[1:], env=os.environ | {"REDIS_URL": started.url}, check=False).returncode
        )
