"""What an index would serve: it holds every file, installs, and runs from elsewhere than this folder."""

import json
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CODE = "import setuptools.build_meta as b; print(b.build_wheel('{0}')); print(b.build_sdist('{0}'))"


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """(wheel, sdist), built from a copy of what is in the repository."""
    folder = tmp_path_factory.mktemp("built")
    source = folder / "source"
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    for name in listed.stdout.decode().split("\0")[:-1]:
        if name.startswith(("src/", "pyproject", "README", "LICENSE")) and (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    done = subprocess.run(
        [sys.executable, "-c", CODE.format(folder)], cwd=source, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return wheel, sdist, source


def test_wheel_and_sdist_hold_every_file_of_the_package(built):
    wheel, sdist, source = built
    package = source / "src"
    wanted = {p.relative_to(package).as_posix() for p in (package / "stillhouse").rglob("*") if p.is_file()}
    assert "stillhouse/py.typed" in wanted
    with zipfile.ZipFile(wheel) as file:
        assert wanted <= set(file.namelist())
    with tarfile.open(sdist) as file:
        assert wanted <= {name.partition("/src/")[2] for name in file.getnames()}


def test_it_runs_from_where_it_was_installed(built, tmp_path):
    wheel, _, _ = built
    there = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target"]
    subprocess.run([*install, str(there), str(wheel)], check=True)
    environment = {**os.environ, "PYTHONPATH": str(there)}

    def run(*words):
        return subprocess.run(
            [sys.executable, *words],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    where = run("-c", "import stillhouse; print(stillhouse.__file__)")
    assert Path(where.strip()).is_relative_to(there)
    assert run("-m", "stillhouse.cli", "--version").strip()
    run("-m", "stillhouse.cli", "init")
    plan = json.loads(run("-m", "stillhouse.cli", "plan", "recipe.toml", "--json"))
    assert plan
