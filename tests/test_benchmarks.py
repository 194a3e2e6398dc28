"""The benchmarks are run by hand: what they take from the package must be there all the same."""

import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "benchmarks"
APART = {"dedup_run", "train_step_run"}  # run in the environments of peers


def test_every_benchmark_finds_what_it_imports():
    names = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem not in APART)
    code = "import importlib, sys; [importlib.import_module(name) for name in sys.argv[1:]]"
    done = subprocess.run(
        [sys.executable, "-c", code, *names], cwd=FOLDER, capture_output=True, check=False, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
