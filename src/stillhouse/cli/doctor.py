"""`stillhouse doctor`: one row for each check, and for each failure one thing to do."""

from __future__ import annotations

import os
import platform
import shutil
import stat
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from stillhouse.errors import StillhouseError

if TYPE_CHECKING:
    from stillhouse.ledger import Ledger

NEEDED_BYTES = 2 * 2**30


@dataclass(frozen=True, slots=True)
class Finding:
    state: Literal["ok", "warn", "fail", "skip"]
    what: str
    detail: str
    mend: str = ""


def examine(folder: Path, recipe: Path | None) -> list[Finding]:
    return [*_machine(folder), *_training(), *_workspace(folder), *(_recipe(recipe) if recipe else ())]


def examine_losses() -> list[Finding]:
    """The self-test of the losses, on the device that training would use."""
    try:
        import torch
    except ImportError:
        return [Finding("fail", "losses", "torch is not installed", "pip install 'stillhouse[train]'")]
    from stillhouse.train.losses import self_test, try_kernels

    device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    findings = []
    for check in self_test(device=device):
        detail = f"{check.what}: " + (check.error or f"{check.value:.1e} of at most {check.limit:.0e}")
        mend = "" if check.holds else "install the torch of requirements.lock, and report this line"
        findings.append(Finding("ok" if check.holds else "fail", device, detail, mend))
    for check in try_kernels(device):
        detail = f"{check.what}: " + (check.error or f"{check.value:.1e} of at most {check.limit:.0e}")
        mend = "" if check.holds else "training goes on in torch; report this line"
        findings.append(Finding("ok" if check.holds else "warn", device, detail, mend))
    return findings


def _machine(folder: Path) -> Iterator[Finding]:
    yield Finding("ok", "python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    yield Finding("ok", "stillhouse", version("stillhouse"))
    free = shutil.disk_usage(folder).free
    detail = f"{free / 2**30:.1f} GiB free at {folder}"
    few = free < NEEDED_BYTES
    yield Finding(
        "warn" if few else "ok", "disk", detail, "free some space: checkpoints need it" if few else ""
    )
    if hasattr(os, "sysconf") and sys.platform != "darwin":
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        yield Finding("ok", "memory", f"{memory / 2**30:.1f} GiB, {os.cpu_count()} cores")


def _training() -> Iterator[Finding]:
    try:
        installed = version("torch")
        version("transformers")
    except PackageNotFoundError as error:
        yield Finding("warn", "training", f"{error.name} is not installed", "pip install 'stillhouse[train]'")
        return
    import torch

    device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    name = torch.cuda.get_device_name(0) if device == "cuda" else device
    yield Finding("ok", "torch", f"{installed}, {name}, {torch.get_num_threads()} threads")


def _workspace(folder: Path) -> Iterator[Finding]:
    from stillhouse.ledger import Ledger
    from stillhouse.workspace import find_workspace, open_workspace

    if find_workspace(folder) is None:
        yield Finding("skip", "workspace", "none here", "stillhouse init")
        return
    try:
        workspace = open_workspace(folder)
        made_later = filter(Path.exists, [workspace.model_signing_key, *workspace.watermark_keys()])
        for key in (workspace.workspace_key, workspace.signing_key, *made_later):
            open_to_others = stat.S_IMODE(key.stat().st_mode) & 0o077
            mend = f"chmod 600 {key}" if open_to_others else ""
            yield Finding("fail" if open_to_others else "ok", "key", str(key), mend)
        with Ledger.open(workspace) as ledger:
            counts = ledger.attempts(None)
            detail = (
                f"{ledger.size():,} leaves, {counts.answered:,} answers, {counts.unknown:,} sent, unknown"
            )
            yield Finding("ok", "ledger", detail)
            yield from _kept(ledger)
    except StillhouseError as error:
        yield Finding("fail", "workspace", f"{error.what}: {error.why}", error.mend)


def _kept(ledger: Ledger) -> Iterator[Finding]:
    if (why := ledger.rolled_back()) is not None:
        mend = "restore the newest copy of the ledger; see docs/ledger.md"
        yield Finding("fail", "ledger", f"rolled back or forked: {why}", mend)
    if ledger.workspace.erasing.exists():
        detail = "an erasure was stopped before its end"
        yield Finding("fail", "ledger", detail, "give its command again: it goes on where it was")


def _recipe(path: Path) -> Iterator[Finding]:
    from stillhouse.recipe import load_recipe

    try:
        recipe = load_recipe(path)
    except StillhouseError as error:
        yield Finding("fail", "recipe", f"{error.what}: {error.why}", error.mend)
        return
    yield Finding("ok", "recipe", str(path))
    for teacher in (recipe.teacher, *recipe.teachers):
        if teacher.key_env and not os.environ.get(teacher.key_env):
            yield Finding("fail", "key", f"{teacher.key_env} is not set", f"export {teacher.key_env}=...")
        if teacher.endpoint is not None:
            yield _reach(teacher.endpoint, teacher.key_env, teacher.model)


def _reach(url: str, key_env: str | None, model: str) -> Finding:
    import asyncio

    from stillhouse.ask import list_models

    try:
        names = asyncio.run(list_models(url, key_env))
    except StillhouseError as error:
        return Finding("fail", "endpoint", f"{error.what}: {error.why}", error.mend)
    if names and model not in names:
        return Finding(
            "warn", "endpoint", f"{url} does not list {model}", f"it lists: {', '.join(names[:8])}"
        )
    return Finding("ok", "endpoint", f"{url} answers; {len(names)} models")
