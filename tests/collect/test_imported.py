import json
from pathlib import Path

import pytest

from stillhouse.collect.imported import Imported, declare, import_file
from stillhouse.errors import GateRefused, UsageError
from stillhouse.ledger import Ledger
from stillhouse.ledger.permissions import standings
from stillhouse.terms import authorising
from stillhouse.workspace import init_workspace


@pytest.fixture
def ledger(tmp_path):
    with Ledger.open(init_workspace(tmp_path)) as ledger:
        yield ledger


@pytest.fixture
def bring(tmp_path, ledger):
    (tmp_path / "terms.txt").write_text("You may train on outputs.\n")

    def bring(rows: list[dict[str, str]]) -> Imported:
        path = tmp_path / "answers.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return import_file(path, "big-1", declare(tmp_path / "terms.txt", "2026-11-01", "R. Ames"), ledger)

    return bring


def answer_of(ledger: Ledger, leaf: int) -> str:
    response = ledger.contents(leaf)["response"]
    assert response is not None
    return json.loads(response)["choices"][0]["message"]["content"]


def test_every_row_is_counted_once(bring, ledger):
    done = bring(
        [
            {"prompt": "a", "answer": "1"},
            {"prompt": "b", "answer": "2"},
            {"prompt": "a", "answer": "another"},
            {"prompt": "a", "answer": "1"},
            {"prompt": "c", "answer": ""},
            {"prompt": "d", "answer": "half \ud83d"},
        ]
    )
    assert (done.imported, done.known, done.repeated, len(done.broken)) == (2, 0, 2, 2)
    assert [answer_of(ledger, leaf.index) for leaf in ledger.leaves("import")] == ["1", "2"]
    again = bring([{"prompt": "a", "answer": "1"}, {"prompt": "e", "answer": "5"}])
    assert (again.imported, again.known, again.repeated, len(again.broken)) == (1, 1, 0, 0)


def test_what_is_imported_under_a_permission_counts_as_had(tmp_path, ledger):
    scope = {"models": ["big-*"], "uses": ["train_target"], "volume": 3, "competing": True}
    scope |= {"servers": ["import"]}
    said = {"id": "v", "grantor": "Big", "grantee": "us", "signatory": "J. Doe", "approver": "R. Ames"}
    said |= {"valid_from": "2026-01-01", "scope": scope}
    permission = authorising.make_permission(said, "contract.txt", b"Big permits it.", "here")
    leaf = authorising.record(permission, b"Big permits it.", ledger)

    def bring(count):
        path = tmp_path / "answers.jsonl"
        rows = [{"prompt": f"q {n}", "answer": f"a {n}"} for n in range(count)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        terms = declare(tmp_path / "terms.txt", "2026-11-01", "R. Ames")
        return import_file(path, "big-1", terms, ledger)

    (tmp_path / "terms.txt").write_text("Some terms.\n")
    with pytest.raises(GateRefused, match="does not cover") as caught:
        bring(4)
    assert "0 of 3" in caught.value.why
    assert not list(ledger.leaves("import"))
    assert bring(3).imported == 3
    assert standings(ledger)[leaf].used == 3
    assert (bring(3).known, standings(ledger)[leaf].used) == (3, 3)


def test_an_erased_answer_can_be_imported_again(bring, ledger):
    bring([{"prompt": "a", "answer": "1"}])
    (first,) = ledger.leaves("import")
    ledger.erase(first.index, "wrong answer")
    done = bring([{"prompt": "a", "answer": "2"}])
    assert (done.imported, done.known) == (1, 0)
    (stored,) = ledger.exchanges([first.body["key"]])
    assert (answer_of(ledger, stored.leaf), stored.erased) == ("2", False)


@pytest.mark.parametrize(
    ("read_on", "declared_by", "named"),
    [("yesterday", "R. Ames", "'yesterday' is not a date"), ("2026-11-01", "  ", "nobody declares")],
)
def test_a_bad_declaration_is_an_error_for_people(tmp_path: Path, read_on, declared_by, named):
    with pytest.raises(UsageError, match=named) as caught:
        declare(tmp_path / "terms.txt", read_on, declared_by)
    assert caught.value.why
    assert caught.value.mend
    assert caught.value.__cause__ is None


def test_a_declaration_covers_both_uses(tmp_path: Path):
    made = declare(tmp_path / "terms.txt", "2026-11-01", " R. Ames ")
    assert made.declared_by == "R. Ames"
    assert set(made.scope) == {"train_target", "evaluation"}
