"""Two houses that share signals, for tests: `a.example` sends and `b.example` takes in."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from stillhouse.guard.signals import Signal, shelf, sketch_of
from stillhouse.guard.signals.shelf import Peer
from stillhouse.ledger import Ledger
from stillhouse.workspace import Workspace, init_workspace

NOW = datetime(2026, 11, 22, 10, tzinfo=UTC)
BASIS = "Legitimate interests in the security of the service, balanced on 2026-11-01."
VOCABULARY = [
    f"{first}mond{last}" for first in "ba de ki lo mu ne po ru sa ti".split() for last in range(200)
]


@dataclass(frozen=True)
class Houses:
    a: Workspace
    b: Workspace
    peer: Peer
    ledger_a: Ledger
    ledger_b: Ledger


def text(seed: int, count: int = 400) -> str:
    return " ".join(random.Random(seed).choices(VOCABULARY, k=count))


def signal(id: str = "one", seed: int = 1, **other) -> Signal:
    said = {"confidence": 70, "labels": ("template",), "template": sketch_of([text(seed)]), **other}
    return Signal(id, NOW - timedelta(hours=1), said.pop("until", NOW + timedelta(days=30)), **said)


@contextmanager
def houses(folder: Path) -> Iterator[Houses]:
    a, b = init_workspace(folder / "a"), init_workspace(folder / "b")
    peer = shelf.invite(a, "a.example", "b.example")
    shelf.accept(b, shelf.read_peer(shelf.write_peer(peer)))
    with Ledger.open(a, lambda: NOW) as ledger_a, Ledger.open(b, lambda: NOW) as ledger_b:
        yield Houses(a, b, peer, ledger_a, ledger_b)


def sent(two: Houses, *signals: Signal, now: datetime = NOW) -> list[dict]:
    """The copies that `b.example` gets of these, as they stand in the bundle."""
    for one in signals:
        shelf.add(two.a, one)
    bundle = shelf.export(two.a, two.ledger_a, "b.example", [one.id for one in signals], BASIS, now)
    return [one for one in bundle["objects"] if one["type"] == "x-distillation-signal"]
