"""A teacher in a folder: what its name, its configuration and its LICENSE say, and what records say of it."""

import json
from pathlib import Path

import pytest
from maker import NOW, TEXT, admitted, recipe

from stillhouse.ledger.quarantine import decisions_of
from stillhouse.terms import admit_release, consider
from stillhouse.terms.licences import digest

APACHE = Path(__file__).parents[2] / "LICENSE"


@pytest.mark.parametrize(
    "model", ["/home/ames/secret/big", "./secret/big", "~/secret/big", "secret/big", "/home/ames/secret/big/"]
)
def test_a_folders_teacher_is_recorded_by_its_name_alone_as_its_exchanges_have_it(ledger, terms, model):
    what = recipe(terms, model=model, endpoint=None)
    leaf = admitted(what, "train_target", ledger)
    assert ledger.leaf(leaf).body["teacher"]["model"] == "big"
    if not model.startswith(("secret", ".", "~")):
        assert not any("secret" in json.dumps(each.body) for each in ledger.leaves())
    assert decisions_of(ledger, "teacher", "big") == [leaf]
    (again,) = admit_release(what, [leaf], ledger, NOW)
    assert ledger.leaf(again).body["collected_under"] == [leaf]


def reasons(what, ledger):
    decision = consider(what, what.teacher, "train_target", ledger, NOW)
    return decision.verdict, {reason.row for reason in decision.reasons}


def test_no_declaration_makes_open_weights_of_a_vendors_model(ledger, terms):
    what = recipe(terms, model="gpt-4o", endpoint="http://10.0.0.5:4000/v1", access="weights")
    assert reasons(what, ledger) == ("refuse", {"openai-api"})


@pytest.mark.parametrize("endpoint", [None, "http://localhost:8000/v1"])
@pytest.mark.parametrize("name", ["meta-llama/Llama-3.1-8B-Instruct", "llama3.1:8b", "/models/Llama-3.1-8B"])
def test_what_a_checkpoint_is_said_to_be_takes_no_row_away(ledger, endpoint, name):
    what = recipe(
        model=name,
        endpoint=endpoint,
        access="weights",
        checkpoint="Qwen/Qwen2.5-7B-Instruct",
        licence=str(APACHE),
    )
    verdict, rows = reasons(what, ledger)
    assert verdict in ("refuse", "review")
    assert rows == {"qwen-apache", "llama3.1"}


@pytest.mark.parametrize(
    "folder",
    [
        "/models/meta-llama/Llama-3.1-8B-Instruct",
        "./models/Llama-3.1-8B-Instruct",
        "~/Llama-3.1-8B-Instruct",
        "/cache/hub/models--meta-llama--Llama-3.1-8B-Instruct/snapshots/abc",
    ],
)
def test_a_folder_is_known_by_its_name(ledger, terms, folder):
    verdict, rows = reasons(recipe(terms, model=folder, endpoint=None), ledger)
    assert (verdict, rows) == ("refuse", {"llama3.1"})  # nobody said how many users there are


def test_what_a_folders_configuration_was_made_from_forbids_and_allows_nothing(ledger, terms, tmp_path):
    for name, wanted in (
        ("mistralai/Ministral-8B-Instruct-2410", ("refuse", {"mistral-mrl"})),
        ("/home/r/Llama-3.1-8B", ("refuse", {"llama3.1"})),
        ("Qwen/Qwen2.5-7B", ("refuse", set())),
    ):
        folder = tmp_path / "ours"
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(json.dumps({"_name_or_path": name}))
        (folder / "LICENSE").write_text(APACHE.read_text())
        assert reasons(recipe(model=str(folder), endpoint=None), ledger) == wanted


@pytest.mark.parametrize(
    ("config", "row"),
    [
        ({"model_type": "exaone4"}, "exaone"),
        ({"architectures": ["ExaoneForCausalLM"]}, "exaone"),
        ({"model_type": "cohere2", "architectures": ["Cohere2ForCausalLM"]}, "cohere-weights-nc"),
        ({"model_type": "aya_vision", "text_config": {"model_type": "cohere2"}}, "cohere-weights-nc"),
        ({"text_config": {"model_type": "exaone"}, "architectures": "none"}, "exaone"),
    ],
)
def test_a_folder_is_known_by_its_kind_of_model_whatever_it_is_called(ledger, terms, tmp_path, config, row):
    folder = tmp_path / "ours-7b"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "LICENSE").write_text(APACHE.read_text())
    assert reasons(recipe(terms, model=str(folder), endpoint=None), ledger) == ("refuse", {row})
    said = {"model": str(folder), "endpoint": None, "checkpoint": "Qwen/Qwen2.5-7B-Instruct"}
    assert reasons(recipe(terms, **said), ledger) == ("refuse", {"qwen-apache", row})


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("EXAONE-3.5-7.8B-Instruct", "exaone"),
        ("exaone-deep:7.8b", "exaone"),
        ("c4ai-command-r-v01", "cohere-weights-nc"),
        ("aya-expanse-8b", "cohere-weights-nc"),
    ],
)
def test_a_bare_name_of_an_orgs_model_finds_what_forbids_it(ledger, terms, name, row):
    for about in ({"model": f"/models/{name}", "endpoint": None}, {"model": name, "access": "weights"}):
        assert reasons(recipe(terms, **about), ledger) == ("refuse", {row})


def test_a_licences_own_text_speaks_for_its_row_in_any_folder(ledger, maker, terms, tmp_path):
    licence = {"name": "Maker Licence", "sha256": [digest(TEXT.decode())]}
    maker(access="weights", hosts=[], licence=licence, verdict="refuse", trains_competing="no")
    folder = tmp_path / "ours-7b"
    folder.mkdir()
    (folder / "LICENSE").write_bytes(TEXT)
    assert reasons(recipe(terms, model=str(folder), endpoint=None), ledger) == ("refuse", {"maker-api"})
