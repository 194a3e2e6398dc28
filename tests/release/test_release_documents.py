"""The documents of a release, each read by software that knows nothing of stillhouse."""

from __future__ import annotations

import base64
import json
from dataclasses import replace

import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from google.protobuf import json_format
from huggingface_hub import ModelCard
from hypothesis import example, given, settings
from hypothesis import strategies as st
from in_toto_attestation.predicates.provenance.v1 import provenance_pb2
from in_toto_attestation.v1 import statement_pb2
from in_toto_attestation.v1.statement import Statement
from releasing import FACTS, ROWS, TEACHER, nothing_recorded, taught_by
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import VerificationError
from securesystemslib.signer import SSlibKey
from spdx_python_model import v3_0_1 as bindings

from stillhouse.errors import LedgerError
from stillhouse.ledger.keys import public_bytes
from stillhouse.release.attestations import DISTILLATION, key_id, opened, signed, statements
from stillhouse.release.bom import cyclonedx
from stillhouse.release.card import metadata, model_card
from stillhouse.release.documents import as_json, documents
from stillhouse.release.facts import Facts
from stillhouse.release.spdx import spdx
from stillhouse.terms.facts import Obligation
from stillhouse.terms.obligations import Owed

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
WORDS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=300)
KNOWN = {"all recorded": FACTS, "nothing recorded": nothing_recorded(), "no base": None}
KNOWN["no base"] = replace(FACTS, student=replace(FACTS.student, base=None, base_is_on_hub=False))
each = pytest.mark.parametrize("facts", KNOWN.values(), ids=KNOWN)


@st.composite
def odd(draw: st.DrawFn) -> Facts:
    """Names and notes as bad as files may hold them, and counts as large as they come."""
    huge = st.integers(0, 2**53 - 1)
    teacher = replace(
        TEACHER,
        model=draw(WORDS),
        revision=draw(st.none() | WORDS),
        host=draw(st.none() | WORDS),
        lineage=draw(st.none() | WORDS),
        prompt_tokens=draw(huge),
        completion_tokens=draw(huge),
        parameters=draw(st.none() | st.integers(1, 10**13)),
    )
    return taught_by(
        teacher,
        TEACHER,
        name=draw(WORDS),
        run=draw(WORDS),
        licence=draw(st.none() | WORDS),
        samples=replace(FACTS.samples, prompts=draw(WORDS), dropped={draw(WORDS): draw(huge)}),
        student=replace(FACTS.student, base=draw(st.none() | WORDS), base_is_on_hub=False),
        evaluation=replace(FACTS.evaluation, notes=(draw(WORDS),), source=draw(WORDS)),
    )


def front(card: str) -> dict:
    head, gap, _ = card.removeprefix("---\n").partition("\n---\n")
    assert gap
    return yaml.safe_load(head)


@each
def test_the_same_facts_make_the_same_bytes(facts: Facts):
    assert documents(facts, ROWS, KEY) == documents(facts, ROWS, KEY)


@each
def test_nothing_says_that_a_law_is_kept(facts: Facts):
    for name, data in documents(facts, ROWS, KEY).items():
        text = base64.b64decode(json.loads(data)["payload"]) if name.startswith("attest/") else data
        assert b"complian" not in text.lower(), name


# The card


def test_the_hub_reads_base_licence_and_languages_from_the_card():
    read = ModelCard(model_card(FACTS)).data
    assert read.base_model == "Qwen/Qwen3-8B"
    assert read.license == "apache-2.0"
    assert read.language == ["en", "de"]
    assert read.datasets == ["people/questions"]
    assert {"synthetic", "distillation"} <= set(read.tags)
    assert read.to_dict()["base_model_relation"] == "finetune"
    assert read.to_dict()["distilled_from"][0]["model"] == TEACHER.model


def test_a_base_that_the_hub_does_not_have_is_named_in_the_text_alone():
    facts = nothing_recorded()
    assert "base_model" not in metadata(facts)
    assert facts.student.base in model_card(facts)


def test_a_licence_that_the_hub_does_not_know_goes_under_its_own_name():
    found = metadata(replace(FACTS, licence="LicenseRef-house"))
    assert (found["license"], found["license_name"]) == ("other", "LicenseRef-house")


def test_the_card_shows_credit_lines_scores_and_what_nobody_recorded():
    llama = Obligation("credit", ("Built with Llama", "Llama-made"), where="where users see it")
    owed = Owed("llama3.1", TEACHER.model, llama)
    card = model_card(replace(FACTS, credits=("Llama-made",), due=(owed,)))
    assert "**Llama-made**" in card
    assert "**Built with Llama**" not in card
    assert "credit, Built with Llama or Llama-made (where users see it)" in card
    assert "What the terms ask" not in model_card(FACTS)  # of what is not due nothing is said
    assert "87.0 % (84.0 % to 90.0 %)" in card
    assert "unanchored: internally consistent only" in card
    assert "## Missing" not in card
    bare = model_card(nothing_recorded())
    assert "- the licence of the weights" in bare
    assert "- the parameters of meta-llama/Llama-3.1-8B-Instruct" in bare


