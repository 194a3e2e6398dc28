"""Scorers of installed packages, met as a user would: a package on the path, a fresh process."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

MODULE = """
def within_one(answer, reference):
    return float(abs(float(answer) - float(reference)) <= 1)

def broken(answer, reference):
    raise RuntimeError("no colour today")

NUMBER = 3
"""


def run(folder: Path, entries: str, code: str) -> str:
    """What the code prints where a package with these entry points is installed."""
    (folder / "colours.py").write_text(MODULE)
    info = folder / "colours-1.0.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: colours\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[stillhouse.scorers]\n{entries}\n")
    path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def test_a_scorer_of_an_installed_package_scores_and_its_faults_are_counted(tmp_path):
    printed = run(
        tmp_path,
        "within_one = colours:within_one\nbroken = colours:broken",
        """
        from stillhouse.scoring import check, score, scorers
        check(["within_one", "broken", "exact"])
        print(score("within_one", "4", "5"), score("within_one", "4", "6"))
        print(score("within_one", "four", "5").reason)
        print(score("broken", "4", "5"))
        print(len(scorers()))
        """,
    )
    assert "Score(value=1.0, reason='') Score(value=0.0, reason='')" in printed
    assert "raised ValueError" in printed
    assert "Score(value=None, reason=\"scorer 'broken' raised RuntimeError: no colour today\")" in printed


CAUGHT = """
from stillhouse.errors import UsageError
from stillhouse.scoring import check
try:
    check(["exact"])
except UsageError as error:
    print(error.what, error.why, error.mend, sep="|")
"""


def test_a_package_that_cannot_be_used_is_told_in_three_parts(tmp_path):
    for entries, what, why in [
        ("exact = colours:within_one", "two scorers named 'exact'", "colours:within_one"),
        ("lost = colours:nosuch", "'lost' could not be loaded", "AttributeError"),
        ("gone = nowhere:f", "'gone' could not be loaded", "ModuleNotFoundError"),
        ("three = colours:NUMBER", "'three' cannot be called", "is a int"),
    ]:
        told = run(tmp_path, entries, CAUGHT).strip().split("|")
        assert len(told) == 3
        assert what in told[0]
        assert why in told[1]
        assert "uninstall" in told[2] or "name a function" in told[2]
