"""`stillhouse targets info` as a person meets it."""

import json
import subprocess
import sys

import pytest
from aiohttp import web
from provider import answer
from tiny import TEMPLATE, tiny_model


def stillhouse(*arguments, cwd):
    command = [sys.executable, "-m", "stillhouse.cli", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def refused(folder, code, *words):
    done = stillhouse("targets", "info", "t", cwd=folder)
    assert done.returncode == code
    for word in ("error:", "cause:", "hint:", *words):
        assert word in done.stderr


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("student"), template=TEMPLATE)


async def letter(body, number):
    """One letter with 0.75 of the mass, one rival with 0.125; the rest is the tail."""
    text = "abcdefghij"[number % 10]
    entries = [
        {"token": token, "bytes": list(token.encode()), "logprob": value}
        for token, value in ((text, -0.2876821), ("z", -2.0794415))
    ]
    said = json.loads(answer(text).body)
    said["choices"][0]["logprobs"] = {"content": [entries[0] | {"top_logprobs": entries}]}
    return web.json_response(said)


def test_a_run_of_the_command_says_what_its_targets_hold(provider, tmp_path, student):
    (tmp_path / "prompts.jsonl").write_text("".join(f'{{"prompt": "say {n}"}}\n' for n in range(20)))
    (tmp_path / "terms.txt").write_text("you may")
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        f"""
[run]
name = "t"
[teacher]
model = "m"
endpoint = "{provider(letter).url}"
terms = {{ document = "terms.txt", read_on = 2026-01-02, declared_by = "a test" }}
[prompts]
source = "prompts.jsonl"
[collect]
max_tokens = 4
top_logprobs = 2
[student]
init = "{student}"
"""
    )
    refused(tmp_path, 2, "no workspace")
    done = stillhouse("collect", recipe, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "targets    20 answers of m, 20 of 40 tokens with targets" in done.stderr
    found = json.loads(stillhouse("targets", "info", "t", "--json", cwd=tmp_path).stdout)
    assert (found["rows"], found["positions"], found["known"], found["coverage"]) == (20, 40, 20, 0.5)
    assert found["kept"] == pytest.approx(0.875, abs=1e-3)
    assert found["kept_p10"] == pytest.approx(0.875, abs=1e-3)
    assert found["bias"] == pytest.approx(0.125, abs=1e-3)
    assert found["variance"] == 0.0
    assert found["teachers"][0]["binding"]["head"] == 3
    (shard,) = (tmp_path / ".stillhouse" / "targets").iterdir()
    assert found["bytes_per_token"] == shard.stat().st_size / 40
    text = stillhouse("targets", "info", "t", cwd=tmp_path).stdout
    for words in (
        "kept mass  0.875",
        "bias       at most 0.12",
        "variance   0.0000",
        "teacher    m",
        shard.stem,
    ):
        assert words in text
    shard.write_bytes(shard.read_bytes()[:-9])
    refused(tmp_path, 1, "not a usable shard", "stillhouse collect RECIPE")
    shard.unlink()
    refused(tmp_path, 1, "there is no shard", "stillhouse collect RECIPE")
