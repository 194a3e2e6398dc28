"""The record of a process that is killed, and of one that runs for long."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from recorded import RATES, event, record

from stillhouse.gateway.served import proof_of
from stillhouse.gateway.store.events import Events
from stillhouse.guard import config
from stillhouse.guard.events import totals
from stillhouse.guard.proof import read_event_proof
from stillhouse.ledger import Ledger
from stillhouse.ledger.keys import read_public_key
from stillhouse.workspace import Workspace

SERVE = """
import sys
from recorded import event, record
from stillhouse.gateway import record as module
from stillhouse.guard import config
module.GROUP, module.BATCH, module.LINGER = 64, 32, 0.002
kept = record(config.Store(folder=sys.argv[1]))
n = int(sys.argv[2])
while True:
    for n in range(n, n + 7):
        kept.put(event(n))
    n += 1
    kept.flush()
    print(n, flush=True)
"""

MEMORY = """
import os, sys, time
from recorded import event, record
from stillhouse.guard import config
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE") / 2**20
kept = record(config.Store(folder=sys.argv[1]))
for n in range(120_000):
    kept.put(event(n, id=f"req_{n * 7919 % 1_000_003:06}", account=f"a{n % 5000}"))
    if n % 5000 == 4999:
        kept.flush()
        if n == 19_999:
            before = resident()
print(resident() - before, kept.written, kept.lost.total())
kept.close()
"""


def python(code, *words, **more):
    path = os.pathsep.join(path for path in sys.path if path)
    environment = os.environ | {"PYTHONPATH": path}
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, words)],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        **more,
    )


def test_what_was_acknowledged_survives_kills_and_counts_once(tmp_path):
    """Killed again and again at moments of chance: every event that a flush vouched for is there, none twice,
    sums and leaves agree with them."""
    store = config.Store(folder=str(tmp_path / "guard"))
    chance, acknowledged = random.Random(7), 0
    for _ in range(12):
        # The first numbers come again, as where a gateway tells once more what it does not know to be told.
        process = python(SERVE, store.folder, max(0, acknowledged - 5))
        assert process.stdout is not None
        for line in process.stdout:
            acknowledged = int(line)
            if chance.random() < 0.08:
                os.kill(process.pid, signal.SIGKILL)
                break
        rest = process.stdout.read().split()
        acknowledged = max([acknowledged, *map(int, rest)])
        process.wait()
        process.stdout.close()
    record(store).close()
    with contextlib.closing(Events(store)) as events:
        there = events.newest(most=10**6)
        numbers = sorted(int(each.id.removeprefix("req_")) for each in there)
        assert numbers == list(range(len(numbers)))
        assert acknowledged <= len(numbers) <= acknowledged + 7
        assert events.usage(0, 10**6) == totals(there, RATES)
        with Ledger.open(Workspace(Path(store.folder) / ".stillhouse")) as ledger:
            assert ledger.verify().ok
            leaves = list(ledger.leaves("served"))
            assert sum(leaf.body["count"] for leaf in leaves) == len(numbers)
            assert len({leaf.body["group"] for leaf in leaves}) == len(leaves)
            public = read_public_key(ledger.workspace)
            for each in random.Random(1).sample(there, 20):
                assert read_event_proof(proof_of(events, ledger, each.id), public).event == each


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
def test_memory_does_not_grow_with_the_events(tmp_path):
    process = python(MEMORY, tmp_path)
    said, _ = process.communicate(timeout=100)
    grown, written, lost = said.split()
    assert (int(written), int(lost)) == (120_000, 0)
    assert float(grown) < 12  # MiB over 100,000 events


def test_putting_is_cheap(tmp_path):
    """Well under what a request may cost; the time is the processor's, the best of some tries."""
    with contextlib.closing(record(config.Store(folder=str(tmp_path)))) as kept:
        best = 1.0
        for turn in range(5):
            events = [event(turn * 2000 + n) for n in range(2000)]
            began = time.thread_time()
            for each in events:
                kept.put(each)
            best = min(best, (time.thread_time() - began) / len(events))
            kept.flush(30)
    assert best < 10e-6
