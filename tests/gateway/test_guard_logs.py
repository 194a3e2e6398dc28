"""The gateway's log: one line each, whatever stands in it, and nobody waits for it."""

import json
import os
import subprocess
import sys
import threading
import time

from hypothesis import given
from hypothesis import strategies as st
from recorded import event

from stillhouse.gateway import logs
from stillhouse.gateway.logs import LONGEST, Logs, line

HOSTILE = (
    'x"}\n{"event":"admin","who":"root"}',
    "\r\n\r\nHTTP/1.1 200",
    "\x1b[2J\x1b[31mred\x07",
    "\x9b31m and \x85 and \u2028\u2029",
    "\u202eevil\u202c \ud800 \x00 \x7f",
    "${jndi:ldap://x} %s %n {0}",
)


@given(st.text() | st.sampled_from(HOSTILE), st.dictionaries(st.text(max_size=9), st.text(), max_size=4))
def test_a_line_is_one_line_of_plain_ascii_and_says_what_was_said(name, fields):
    data = line(name, 1_795_000_000.0, fields)
    assert data.endswith(b"\n")
    assert data.count(b"\n") == 1
    assert all(0x20 <= byte < 0x7F for byte in data[:-1])
    said = json.loads(data)
    assert said["time"] == "2026-11-18T11:06:40.000+00:00"
    assert said["event"] == name[:LONGEST] + said["event"][LONGEST:]
    for key, value in fields.items():
        if key not in ("time", "event"):
            assert said[key].startswith(value[:LONGEST])


def test_what_is_long_is_cut_and_says_so():
    data = line("x", 0.0, {"model": "m" * 10**6, "models": ["m" * 10**6] * 1000, "n": 5, "none": None})
    assert len(data) < 60 * LONGEST
    said = json.loads(data)
    assert said["model"].endswith("(1000000 characters)")
    assert (said["n"], said["none"]) == (5, None)


def test_a_refusal_is_told_without_content(monkeypatch):
    told = []
    monkeypatch.setattr(logs, "_of_this_process", lambda: made)
    made = Logs(told.append)
    for hostile in HOSTILE:
        logs.ended(event(1, model=hostile, ended="refused", status=429, reason="requests_per_minute"))
    logs.ended(event(2))
    logs.ended(event(3, ended="client_left"))
    made.close()
    lines = b"".join(told).decode("ascii").splitlines()
    assert len(lines) == len(HOSTILE)
    for text, hostile in zip(lines, HOSTILE, strict=True):
        said = json.loads(text)
        assert said["event"] == "refused"
        assert said["model"] == hostile
        assert set(said) == {
            "time", "event", "request", "account", "key", "model", "route", "status", "reason", "upstream"
        }  # fmt: skip


def test_nobody_waits_for_a_reader_that_does_not_read():
    gate, told = threading.Event(), []

    def write(data):
        gate.wait()
        told.append(data)

    made = Logs(write)
    began = time.perf_counter()
    for n in range(12_000):
        made.say("refused", n=n)
    assert time.perf_counter() - began < 5
    assert made.dropped >= 1_500
    gate.set()
    made.flush(30)
    made.say("after")
    made.close()
    lines = [json.loads(text) for text in b"".join(told).splitlines()]
    dropped = sum(said["count"] for said in lines if said["event"] == "lines dropped")
    assert dropped == made.dropped
    assert sum(said["event"] == "refused" for said in lines) == 12_000 - dropped


def test_a_process_says_all_before_it_ends_and_lives_on_without_stderr():
    code = "from stillhouse.gateway import logs\nfor n in range(500): logs.say('x', n=n)\nprint('done')"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert [json.loads(text)["n"] for text in run.stderr.splitlines()] == list(range(500))
    read, write = os.pipe()
    os.close(read)
    closed = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=write, check=False)
    os.close(write)
    assert closed.stdout == b"done\n"
    assert closed.returncode == 0
