"""Facts of a real small run: a real server, a real ledger, a tiny student."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from provider import Provider, answer
from tiny import tiny_model

from stillhouse import pipeline
from stillhouse.errors import LedgerError, UsageError
from stillhouse.ledger import Ledger
from stillhouse.ledger.anchors import cosigned
from stillhouse.ledger.checkpoint import Checkpoint, sign_checkpoint
from stillhouse.ledger.keys import read_signing_key
from stillhouse.ledger.manifest import sha256_of
from stillhouse.models import weights_digest
from stillhouse.recipe import Recipe, parse_recipe
from stillhouse.release.documents import ROWS, documents
from stillhouse.release.facts import compute, missing
from stillhouse.release.gather import gather, read_decision, result_of, shown
from stillhouse.release.rows import write_rows
from stillhouse.terms.facts import Obligation, Publisher
from stillhouse.terms.ruling import Owed
from stillhouse.workspace import Workspace

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)


async def digit(body: dict, number: int) -> web.Response:
    return answer(body["messages"][-1]["content"].split()[1])


@pytest.fixture
def recipe(tmp_path: Path, provider: Callable[..., Provider]) -> Recipe:
    tiny_model(tmp_path / "base")
    rows = [
        {"prompt": f"say {i % 7} {i}", "id": f"p{i}", "reference": str(i % 7), "scorer": "exact"}
        for i in range(60)
    ]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    (tmp_path / "terms.txt").write_text("you may train on the answers")
    terms = {"document": str(tmp_path / "terms.txt"), "read_on": "2026-01-02", "declared_by": "a test"}
    return parse_recipe(
        {
            "run": {"name": "t", "seed": 3},
            "teacher": {"model": "m", "endpoint": provider(digit).url, "provider": "there", "terms": terms},
            "prompts": {"source": str(tmp_path / "prompts.jsonl")},
            "collect": {"concurrency": 4, "max_tokens": 8},
            "student": {"init": str(tmp_path / "base")},
            "train": {"epochs": 2, "batch_tokens": 512, "dtype": "float32"},
            "evaluate": {"held_out": 0.2, "resamples": 50},
            "release": {"licence": "MIT"},
        }
    )


def test_a_runs_facts_are_what_was_asked_kept_and_trained(
    recipe: Recipe, workspace: Workspace, tmp_path: Path
):
    run = pipeline.run(recipe, workspace).run
    with Ledger.open(workspace) as ledger:
        decisions = {leaf.index for leaf in ledger.leaves("decision") if leaf.body["use"] == "train_target"}
        assert gather(run, recipe, ledger, Publisher(), NOW, sorted(decisions)).anchored is None
        note = ledger.checkpoint()
        cosigned(workspace, *by_a_witness(note))
        facts = gather(run, recipe, ledger, Publisher(), NOW, sorted(decisions))
        assert facts.anchored == note.size
        key = read_signing_key(workspace)
        for size in (
            note.size - 1,
            note.size + 9,
        ):  # another log, and one that is longer
            other = sign_checkpoint(ledger.origin, size, bytes(32), key)
            cosigned(workspace, *by_a_witness(other))
        assert gather(run, recipe, ledger, Publisher(), NOW, sorted(decisions)).anchored == note.size
        (transform,) = {leaf.body["transform"] for leaf in ledger.leaves("train_run")}
        rows = write_rows(run, ledger, transform, tmp_path / "rows.parquet")
        terms = [leaf.body["sha256"] for leaf in ledger.leaves("terms_snapshot")]
        leaves = {leaf.index: leaf.body for leaf in ledger.leaves("row")}
        assert (facts.size, facts.root) == (ledger.size(), ledger.root().hex())
    samples = pq.read_table(run.samples).to_pylist()
    (teacher,) = facts.teachers
    asked = pq.read_metadata(run.exchanges).num_rows
    assert (teacher.model, teacher.host, teacher.revision) == ("m", "127.0.0.1", None)
    assert (teacher.exchanges, teacher.rows) == (asked, len(samples))
    assert (teacher.prompt_tokens, teacher.completion_tokens) == (10 * asked, 5 * asked)
    assert {decision.leaf for decision in teacher.decisions} == decisions
    assert {sha for decision in teacher.decisions for sha in decision.terms_sha256} == set(terms)
    assert teacher.times[0] <= teacher.times[1]
    assert compute(facts).unknown == {"m": 15 * asked}
    assert [(use.stage, use.exchanges) for use in facts.uses] == [("evaluate", 60 - asked)]
    assert facts.student.base == "base"
    assert facts.student.base_sha256 == weights_digest(tmp_path / "base")
    assert facts.files["model.safetensors"] == sha256_of(run.student / "model.safetensors")
    assert facts.samples.kept + sum(facts.samples.dropped.values()) == asked
    assert "the provider's name" in missing(facts)
    assert "a recorded text of the terms of m" not in missing(facts)

    # Every row leads to its leaf, its answers and what allowed them, and no text goes with it.
    table = pq.read_table(tmp_path / "rows.parquet")
    assert rows.count == table.num_rows == len(samples)
    for row, sample in zip(table.to_pylist(), samples, strict=True):
        assert leaves[row["leaf"]]["exchanges"] == row["exchanges"] == sample["leaves"]
        assert set(row["decisions"]) <= decisions
    assert b"say 3" not in (tmp_path / "rows.parquet").read_bytes()

    made = documents(facts, rows, read_signing_key(workspace))
    assert ROWS not in made
    for name, data in made.items():
        assert str(tmp_path).encode() not in data, f"{name} tells where things lie on this machine"


def by_a_witness(checkpoint: Checkpoint) -> tuple[bytes, str]:
    """The note with a line as C2SP tlog-cosignature has it, and the witness's verifier key."""
    key, name, note = Ed25519PrivateKey.generate(), "w.example", checkpoint.note
    kind_and_key = b"\x04" + key.public_key().public_bytes_raw()
    number, seconds = sha256(name.encode() + b"\n" + kind_and_key).digest()[:4], 1_790_000_000
    text = note[: note.index(b"\n\n") + 1]
    signature = key.sign(b"cosignature/v1\ntime %d\n" % seconds + text)
    line = base64.b64encode(number + seconds.to_bytes(8, "big") + signature).decode()
    verifier = f"{name}+{number.hex()}+{base64.b64encode(kind_and_key).decode()}"
    return note + f"— {name} {line}\n".encode(), verifier


