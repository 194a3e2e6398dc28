"""The quickstart in an empty folder: seconds, share of the teacher kept, FLOPs; then the same run again.

    .venv/bin/python benchmarks/quickstart.py [--quick] [--json FILE]

--quick collects 300 answers and trains for two epochs: it shows that the path works, not what it reaches.
The peer of each figure is the student before training, the cheap baseline, or the target of the design.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rows import Row, arguments, header, show

RECIPE = Path(__file__).parents[1] / "examples" / "quickstart" / "recipe.toml"


def run(folder: Path, recipe: Path) -> tuple[dict[str, Any], float]:
    started = time.monotonic()
    command = [sys.executable, "-m", "stillhouse.cli", "run", str(recipe), "--json"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)["evaluation"], time.monotonic() - started


def main() -> None:
    options = arguments(__doc__ or "")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text = RECIPE.read_text()
        if options.quick:
            lines = [line for line in text.splitlines() if not line.startswith(("count", "epochs"))]
            text = "\n".join(lines)
            text = text.replace('source = "embedded:desk"', 'source = "embedded:desk"\ncount = 300')
            text = text.replace("[train]", "[train]\nepochs = 2").replace(
                "[evaluate]", "[evaluate]\ncount = 100"
            )
        recipe = folder / "recipe.toml"
        recipe.write_text(text)
        first, seconds = run(folder, recipe)
        second, again = run(folder, recipe)
    kept, full = first["retention"], not options.quick
    rows = [
        Row("whole run, wall time", seconds, "s", target="< 360 s", holds=seconds < 360),
        *(
            Row(f"  {stage}", first["seconds"][stage], "s")
            for stage in ("collect", "curate", "train", "evaluate")
        ),
        Row("second run, wall time", again, "s", peer="first run", peer_value=seconds, ratio=again / seconds),
        Row(
            "exchanges sent by the second run",
            second["exchanges"]["sent"],
            "",
            target="0",
            holds=second["exchanges"]["sent"] == 0,
        ),
        Row(
            "share of the teacher's score kept",
            kept["value"],
            "",
            kept["low"],
            kept["high"],
            target=">= 0.90" if full else None,
            holds=kept["value"] >= 0.90 if full else None,
        ),
        Row(
            "FLOPs per answer, share of the teacher's",
            first["flops_ratio"],
            "",
            target="<= 0.15",
            holds=first["flops_ratio"] <= 0.15,
        ),
        *(
            Row(
                f"score of {system.replace('_', ' ')}",
                first[system]["score"],
                "",
                first[system]["low"],
                first[system]["high"],
            )
            for system in ("teacher", "student", "student_before", "baseline")
        ),
        Row("parameters of the teacher", first["parameters"]["teacher"], ""),
        Row("parameters of the student", first["parameters"]["student"], ""),
    ]
    show(header(17, ["stillhouse", "torch", "transformers"]), rows, options.json)


if __name__ == "__main__":
    main()