@settings(max_examples=60, deadline=None)
@given(odd())
@example(taught_by(replace(TEACHER, model="\x85"), TEACHER, name="a\u2028b\u2029c"))
def test_no_name_breaks_the_card(facts: Facts):
    card = model_card(facts)
    assert front(card) == metadata(facts)
    heads = [line for line in card.split("\n") if line.startswith("## ")]
    assert heads[:4] == ["## Scores", "## Where the training rows came from", "## Limits", "## Training"]
    rows = [line for line in card.split("\n") if line.startswith("| ")]
    widths = [len([c for i, c in enumerate(row) if c == "|" and row[i - 1] != "\\"]) for row in rows]
    assert widths == [4] * 5 + [9] * 4


# Bills of materials


@settings(max_examples=40, deadline=None)
@given(odd())
def test_cyclonedx_takes_every_bill(facts: Facts):
    for one in (facts, nothing_recorded()):
        validator = JsonStrictValidator(SchemaVersion.V1_6)
        assert validator.validate_str(as_json(cyclonedx(one, ROWS)).decode()) is None


def test_the_bill_names_model_card_data_and_teachers():
    bill = cyclonedx(FACTS, ROWS)
    model = bill["metadata"]["component"]
    assert model["pedigree"]["ancestors"][0]["name"] == "Qwen/Qwen3-8B"
    assert model["modelCard"]["modelParameters"]["datasets"] == [{"ref": "training-rows"}]
    assert {d["ref"]: d["dependsOn"] for d in bill["dependencies"]}["training-rows"] == [
        "prompts",
        "teacher-0",
    ]
    metric = model["modelCard"]["quantitativeAnalysis"]["performanceMetrics"][0]
    assert metric["confidenceInterval"] == {"lowerBound": "0.88", "upperBound": "0.93"}


@settings(max_examples=40, deadline=None)
@given(odd())
def test_spdx_takes_every_bill(facts: Facts):
    for one in (facts, nothing_recorded()):
        read = bindings.SHACLObjectSet()
        bindings.JSONLDDeserializer().deserialize_data(json.loads(as_json(spdx(one, ROWS))), read)
        assert not read.missing_ids
        # Writing it again asks for all that the format requires.
        written = bindings.JSONLDSerializer().serialize_data(read)
        assert len(written["@graph"]) == len(spdx(one, ROWS)["@graph"])


def test_spdx_says_who_generated_what_the_model_was_trained_on():
    read = bindings.SHACLObjectSet()
    bindings.JSONLDDeserializer().deserialize_data(spdx(FACTS, ROWS), read)
    related = {
        link.relationshipType.rsplit("/", 1)[1]: (
            link.from_.name,
            [getattr(to, "name", to) for to in link.to],
        )
        for link in read.foreach_type(bindings.Relationship)
        if link.from_.name in (TEACHER.model, FACTS.name)
    }
    assert related["generates"] == (TEACHER.model, ["training rows of Llama-small"])
    assert related["trainedOn"] == ("Llama-small", ["training rows of Llama-small"])
    assert related["testedOn"][1] == ["test prompts: questions.jsonl"]
    assert related["descendantOf"][1] == ["Qwen/Qwen3-8B"]
    assert "hasConcludedLicense" in related


# Attestations


@each
def test_in_toto_takes_every_statement(facts: Facts):
    found = statements(facts, ROWS)
    for statement in found.values():
        read = json_format.Parse(as_json(statement), statement_pb2.Statement())
        Statement.copy_from_pb(read).validate()
    provenance = provenance_pb2.Provenance()
    json_format.ParseDict(found["training"]["predicate"], provenance)
    assert provenance.build_definition.external_parameters["seed"] == 17
    assert found["distillation"]["predicateType"] == DISTILLATION


def test_securesystemslib_verifies_the_envelopes_and_no_other_key_does():
    def public(key: Ed25519PrivateKey):
        return SSlibKey.from_crypto(key.public_key(), key_id(public_bytes(KEY)))

    other = Ed25519PrivateKey.from_private_bytes(bytes(32))
    for statement in statements(FACTS, ROWS).values():
        line = signed(statement, KEY)
        assert line.count(b"\n") == 1
        envelope = Envelope.from_dict(json.loads(line))
        assert envelope.verify([public(KEY)], 1)
        assert json.loads(envelope.payload) == json.loads(as_json(statement))
        with pytest.raises(VerificationError):
            envelope.verify([public(other)], 1)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 4000), st.integers(0, 255))
def test_an_envelope_opens_only_as_it_was_signed(place: int, byte: int):
    statement = statements(FACTS, ROWS)["distillation"]
    line = signed(statement, KEY)
    assert opened(line, public_bytes(KEY)) == json.loads(as_json(statement))
    changed = bytearray(line)
    changed[place % len(line)] = byte
    try:
        found = opened(bytes(changed), public_bytes(KEY))
    except LedgerError:
        return
    assert found == json.loads(as_json(statement))  # what is not signed says nothing
