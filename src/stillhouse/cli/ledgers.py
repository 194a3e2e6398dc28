"""Views of the ledger for `stillhouse ledger`."""

from __future__ import annotations

import json
from collections import Counter, deque
from pathlib import Path
from typing import Any

from stillhouse.errors import UsageError
from stillhouse.ledger import Ledger, Verification
from stillhouse.ledger.keys import read_public_pem


def overview(ledger: Ledger, kind: str | None, limit: int) -> tuple[dict[str, Any], str]:
    """Counts by kind, attempts, and the newest leaves."""
    kinds: Counter[str] = Counter()
    newest: deque[Any] = deque(maxlen=max(0, limit))
    for leaf in ledger.leaves():
        kinds[leaf.kind] += 1
        if kind is None or leaf.kind == kind:
            newest.append(leaf)
    counts = ledger.attempts(None)
    attempts = {
        "answered": counts.answered,
        "failed": counts.failed,
        "sent, unknown": counts.unknown,
        "open": counts.open,
    }
    rows = [{"index": leaf.index, "kind": leaf.kind, "time": leaf.time, "body": leaf.body} for leaf in newest]
    found = {"leaves": ledger.size(), "kinds": dict(kinds), "attempts": attempts, "newest": rows}
    lines = [f"leaves     {ledger.size():,}"]
    lines += [f"           {count:>8,} {name}" for name, count in sorted(kinds.items())]
    lines.append("attempts   " + ", ".join(f"{count:,} {name}" for name, count in attempts.items()))
    lines += [f"{row['index']:>9}  {row['time']}  {row['kind']:<15} {_short(row['body'])}" for row in rows]
    return found, "\n".join(lines)


def leaf_view(ledger: Ledger, index: int) -> tuple[dict[str, Any], str]:
    if not 0 <= index < ledger.size():
        raise UsageError(
            f"no leaf {index}", f"the ledger has leaves 0 to {ledger.size() - 1}", "give one of these"
        )
    leaf = ledger.leaf(index)
    contents = {
        name: None if content is None else content.decode("utf-8", "replace")
        for name, content in ledger.contents(index).items()
    }
    found = {
        "index": index,
        "kind": leaf.kind,
        "time": leaf.time,
        "hash": leaf.hash.hex(),
        "body": leaf.body,
        "contents": contents,
    }
    lines = [
        f"leaf {index}  {leaf.kind}  {leaf.time}",
        f"hash {leaf.hash.hex()}",
        json.dumps(leaf.body, indent=2),
    ]
    lines += [f"--- {name}\n{'(erased)' if text is None else text}" for name, text in contents.items()]
    return found, "\n".join(lines)


def verification(
    ledger: Ledger, against: Path | None, key: Path | None = None
) -> tuple[dict[str, Any], str, bool]:
    if against is not None and not against.is_file():
        raise UsageError(
            f"no checkpoint at {against}", "the file does not exist", "give the file that was kept"
        )
    pinned = None if key is None else read_public_pem(key)
    done = ledger.verify(None if against is None else against.read_bytes(), pinned)
    return *checked(done), done.ok


def checked(done: Verification) -> tuple[dict[str, Any], str]:
    """A line for each check, and the state."""
    rows = [{"check": check.name, "ok": check.ok, "detail": check.detail} for check in done.checks]
    lines = [f"{'ok  ' if row['ok'] else 'FAIL'}  {row['check']:<24} {row['detail']}" for row in rows]
    lines.append(done.state)
    anchors = [{"size": one.checkpoint.size, "by": one.who or None, "time": one.when} for one in done.anchors]
    return {"checks": rows, "ok": done.ok, "state": done.state, "anchors": anchors}, "\n".join(lines)


def _short(body: Any) -> str:
    text = json.dumps(body, sort_keys=True)
    return text if len(text) <= 100 else text[:97] + "..."
