"""A decision that rests on two permissions: the plan tells the smaller rest, and either one recalls it."""

from datetime import UTC, datetime

import pytest
from tiny import tiny_model

from stillhouse import pipeline
from stillhouse.errors import UsageError
from stillhouse.ledger import Ledger
from stillhouse.ledger.quarantine import decisions_of
from stillhouse.recipe import parse_recipe
from stillhouse.terms import admit, authorising

TEXT = b"It is permitted."
SAID = {"grantee": "us", "signatory": "J. Doe", "approver": "R. Ames", "valid_from": "2026-01-01"}


def test_each_permission_of_a_decision_counts_and_recalls_it(tmp_path, workspace):
    recipe = parse_recipe(
        {
            "run": {"name": "t"},
            "teacher": {"model": "azure/gpt-4o", "endpoint": "https://us.openai.azure.com/v1"},
            "prompts": {"source": "embedded:desk", "count": 8},
            "student": {"init": str(tiny_model(tmp_path / "tiny"))},
        }
    )

    def permit(grantor, volume):
        uses = ["train_target", "evaluation"]
        scope = {"models": ["azure/*"], "uses": uses, "volume": volume, "competing": True}
        said = SAID | {"grantor": grantor, "scope": scope}
        return authorising.record(authorising.make_permission(said, "c.txt", TEXT, "here"), TEXT, ledger)

    with Ledger.open(workspace) as ledger:
        ample, scarce = permit("Microsoft", 500), permit("OpenAI", 5)
        decision = admit(recipe, recipe.teacher, "train_target", ledger, datetime.now(UTC))
        assert set(ledger.leaf(decision).body["permissions"]) == {ample, scarce}
        assert decisions_of(ledger, "authorisation", ample) == [decision]
        assert decisions_of(ledger, "authorisation", scarce) == [decision]
        declared = ledger.append("decision", {"authorisation": ample, "declaration": 1234})
        assert decisions_of(ledger, "authorisation", 1234) == [declared]
        with pytest.raises(UsageError, match="no decision to recall"):
            decisions_of(ledger, "authorisation", 4321)
        planned = pipeline.plan(recipe, workspace, ledger)
    asked = [body for body in planned.terms if body["use"] != "base"]
    assert {(body["exchanges_left"], body["left_by"]) for body in asked} == {(5, scarce)}
