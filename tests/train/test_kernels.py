"""The Triton kernel of the losses: equal to torch in Triton's interpreter, compiled for GPUs that are not
here, and left alone where it fails, which is said. No GPU runs it here."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from train.tiny_student import make_recipe

from stillhouse.cli.doctor import examine_losses
from stillhouse.train import train
from stillhouse.train.losses import Check, Head, Objective, fused, head_loss, kernel_notices, try_kernels
from stillhouse.train.losses import selftest as selftests

HERE = Path(__file__).parent
with_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None,
    reason="Triton is not installed: pip install -r requirements-triton.lock",
)


def run_apart(arguments, **environment):
    done = subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
@with_triton
def test_the_kernel_is_equal_to_torch_in_tritons_interpreter():
    settings = ["-o", "addopts=--import-mode=importlib", "--color=no"]
    said = run_apart(["-m", "pytest", *settings, str(HERE / "interpreted.py")], TRITON_INTERPRET="1")
    assert re.search(r"= 19 passed(, \d+ warnings?)? in ", said), said[-1000:]


@pytest.mark.slow
@with_triton
def test_the_kernel_compiles_for_gpus_that_are_not_here(tmp_path):
    lines = run_apart([str(HERE / "compiled.py")], TRITON_CACHE_DIR=str(tmp_path)).splitlines()
    assert len(lines) == 20
    assert all(int(line.split()[-1]) > 1000 for line in lines)


@pytest.fixture
def refused(monkeypatch):
    """Asks a GPU's question on any machine: Triton cannot be imported."""
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "stillhouse.train.losses.kernels", raising=False)
    return try_kernels("cuda")


def test_a_kernel_that_cannot_be_had_is_left_alone_and_said(refused):
    assert [check.holds for check in refused] == [False, False]
    (said,) = kernel_notices(refused)
    assert "in torch" in said
    assert "triton" in said
    assert fused.KERNELS == {}


def test_a_kernel_that_differs_is_left_alone_and_said(monkeypatch):
    differs = Check("Triton kernel beside torch, float32", 0.25, 1e-5), Check("it in bfloat16", 0.0, 1e-2)
    monkeypatch.setattr(selftests, "kernels_equal", lambda device: differs)
    done = try_kernels("cuda:0")
    assert "off by 0.25" in kernel_notices(done)[0]
    assert fused.KERNELS == {}


def test_no_other_device_has_a_kernel():
    assert try_kernels("cpu") == try_kernels(torch.device("mps")) == ()
    assert kernel_notices(()) == []
    head_loss(torch.ones(2, 3), Head(torch.ones(5, 3)), None, Objective(hard=1.0), torch.zeros(2).long())


def test_a_training_and_the_doctor_say_so(refused, run, folder, monkeypatch):
    monkeypatch.setattr("stillhouse.train.losses.try_kernels", lambda device: refused)
    assert train(run, make_recipe(str(folder))).notices[0] == kernel_notices(refused)[0]
    findings = examine_losses()
    assert [finding.state for finding in findings[-2:]] == ["warn", "warn"]
    assert "triton" in findings[-1].detail
