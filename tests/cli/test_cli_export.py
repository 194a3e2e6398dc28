"""`stillhouse export`: a released student as a file for other servers."""

import json
import subprocess
import sys

import pytest
import torch
from byte_llamas import byte_level
from small_models import TEMPLATE
from tiny import tiny_model
from transformers import AutoModelForCausalLM


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    folder = byte_level(tmp_path_factory.mktemp("house") / "release", "gpt-2")
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    (folder / "LICENSE").write_text("The weights in this folder are under MIT.\n")
    (folder / "LICENSES").mkdir()
    return folder


def export(*arguments, cwd):
    command = [sys.executable, "-m", "stillhouse.cli", "export", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def held(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_gguf_file_holds_the_released_model(release, tmp_path):
    done = export(release, "student.gguf", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"written": ["student.gguf"], "hand_on": ["LICENSE", "LICENSES"]}
    assert held(tmp_path) == ["student.gguf"]
    before = AutoModelForCausalLM.from_pretrained(release, dtype=torch.float32)
    after = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="student.gguf", dtype=torch.float32)
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        assert torch.equal(before(ids).logits, after(ids).logits)


def test_ollama_gets_a_modelfile_beside_it(release, tmp_path):
    done = export(release, tmp_path / "student.gguf", "--format", "ollama", cwd=release.parent)
    assert done.returncode == 0, done.stderr
    assert "hand on    LICENSE, LICENSES of the release" in done.stdout
    assert held(tmp_path) == ["Modelfile", "student.gguf"]
    assert (tmp_path / "Modelfile").read_text().startswith("FROM ./student.gguf\nTEMPLATE ")


def refused(done, code, *words):
    assert done.returncode == code, done.stdout + done.stderr
    said = [line.split(":")[0] for line in done.stderr.splitlines()]
    assert [part for part in ("error", "cause", "hint") if part in said] == ["error", "cause", "hint"]
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr


def test_what_cannot_be_is_said_before_anything_is_written(release, tmp_path):
    refused(export(tmp_path, "student.gguf", cwd=tmp_path), 2, "no model in", "the folder of a release")
    refused(export(release, release / "student.gguf", cwd=tmp_path), 2, "would lie in the release")
    other = tiny_model(tmp_path / "other")
    refused(export(other, "student.gguf", cwd=tmp_path), 1, "cannot be written for llama.cpp", "vLLM")
    (release / "chat_template.jinja").rename(release / "kept")
    refused(export(release, "s.gguf", "--format", "ollama", cwd=tmp_path), 1, "it has no chat template")
    (release / "kept").rename(release / "chat_template.jinja")
    (tmp_path / "Modelfile").write_text("mine")
    refused(export(release, "s.gguf", "--format", "ollama", cwd=tmp_path), 2, "Modelfile is there already")
    refused(export(release, "Modelfile", cwd=tmp_path), 2, "an export replaces no file")
    assert held(tmp_path) == ["Modelfile", "other"]
    assert (tmp_path / "Modelfile").read_text() == "mine"
    assert "student.gguf" not in held(release)
    wrong = export(release, "s.gguf", "--format", "onnx", cwd=tmp_path)
    assert wrong.returncode == 2
    assert "gguf" in wrong.stderr


@pytest.mark.parametrize("name", ["Modelfile", "modelfile"])
def test_a_model_by_the_name_of_the_modelfile_is_refused_and_not_overwritten(release, tmp_path, name):
    done = export(release, name, "--format", "ollama", cwd=tmp_path)
    refused(done, 2, "is the Modelfile's own name", "student.gguf")
    assert held(tmp_path) == []
    done = export(release, name, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert held(tmp_path) == [name]


def test_a_folder_that_cannot_be_written_to_is_said(release, tmp_path):
    done = export(release, tmp_path / "nowhere" / "student.gguf", cwd=tmp_path)
    refused(done, 1, "nowhere")
