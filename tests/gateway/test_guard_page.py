"""The commands of docs/guard.md, run one after the other as a stranger would."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "guard.md"


class Stranger:
    """In an empty folder, with `stillhouse` on the path, and other ports than the page's."""

    def __init__(self, folder):
        (folder / "bin").mkdir()
        program = folder / "bin" / "stillhouse"
        program.write_text(f'#!/bin/sh\nexec {sys.executable} -m stillhouse.cli "$@"\n')
        program.chmod(0o755)
        self.folder = folder
        self.environ = {
            **os.environ,
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1",
        }
        self.known = {"MONTH": f"{datetime.now(UTC):%Y-%m}"}
        self.serving = []
        with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
            self.known |= {"8080": str(one.getsockname()[1]), "8700": str(two.getsockname()[1])}

    def does(self, language, text):
        """What each line, or the whole of another language, printed."""
        if language == "toml":
            text = f"[server]\nport = {self.known['8700']}\n{self.filled(text)}"
            (self.folder / "guard.toml").write_text(text)
            return []
        if language == "python":
            return [self.runs(sys.executable, "-c", self.filled(text))]
        return [self.runs_line(line) for line in text.splitlines()]

    def filled(self, text):
        return re.sub(rf"\b({'|'.join(self.known)})\b", lambda found: self.known[found[0]], text)

    def runs_line(self, line):
        line = self.filled(line)
        if line.startswith("export "):
            name = line.split()[1].partition("=")[0]
            self.environ[name] = self.runs("bash", "-c", f"{line}; printenv {name}").strip()
            return ""
        if re.match("stillhouse (guard )?serve ", line):
            return self.serves(line)
        printed = self.runs("bash", "-c", line)
        for name, row in (("ACCOUNT", r"^id +(acct_\w+)"), ("KEY", r"^secret +(sk-still-\w+)")):
            if line.startswith("stillhouse guard") and (found := re.search(row, printed, re.M)):
                self.known[name] = found[1]
        return printed

    def runs(self, *command):
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=self.environ,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        return done.stdout

    def serves(self, line):
        log = self.folder / f"serving-{len(self.serving)}"
        with log.open("wb") as to:
            command = ["bash", "-c", f"exec {line}"]
            self.serving.append(
                subprocess.Popen(command, cwd=self.folder, env=self.environ, stdout=to, stderr=to)
            )
        self.sees("serving", log)
        self.known["PID"] = str(self.serving[-1].pid)
        return log.read_text()

    def sees(self, word, log):
        end = time.monotonic() + 60
        while word not in log.read_text():
            assert time.monotonic() < end, log.read_text()
            assert self.serving[-1].poll() is None, log.read_text()
            time.sleep(0.05)


@pytest.fixture
def stranger(tmp_path):
    made = Stranger(tmp_path)
    yield made
    for process in made.serving:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def test_the_commands_of_the_page_do_what_it_says(stranger):
    blocks = re.findall(r"^```(sh|toml|python)\n(.*?)^```", PAGE.read_text(), re.M | re.S)
    assert [language for language, _ in blocks] == "sh sh toml sh sh python sh sh sh".split()
    told = [stranger.does(language, text) for language, text in blocks[:-2]]
    _, _, _, (_, checked, *_), (asked, streamed), (answer,), (more, usage, invoice, metrics) = told
    assert "0 errors, 0 warnings" in checked
    assert asked.startswith("HTTP/1.1 200")
    assert "x-ratelimit-remaining-requests: 3" in asked
    assert json.loads(asked.splitlines()[-1])["usage"]["completion_tokens"] <= 20
    assert streamed.endswith("data: [DONE]\n\n")
    assert answer
    assert re.findall(r"^HTTP/1.1 (\d+)", more, re.M) == ["200", "429"]
    # A minute after the first of them, which on a slow machine was answered long ago
    assert 5 <= int(re.search(r"retry-after: (\d+)", more)[1]) <= 65
    assert stranger.known["ACCOUNT"] in usage
    assert re.search(r"^first +standard .* 4 ", invoice, re.M)
    assert 'stillhouse_guard_requests_total{ended="whole",model="first",status="2xx"} 4.0' in metrics
    log = stranger.folder / "serving-1"
    stranger.does(*blocks[-2])
    stranger.sees("reloaded", log)
    stranger.does(*blocks[-1])
    assert stranger.serving[-1].wait(30) == 0
