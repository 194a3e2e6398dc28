"""A PostgreSQL server for tests and benchmarks, from Debian's packages: on a free socket, gone afterwards.

.venv/bin/python benchmarks/postgres_server.py COMMAND...      run it with the URL in POSTGRES_URL
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SETTINGS = {
    "listen_addresses": "",
    "shared_buffers": "128MB",
    "max_wal_size": "1GB",
}


class Unavailable(Exception):
    """There is no server to be had here, and why."""


class Server:
    """Started by `start`, which also starts it again after `stop`. The command runs as the user `postgres`
    when we are root, since the server refuses to be root's."""

    def __init__(self, binaries: Path, folder: Path) -> None:
        self.folder = folder
        self.url = f"postgresql://stillhouse@/postgres?host={folder}"
        self._binaries = binaries
        self._as = {"user": "postgres", "group": "postgres", "extra_groups": []} if os.geteuid() == 0 else {}
        if self._as:
            shutil.chown(folder, "postgres", "postgres")
        self._process: subprocess.Popen[bytes] | None = None
        self._run(
            "initdb", "-D", folder / "data", "-U", "stillhouse", "-A", "trust", "-E", "UTF8", "--no-sync"
        )

    def start(self) -> None:
        options = [word for name, value in SETTINGS.items() for word in ("-c", f"{name}={value}")]
        self._process = subprocess.Popen(
            [self._binaries / "postgres", "-D", self.folder / "data", "-k", self.folder, *options],
            stdout=subprocess.DEVNULL,
            stderr=(self.folder / "log").open("ab"),
            cwd="/",
            **self._as,
        )
        deadline = time.monotonic() + 60
        while subprocess.run(
            [self._binaries / "pg_isready", "-q", "-h", self.folder], check=False, cwd="/"
        ).returncode:
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise Unavailable((self.folder / "log").read_text()[-2000:])
            time.sleep(0.05)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """SIGINT ends connections and writes all out; SIGQUIT is as a crash of the server."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(60)

    def _run(self, name: str, *words: str | Path) -> None:
        done = subprocess.run(
            [self._binaries / name, *words], capture_output=True, text=True, check=False, cwd="/", **self._as
        )
        if done.returncode:
            raise Unavailable(f"{name}: {done.stderr[-2000:]}")


def binaries() -> Path:
    """Where the server's programs lie; installed first on a Debian where they are missing and we are root."""
    if (found := _found()) is None and os.geteuid() == 0 and shutil.which("apt-get"):
        for words in (["update"], ["install", "-y", "--no-install-recommends", "postgresql"]):
            quiet = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
            done = subprocess.run(
                ["apt-get", "-q", *words], env=quiet, capture_output=True, text=True, check=False, timeout=300
            )
            if done.returncode:
                raise Unavailable(f"apt-get {' '.join(words)}: {done.stderr[-500:]}")
        found = _found()
    if found is None:
        raise Unavailable("PostgreSQL's server is not installed: apt-get install postgresql")
    return found


def _found() -> Path | None:
    known = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[4]))
    if known:
        return known[-1].parent
    on_path = shutil.which("postgres")
    return Path(on_path).parent if on_path and shutil.which("initdb") else None


@contextmanager
def running() -> Iterator[Server]:
    """Raises Unavailable."""
    # A socket's path is short.
    folder = Path(tempfile.mkdtemp(prefix="pg", dir="/tmp"))
    server = None
    try:
        server = Server(binaries(), folder)
        server.start()
        yield server
    finally:
        if server is not None:
            server.stop()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    with running() as started:
        sys.exit(
            subprocess.run(
                sys.argv[1:], env=os.environ | {"POSTGRES_URL": started.url}, check=False
            ).returncode
        )
