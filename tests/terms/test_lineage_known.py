"""What taught a teacher is known by all that it was known by then, and what was owed then is owed still."""

import json

import pytest
from maker import TEXT, row_toml
from taught import NOW, decided, entry, released, upstream

from stillhouse.ledger import Ledger
from stillhouse.terms.licences import digest
from stillhouse.workspace import init_workspace

PREFIX = {"kind": "name_prefix", "texts": ["Llama"], "modes": ["hosted", "weights"], "where": ""}
LLAMA = {"model": "meta-llama/Llama-3.1-8B", "also": ["t"], "licenceSpdx": "", "architectures": ["llama"]}


@pytest.fixture
def ledger(tmp_path):
    with Ledger.open(init_workspace(tmp_path / "ours"), clock=lambda: NOW) as ledger:
        ledger.workspace.operator.write_text("monthly_users = 5\n")
        yield ledger


@pytest.fixture
def theirs(tmp_path):
    return init_workspace(tmp_path / "theirs")


def rows(found):
    return {reason.row for reason in found.reasons}


def kinds(found):
    return {each.obligation.kind for each in found.obligations}


def test_a_llama_in_a_folder_of_another_name_is_a_llama_one_step_further_too(ledger, tmp_path):
    folder = tmp_path / "small"
    released(folder, ledger.workspace, entry("t", "weights", None, known=LLAMA))
    found = decided(ledger, folder, "llama3.1", "llama3.1/licence_text")
    assert "llama3.1" in rows(found)
    assert found.verdict == "allow_with_obligations"
    assert {"name_prefix", "credit", "licence_copy"} <= kinds(found)


@pytest.mark.parametrize(
    ("known", "row"),
    [
        ({"model": "t", "architectures": ["exaone4"]}, "exaone"),
        ({"model": "t", "builtOn": "mistralai/Ministral-8B-Instruct-2410"}, "mistral-mrl"),
        ({"model": "t", "also": ["mistralai/Ministral-8B-Instruct-2410"]}, "mistral-mrl"),
        ({"model": "t", "licenceSha256": digest(TEXT.decode())}, "maker-api"),
    ],
)
@pytest.mark.parametrize("whose", ["ours", "theirs"])
def test_all_that_forbade_it_then_forbids_it_still(ledger, theirs, tmp_path, known, row, whose):
    ledger.workspace.terms.mkdir()
    licence = {"name": "Maker Licence", "sha256": [digest(TEXT.decode())]}
    changes = {"access": "weights", "licence": licence, "verdict": "refuse", "trains_competing": "no"}
    (ledger.workspace.terms / "maker.toml").write_text(row_toml(**changes))
    folder, workspace = tmp_path / "small", ledger.workspace if whose == "ours" else theirs
    released(folder, workspace, entry("t", "weights", None, known=known))
    found = decided(ledger, folder, "t")
    assert (found.verdict, rows(found)) == ("refuse", {"", row})
    further = upstream("middle", entry("t", "weights", None, known=known))
    released(tmp_path / "smaller", workspace, entry("middle", "weights", None, upstream=further))
    assert decided(ledger, tmp_path / "smaller", "t", "middle").verdict == "refuse"


def test_a_licence_that_was_read_counts_where_this_workspace_read_it(ledger, theirs, tmp_path):
    known = {"model": "Qwen/Qwen2.5-7B-Instruct", "licenceSpdx": "Apache-2.0"}
    for workspace, verdict in ((ledger.workspace, "allow"), (theirs, "review")):
        folder = tmp_path / workspace.root.parent.name / "small"
        released(folder, workspace, entry("t", "weights", None, known=known))
        assert decided(ledger, folder).verdict in (verdict, f"{verdict}_with_obligations")


