"""`stillhouse doctor --losses` as a user runs it."""

import json
import subprocess
import sys


def test_doctor_examines_the_losses(tmp_path):
    command = [sys.executable, "-m", "stillhouse.cli", "doctor", "--losses"]
    done = subprocess.run([*command, "--json"], cwd=tmp_path, capture_output=True, text=True, check=True)
    checks = json.loads(done.stdout)["checks"]
    assert len(checks) > 20
    assert {check["state"] for check in checks} == {"ok"}
    assert any("reported loss is applied gradient" in check["detail"] for check in checks)
    shown = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert shown.count("\n") == len(checks)
