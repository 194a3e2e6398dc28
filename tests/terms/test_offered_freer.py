"""What a server says of its own terms makes nothing freer than it is without that."""

import json
from datetime import date

import pytest

from stillhouse.ledger import Ledger
from stillhouse.terms import registry
from stillhouse.terms.deciding import DeclaredTerms, decide
from stillhouse.terms.facts import Asked, Operator, Row, Student, offers_others
from stillhouse.terms.offered import heard, keep, origin_of
from stillhouse.workspace import init_workspace

TODAY = date(2026, 11, 22)
TABLE = registry.load(None)
STRICT = ("refuse", "review", "allow_with_obligations", "allow")
WORDS = [("forbidden", "forbidden"), ("with_permission", "forbidden"), ("allowed", "allowed")]
OPERATOR = Operator(
    monthly_users=1,
    monthly_revenue_usd=1,
    yearly_revenue_usd=1,
    territory="DE",
    sells_access_to_models=False,
    commercial=True,
)


def asked(endpoint: str, use: str, competes: bool | None) -> Asked:
    student = Student("s", "", competes=competes, mode="weights")
    return Asked("foo-bar-x", "", "api", endpoint, use, student, OPERATOR)


def offer(tmp_path, of: Asked, training: str, competing: str) -> Row:
    said = {
        "schema": "ai-terms/1",
        "contact": "",
        "terms": {"version": "1", "url": "https://h/terms", "sha256": "0" * 64},
        "answers": {"train_other_models": training, "train_competing_models": competing},
    }
    with Ledger.open(init_workspace(tmp_path)) as ledger:
        keep(ledger, origin_of(of.endpoint), json.dumps(said).encode(), TODAY)
        (found,) = heard(ledger, of, (), TODAY)
    assert found.row is not None
    return found.row


@pytest.mark.parametrize("words", WORDS)
@pytest.mark.parametrize("competes", [False, True])
@pytest.mark.parametrize("use", ["train_target", "evaluation"])
def test_an_unknown_model_is_allowed_nothing_by_its_servers_word(tmp_path, words, competes, use):
    of = asked("https://unknown.example/v1", use, competes)
    decision = decide(of, [offer(tmp_path, of, *words)], (), (), TODAY, further=0)
    assert decision.verdict in ("refuse", "review")


@pytest.mark.parametrize("words", WORDS)
@pytest.mark.parametrize("about", [(), ("foo-bar-x",), ("foo-bar-x", "unknown.example")])
def test_whoever_read_the_models_terms_is_held_back_by_its_servers_word_alone(tmp_path, words, about):
    of = asked("https://unknown.example/v1", "train_target", None)
    said = DeclaredTerms("t.txt", "ab" * 32, TODAY, "R", ("train_target",), about)
    assert decide(of, [], (), (said,), TODAY).allowed
    decision = decide(of, [offer(tmp_path, of, *words)], (), (said,), TODAY)
    assert decision.allowed is (words == ("allowed", "allowed"))


@pytest.mark.parametrize("host", [row.key for row in TABLE.rows() if offers_others(row) and row.hosts])
@pytest.mark.parametrize("words", WORDS)
def test_a_platform_and_its_own_word_do_not_stand_in_for_the_models_terms(tmp_path, host, words):
    row = next(row for row in TABLE.rows() if row.key == host)
    of = asked(f"https://{row.hosts[0].replace('*', 'x')}/v1", "train_target", False)
    rows = list(TABLE.matching(of))
    said = DeclaredTerms("t.txt", "ab" * 32, TODAY, "R", ("train_target", "evaluation"), (host,))
    without = decide(of, rows, (), (said,), TODAY, further=0)
    offered = decide(of, [*rows, offer(tmp_path, of, *words)], (), (said,), TODAY, further=0)
    assert STRICT.index(offered.verdict) <= STRICT.index(without.verdict)
    assert offered.verdict in ("refuse", "review")