def test_features_that_answers_were_made_with_are_not_forgotten(ledger, tmp_path):
    ledger.workspace.terms.mkdir()
    feature = '[[row.feature]]\nfeatures = ["web_search"]\nverdict = "refuse"\nwhy = "found on the web"\n'
    text = row_toml(hosts=["api.maker.example"]) + feature
    (ledger.workspace.terms / "maker.toml").write_text(text)
    for name, known, verdict in (
        ("plain", {"model": "maker-2"}, "allow"),
        ("found", {"model": "maker-2", "features": ["web_search"]}, "refuse"),
    ):
        released(
            tmp_path / name / "small",
            ledger.workspace,
            entry("maker-2", host="api.maker.example", known=known),
        )
        assert decided(ledger, tmp_path / name / "small").verdict == verdict


def test_a_name_beside_what_it_was_asked_as_counts_as_well(ledger, theirs, tmp_path):
    known = {"model": "Qwen/Qwen2.5-7B-Instruct", "licenceSpdx": "Apache-2.0"}
    released(tmp_path / "small", theirs, entry("gpt-4o", host="api.openai.com", known=known))
    assert "openai-api" in rows(decided(ledger, tmp_path / "small"))


def test_what_was_owed_then_is_owed_still_though_no_row_asks_for_it_today(ledger, tmp_path):
    owed = [{**PREFIX, "row": "gone-1"}, {**PREFIX, "row": "gone-1", "kind": "notice", "texts": ["by Gone"]}]
    folder = tmp_path / "small"
    known = {"model": "Qwen/Qwen2.5-7B-Instruct", "licenceSpdx": "Apache-2.0"}
    released(folder, ledger.workspace, entry("t", "weights", None, known=known, obligations=owed))
    found = decided(ledger, folder)
    assert found.verdict == "allow_with_obligations"
    assert {(each.row, each.obligation.texts) for each in found.obligations} >= {
        ("gone-1", ("Llama",)),
        ("gone-1", ("by Gone",)),
    }
    assert kinds(decided(ledger, folder, use="evaluation")) == set()  # nothing is learned by measuring
    further = upstream("middle", entry("t", "weights", None, known=known, obligations=owed))
    shipped = entry("embedded:desk", "shipped", None, upstream=further)
    released(tmp_path / "two", ledger.workspace, shipped)
    assert kinds(decided(ledger, tmp_path / "two")) >= {"name_prefix", "notice"}


def test_an_older_record_names_no_row_and_asks_once_for_what_a_row_asks_today(ledger, tmp_path):
    of_today = entry(
        "meta-llama/Llama-3.1-8B", "weights", None, obligations=[PREFIX, {**PREFIX, "texts": ["Old"]}]
    )
    folder = tmp_path / "small"
    released(folder, ledger.workspace, of_today)
    found = decided(ledger, folder, "llama3.1", "llama3.1/licence_text")
    prefixes = [each for each in found.obligations if each.obligation.kind == "name_prefix"]
    assert [(each.row, each.obligation.texts) for each in prefixes] == [
        ("llama3.1", ("Llama",)),
        ("the record of small", ("Old",)),
    ]


def test_an_older_record_is_read_and_nothing_is_made_up(ledger, tmp_path):
    folder = tmp_path / "small"
    released(folder, ledger.workspace, entry("t", "weights", None))
    found = decided(ledger, folder, "t")
    assert (found.verdict, found.basis) == ("allow", "declaration")
    assert found.obligations == ()


def test_one_unknown_further_up_hides_nobody_who_is_known(ledger, tmp_path):
    unknown = upstream("lost", unknown="its record cannot be read: MANIFEST is missing")
    folder = tmp_path / "small"
    lost = entry("embedded:desk", "shipped", None, upstream=unknown)
    released(folder, ledger.workspace, lost, entry("gpt-4o", host="api.openai.com"))
    found = decided(ledger, folder, "lineage")
    assert (found.verdict, "openai-api" in rows(found)) == ("refuse", True)
    assert "MANIFEST is missing" in json.dumps([reason.why for reason in found.reasons])