def test_samples_that_are_not_the_ledgers_are_refused(recipe: Recipe, workspace: Workspace, tmp_path: Path):
    run = pipeline.run(recipe, workspace, stages=("collect", "curate")).run
    table = pq.read_table(run.samples)
    pq.write_table(table.slice(1), run.samples)
    with Ledger.open(workspace) as ledger, pytest.raises(LedgerError, match="not those in the ledger"):
        write_rows(run, ledger, result_of(run, "curate")["transform"], tmp_path / "rows.parquet")


def test_a_run_that_was_not_trained_has_no_facts(recipe: Recipe, workspace: Workspace):
    run = pipeline.run(recipe, workspace, stages=("collect", "curate")).run
    with Ledger.open(workspace) as ledger, pytest.raises(UsageError, match="not come to its release"):
        gather(run, recipe, ledger, Publisher(), NOW)


@pytest.mark.parametrize(
    ("model", "name"),
    [("/home/x/models/big", "big"), ("~/m/small", "small"), ("org/name", "org/name"), ("embedded:desk",) * 2],
)
def test_a_models_name_leaves_out_the_folders_of_this_machine(model: str, name: str):
    assert shown(model) == name


def test_decisions_by_the_registry_tell_their_reasons_texts_and_obligations(workspace: Workspace):
    layers = [{"row": "llama3.1", "version": "2024-07-23", "read_on": "2026-11-20", "source": "there"}]
    reason = {"row": "llama3.1", "text": "Llama 3.1 Community License", "read_on": None, "why": ["a", "b"]}
    owed = {"row": "llama3.1", "kind": "credit", "texts": ["Built with Llama"], "modes": ["weights"]}
    body = {"verdict": "allow_with_obligations", "reason": "allowed", "basis": "registry", "layers": layers}
    body |= {"reasons": [reason | {"lifted_by": "authorisation"}], "obligations": [owed], "authorisation": 7}
    with Ledger.open(workspace) as ledger:
        for sha in ("older", "newer"):
            ledger.append("terms_snapshot", {"row": "llama3.1", "sha256": sha})
        ledger.append("terms_snapshot", {"row": "another", "sha256": "other"})
        leaf = ledger.append("decision", body)
        ledger.append("terms_snapshot", {"row": "llama3.1", "sha256": "too late"})
        decision = read_decision(leaf, body, ledger)
    said = "Llama 3.1 Community License, not read by anybody known: a; b (lifted by authorisation)"
    assert decision.reasons == (said,)
    assert decision.terms_sha256 == ("newer",)
    assert decision.obligations == (
        Owed("llama3.1", Obligation("credit", ("Built with Llama",), ("weights",))),
    )
    assert decision.authorisation == 7
