"""From the provider's mark to the auditor's evidence, by the product's own commands: a provider marks what it
serves, somebody trains on it, and an auditor with key and log asks the student."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import httpx2 as httpx
import pytest
from gate import gate, tree_of

from stillhouse.models.serve import background
from stillhouse.watermark import Gumbel, Key, write_key

DATA = Path(__file__).parents[3] / "shared" / "data"
STORIES = DATA / "models" / "stories260K"
TAUGHT, ASKED = 120, 100  # prompts
TOKENS = 120

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not STORIES.exists(), reason="stories260K is not in ../shared/data"),
]

RECIPE = """
[run]
name = "{name}"
[teacher]
model = "stories260K"
endpoint = "{url}"
key_env = "PROVIDER_KEY"
provider = "the provider"
[teacher.terms]
document = "terms.txt"
read_on = "2026-01-02"
declared_by = "a test"
[prompts]
source = "prompts.jsonl"
[collect]
temperature = 1.0
max_tokens = {tokens}
[curate]
truncated = false                  # this model never ends a story
[student]
init = "{init}"
[train]
epochs = 8
learning_rate = 2e-3
batch_tokens = 2048
dtype = "float32"
[evaluate]
held_out = 0.05
"""


def key(number):
    return Key(Gumbel(), number.to_bytes(32, "big"), datetime(2026, 3, 1, tzinfo=UTC))


def beginnings():
    """The first words of so many stories that people's models told: to be gone on with."""
    stories = (DATA / "text" / "tinystories_sample_2MB.txt").read_text().split("<|endoftext|>")
    return list(dict.fromkeys(" ".join(each.split()[:6]) for each in stories if len(each) > 300))


def call(folder, *arguments, **environ):
    done = subprocess.run(
        [sys.executable, "-m", "stillhouse.cli", *map(str, arguments)],
        cwd=folder,
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def student(folder, name, url, secret, prompts):
    """The checkpoint of a student of that provider, by collect, curate and train."""
    made = folder / name
    made.mkdir()
    (made / "terms.txt").write_text("you may train on the answers")
    rows = [{"id": f"p{at}", "prompt": prompt} for at, prompt in enumerate(prompts)]
    (made / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (made / "recipe.toml").write_text(RECIPE.format(name=name, url=url, tokens=TOKENS, init=STORIES))
    for stage in ("collect", "curate", "train"):
        call(made, stage, "recipe.toml", PROVIDER_KEY=secret)
    (found,) = (made / ".stillhouse" / "runs").glob(f"{name}-*/**/model.safetensors")
    return found.parent


def answers_of(model, prompts, file):
    """What an auditor gets who can do no more than ask."""
    with background(str(model)) as url, httpx.Client(base_url=url, timeout=300) as client:

        def ask(at):
            body = {"model": model.name, "messages": [{"role": "user", "content": prompts[at]}]}
            body |= {"temperature": 1.0, "max_tokens": TOKENS, "seed": at}
            said = client.post("/chat/completions", json=body)
            assert said.status_code == 200, said.text
            return {"prompt": prompts[at], "answer": said.json()["choices"][0]["message"]["content"]}

        with ThreadPoolExecutor(16) as threads:
            rows = list(threads.map(ask, range(len(prompts))))
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_an_auditor_with_key_and_log_finds_the_student_and_nobody_else_finds_anything(tmp_path):
    prompts = beginnings()
    provider, court = tmp_path / "provider", tmp_path / "court"
    provider.mkdir()
    court.mkdir()
    write_key(key(1), court / "key.json")
    write_key(key(2), court / "wrong.json")
    (provider / "terms.txt").write_text("you may train on the answers")
    terms = {
        "version": "1",
        "document": str(provider / "terms.txt"),
        "training": "allowed",
        "competing": "allowed",
    }

    with background(str(STORIES), None, "--watermark", str(court / "key.json")) as upstream:
        tree = tree_of(provider, upstream, "stories260K", terms=terms, record={"text": "with_consent"})
        tree["models"][0]["max_output_tokens"] = TOKENS
        with gate(provider, tree) as made:
            account, secret = made.new_key({"name": "a distiller", "consent": True})
            taught = student(tmp_path, "taught", made.url, secret, prompts[:TAUGHT])
            assert made.stop() == 0
    call(provider, "guard", "answers", account, court / "served.jsonl", "--config", "guard.json")
    log = [json.loads(line) for line in (court / "served.jsonl").read_text().splitlines()]
    assert len(log) > 0.9 * TAUGHT
    assert all(row["marked"] == [key(1).id] for row in log)
    with background(str(STORIES)) as elsewhere:
        other = student(tmp_path, "other", elsewhere, "none", prompts[:TAUGHT])

    questions = prompts[-ASKED:]
    answers_of(taught, questions, court / "taught.jsonl")
    answers_of(other, questions, court / "other.jsonl")
    call(court, "init")

    def audit(suspect, mark, control):
        given = [
            "--suspect",
            f"{suspect}.jsonl",
            "--watermark",
            f"{mark}.json",
            "--control",
            f"{control}.jsonl",
        ]
        if mark == "key":
            given += ["--served", "served.jsonl"]
        file = f"{suspect}-{mark}.evidence.json"
        call(court, "audit", "lineage", *given, "--model", STORIES, "--evidence", file)
        return json.loads((court / file).read_text())["evidence"]["finding"]

    found = audit("taught", "key", "other")
    assert found["verdict"] == "supported"
    assert found["tests"][0]["p"] < 1e-5
    assert found["facts"]["looked_at"] == "what follows contexts of the log"
    for suspect, mark, control in (("taught", "wrong", "other"), ("other", "key", "taught")):
        nothing = audit(suspect, mark, control)
        assert nothing["verdict"] == "not decided", (suspect, mark)
        assert nothing["tests"][0]["p"] > 1e-4
    assert "the same figures" in call(court, "audit", "lineage", "--repeat", "taught-key.evidence.json")
