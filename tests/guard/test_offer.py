"""The provider's document for machines is read back as it was meant."""

import itertools
import json
from hashlib import sha256

import pytest

from stillhouse.guard.config import Record, Terms
from stillhouse.guard.offer import document
from stillhouse.terms.offered import WORDS, read

TEXT = b"Answers are yours.\n"


def terms(training: str, competing: str) -> Terms:
    said = {"version": "3", "document": "terms.md", "training": training, "competing": competing}
    return Terms.model_validate({**said, "contact": "terms@guard.example"})


@pytest.mark.parametrize(("training", "competing"), [*itertools.product(WORDS, WORDS)])
def test_what_is_written_is_what_is_read(training: str, competing: str) -> None:
    digest = sha256(TEXT).hexdigest()
    marks = {"selection": "all_accounts", "markers": "none"}
    said = document(terms(training, competing), Record(), digest, "https://guard.example/", marks)
    assert said["marks"] == marks
    offer = read(json.dumps(said).encode())
    strictest = min(training, competing, key=WORDS.index)
    assert (offer.training, offer.competing) == (training, strictest)
    assert (offer.version, offer.text) == ("3", "https://guard.example/terms")
    assert (offer.sha256, offer.contact) == (digest, "terms@guard.example")
    # The words of others say no unless everything is allowed
    free = training == competing == "allowed"
    assert said["aipref"] == {"train-ai": "y" if free else "n"}
    assert said["tdmrep"]["tdm-reservation"] == (0 if free else 1)


@pytest.mark.parametrize("deferred", ["never", "with_consent"])
def test_whether_requests_are_learned_from_is_said_beside_the_answers(deferred: str) -> None:
    record = Record.model_validate({"deferred": deferred})
    said = document(terms("forbidden", "forbidden"), record, "0" * 64, "https://guard.example")
    assert said["requests"] == {"train_own_models": deferred}
    assert read(json.dumps(said).encode()).training == "forbidden"


def test_a_nested_bomb_is_no_document() -> None:
    with pytest.raises(ValueError, match="no JSON"):
        read(b"[" * 60_000)
