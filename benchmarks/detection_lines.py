"""Writes the thresholds that are shipped, from the accounts of the calibration month.

    .venv/bin/python benchmarks/detection_lines.py [--out FILE] [--folder FOLDER]

The accounts are those on which `detection.py` sets its own, and a folder that it has filled is read and not
walked again. Scores are rounded up, to as many digits as the walk and the guard agree in.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

from detection import FLAG, KILL, all_looks
from detection_watch import Watched, watched
from rows import DATA, need, working_folder

from stillhouse.guard.lines import Line, Lines, as_toml, calibrated

DIGITS = 4
HEAD = """\
# Written by benchmarks/detection_lines.py: of simulated traffic (docs/guard-detection.md), and so of no
# customer of yours. `stillhouse guard calibrate` writes your own.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--out", type=Path, default=Path("src/stillhouse/guard/thresholds.toml"))
    parser.add_argument("--folder", type=Path, help="work there, and go on with what is there")
    options = parser.parse_args()
    need(DATA)
    with working_folder(options.folder) as folder:
        month = watched({"calibrate": all_looks(1.0)["calibrate"]}, folder)["calibrate"]
    options.out.write_text(HEAD + as_toml(lines_of(month)))


def lines_of(accounts: Sequence[Watched]) -> Lines:
    """As `stillhouse guard calibrate` sets them, but that a kill may meet one ordinary account in 10,000."""
    reached = [each.highest for each in accounts if each.side == "ordinary"]
    told = [each.highest for each in accounts if each.side == "hard" and each.declared]
    made = calibrated(reached, told, "simulated traffic", FLAG, KILL)
    return made.model_copy(update={name: raised(line) for name, line in made if isinstance(line, Line)})


def raised(line: Line) -> Line:
    """With a score of so many digits, which is no lower."""
    if math.isinf(line.score):
        return line
    return line.model_copy(update={"score": math.ceil(line.score * 10**DIGITS) / 10**DIGITS})


if __name__ == "__main__":
    main()
