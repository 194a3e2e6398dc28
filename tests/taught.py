"""Folders as a workspace would have released them, and recipes whose teacher or base is one."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from stillhouse.ledger import Ledger
from stillhouse.ledger.keys import public_bytes, public_pem, read_signing_key
from stillhouse.ledger.manifest import Manifest, seal
from stillhouse.recipe import Recipe, parse_recipe
from stillhouse.terms import Decision, consider
from stillhouse.workspace import Workspace

NOW = datetime(2026, 11, 21, 9, 30, tzinfo=UTC)
ALLOWED = {"leaf": 3, "verdict": "allow"}


def entry(
    model: str,
    access: str = "api",
    host: str | None = "api.example.com",
    decisions: Any = (ALLOWED,),
    **more: Any,
) -> dict[str, Any]:
    """One of `teachers.json`, in the form of before it told what a teacher is known by."""
    same = {"model": model, "revision": None, "access": access, "host": host, "upstream": None}
    return {**same, "decisions": list(decisions), **more}


def upstream(release: str, *teachers: dict[str, Any], **more: Any) -> dict[str, Any]:
    """What a teacher that is a release says of its own teachers."""
    said = {"release": release, "manifestSha256": "ab" * 32, "signedBy": "cd" * 32, "unknown": ""}
    return {**said, "teachers": list(teachers), **more}


def released(
    folder: Path, workspace: Workspace, *entries: Any, text: str | None = None, base: Any = None
) -> Manifest:
    """The folder as `workspace` would have released it; `text` stands for the entries' JSON, `base` is what
    it says of the release that it began as."""
    (folder / "provenance").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    written = json.dumps(entries) if text is None else text
    (folder / "provenance" / "teachers.json").write_text(written, errors="surrogatepass")
    if base is not None:
        (folder / "provenance" / "base.json").write_text(json.dumps(base))
    key = read_signing_key(workspace)
    (folder / "provenance" / "public-key.pem").write_bytes(public_pem(public_bytes(key)))
    return seal(folder, "stillhouse/0011223344556677", "small", key)


def recipe(folder: Path, *about: str, **tables: Any) -> Recipe:
    """The folder is the teacher, whose terms somebody read; with `about` those of its teachers too."""
    return parse_recipe(
        {
            "run": {"name": "smaller"},
            "teacher": {"model": str(folder), "terms": declared(folder, *about)},
            "prompts": {"source": "embedded:desk"},
            "student": {"init": "embedded:base"},
            **tables,
        }
    )


def declared(folder: Path, *about: str) -> list[dict[str, Any]]:
    text = folder.with_name("terms.txt")
    text.write_text("You may train on it.")
    read = {"document": str(text), "read_on": date(2026, 11, 20), "declared_by": "R. Ames"}
    return [read, *([{**read, "about": about}] if about else [])]


def decided(ledger: Ledger, folder: Path, *about: str, use: Any = "train_target", **tables: Any) -> Decision:
    what = recipe(folder, *about, **tables)
    return consider(what, what.teacher, use, ledger, NOW)
