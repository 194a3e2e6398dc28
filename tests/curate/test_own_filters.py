"""What a filter of somebody else's does wrong is counted or told, and reaches no sample."""

from __future__ import annotations

import pytest
from curating import balances, declare, row, through

from stillhouse.errors import UsageError
from stillhouse.workspace import Workspace


def test_what_an_own_filter_does_to_a_row_reaches_no_sample(workspace: Workspace, monkeypatch):
    declare(monkeypatch, tidy="own_filters:tidy")
    done, kept, _ = through([row(0, "as it was")], workspace, filters=["tidy"])
    assert [(r["completion"], r["messages"][0]["content"]) for r in kept] == [("as it was", "question 0")]
    assert done.families == {"f": 1}


def test_a_reason_that_is_no_text_leaves_the_row_unscored(workspace: Workspace, monkeypatch):
    declare(monkeypatch, numbered="own_filters:numbered")
    rows = [row(i, answer) for i, answer in enumerate(("number", "half", "list", "text"))]
    done, _, dropped = through(rows, workspace, filters=["numbered"])
    assert done.reasons == {"told": 1}
    assert done.unscored == {"own: numbered returned a reason that is no text": 3}
    assert len(dropped) == 4
    assert balances(done)


@pytest.mark.parametrize(
    ("value", "what"),
    [
        ("own_filters:missing", "could not be loaded"),
        ("no_such_package:x", "could not be loaded"),
        ("own_filters:nothing", "cannot be called"),
    ],
)
def test_a_filter_that_cannot_be_used_is_told(workspace: Workspace, monkeypatch, value: str, what: str):
    declare(monkeypatch, broken=value)
    with pytest.raises(UsageError, match=what):
        through([row(0, "x")], workspace, filters=["broken"])


def test_two_filters_of_one_name_are_told(workspace: Workspace, monkeypatch):
    declare(monkeypatch, ("same", "own_filters:tidy"), same="own_filters:same")
    with pytest.raises(UsageError, match="2 filters named 'same'"):
        through([row(0, "x")], workspace, filters=["same"])
