"""report: one HTML file from the files of a run. It only reads them, and no stage imports it."""

from __future__ import annotations

from pathlib import Path

from stillhouse.errors import UsageError
from stillhouse.report.page import render
from stillhouse.report.read import PAIRS, read_facts
from stillhouse.workspace import RunFolder, write_atomic

__all__ = ["write_report"]

LARGEST = 2_000_000  # bytes of the page


def write_report(run: RunFolder) -> Path:
    """Write `report.html` into the run folder and return its path.

    Every part of the run may be missing or damaged: its section then says so. The page stays under 2 MB;
    answers full of characters that must be spelt out are left out from the end until it does.
    Raises UsageError when there is no such folder and StorageError when it cannot be written.
    """
    if not run.root.is_dir():
        raise UsageError(
            f"no run folder at {run.root}",
            "the folder does not exist",
            "make it with `stillhouse run RECIPE`",
        )
    facts = read_facts(run)
    for shown in (PAIRS, PAIRS // 2, PAIRS // 4, 1, 0):
        page = render(facts, shown).encode()
        if len(page) <= LARGEST:
            break
    write_atomic(run.report, page)
    return run.report
