"""Facts of a release that never was, with everything recorded; tests change what they are about."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime
from typing import Any

from stillhouse.release.facts import (
    Decision,
    Evaluation,
    Facts,
    Figure,
    Samples,
    Student,
    Teacher,
    Training,
    Use,
)
from stillhouse.release.rows import Rows
from stillhouse.terms.facts import Obligation, Publisher
from stillhouse.terms.ruling import Owed

ROWS = Rows(count=90, size=4321, sha256="ab" * 32)

DECISION = Decision(
    leaf=3,
    verdict="allow_with_obligations",
    reasons=("the licence allows it where its name is shown",),
    terms="Llama 3.1 Community License",
    terms_sha256=("cd" * 32,),
    read_on="2026-11-20",
    basis="registry",
    policy="1",
    registry_sha256="ef" * 32,
    authorisation=None,
    obligations=(
        Owed("llama3.1", Obligation("credit", ("Built with Llama",), where="where users see it")),
        Owed("llama3.1", Obligation("name_prefix", ("Llama",))),
    ),
)

TEACHER = Teacher(
    model="meta-llama/Llama-3.1-8B-Instruct",
    revision="0e9e39f249a16976918f6564b8830bc894c89659",
    access="weights",
    host="llm.example.org",
    answered_by=("meta-llama/Llama-3.1-8B-Instruct",),
    decisions=(DECISION,),
    exchanges=100,
    uncounted=0,
    prompt_tokens=300_000_000,
    completion_tokens=100_000_000,
    rows=90,
    times=("2026-11-20T08:00:00.000000Z", "2026-11-20T09:30:00.000000Z"),
    parameters=22_000_000_000,
    lineage="disclosed",
)

FACTS = Facts(
    name="Llama-small",
    run="small-01234567",
    version="0123456789ab",
    licence="Apache-2.0",
    written=datetime(2026, 11, 21, 10, 0, tzinfo=UTC),
    size=207,
    root="11" * 32,
    origin="stillhouse/0011223344556677",
    files={"model.safetensors": "22" * 32, "config.json": "33" * 32},
    teachers=(TEACHER,),
    student=Student(
        base="Qwen/Qwen3-8B",
        base_is_on_hub=True,
        base_sha256="44" * 32,
        sha256="55" * 32,
        architecture="LlamaForCausalLM",
        parameters=8_000_000_000,
        layers=32,
        width=4096,
        vocabulary=128_256,
        context=8192,
    ),
    samples=Samples(
        prompts="hf:people/questions:train",
        grown=False,
        answers=100,
        kept=90,
        dropped={"near duplicate": 7, "refusal": 3},
        unscored={},
        languages=("en", "de"),
    ),
    training=Training(
        objective="sequence",
        seed=17,
        steps=1000,
        epochs=2.0,
        tokens=200_000_000,
        target_tokens=120_000_000,
        seconds=3600.0,
        device="cuda",
        dtype="bfloat16",
        settings={"objective": "sequence", "learning_rate": 1e-05},
        finished="2026-11-21T09:00:00+00:00",
    ),
    evaluation=Evaluation(
        figures=(
            Figure("teacher", 0.91, 0.88, 0.93, 500),
            Figure("this model", 0.87, 0.84, 0.9, 500),
            Figure("TF-IDF baseline", None, None, None),
        ),
        retention=Figure("share of the teacher's score kept", 0.956, 0.93, 0.98, 500),
        flops_ratio=0.09,
        margin=0.05,
        ruling="not decided",
        source="questions.jsonl",
        notes=("a note",),
    ),
    uses=(Use("judge", "judge-1", 50, 5000, 100),),
    operator=Publisher(
        name="Example Operator",
        contact="office@example.org",
        authorised_representative="Example Representative",
        market_date=date(2026, 12, 1),
        base_training_flop=1.7e24,
    ),
    software={"stillhouse": "0.1.0", "torch": "2.13.0"},
)


def taught_by(*teachers: Teacher, **changes: Any) -> Facts:
    return replace(FACTS, teachers=teachers, **changes)


def nothing_recorded() -> Facts:
    """The same run with only what is always there."""
    bare = replace(
        TEACHER,
        revision=None,
        access=None,
        host=None,
        answered_by=(),
        decisions=(replace(DECISION, terms=None, terms_sha256=(), read_on=None, obligations=()),),
        exchanges=100,
        uncounted=100,
        prompt_tokens=0,
        completion_tokens=0,
        times=None,
        parameters=None,
        lineage=None,
    )
    student = replace(FACTS.student, base_is_on_hub=False, base_sha256=None, architecture=None, context=None)
    return replace(
        FACTS,
        teachers=(bare,),
        student=student,
        licence=None,
        samples=replace(FACTS.samples, prompts="prompts.jsonl", languages=None),
        training=replace(FACTS.training, finished=None),
        evaluation=replace(FACTS.evaluation, flops_ratio=None, margin=None, ruling=None, notes=()),
        operator=Publisher(),
        software={},
        uses=(),
    )
