"""Keys in a workspace: who can read them, where they go and where they do not."""

import stat
from datetime import UTC, datetime, timedelta

import pytest

from stillhouse.cli.doctor import examine
from stillhouse.errors import UsageError
from stillhouse.ledger import Ledger
from stillhouse.ledger.backup import back_up, restore
from stillhouse.models.serve import serve
from stillhouse.watermark import Gumbel, Kgw, Selection, new_key, rotate, workspace_keys
from stillhouse.workspace import Workspace

NOW = datetime(2026, 3, 1, tzinfo=UTC)


def test_rotating_keeps_what_finds_older_marks_and_the_newest_is_first(workspace):
    first, path = rotate(workspace, Gumbel(), NOW)
    second, _ = rotate(workspace, Kgw(), NOW + timedelta(days=30))
    assert workspace_keys(workspace) == [second, first]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_backup_holds_secrets_only_where_they_are_asked_for(workspace, tmp_path):
    key, _ = rotate(workspace, Gumbel(), NOW)
    with Ledger.open(workspace) as ledger:
        back_up(ledger, tmp_path / "without")
        back_up(ledger, tmp_path / "with", keys=True)
    assert key.secret.hex().encode() not in (tmp_path / "without").read_bytes()
    other = Workspace(tmp_path / "elsewhere" / ".stillhouse")
    restore(tmp_path / "with", other)
    assert workspace_keys(other) == [key]


def test_doctor_names_a_key_that_others_can_read(workspace):
    _, path = rotate(workspace, Gumbel(), NOW)
    path.chmod(0o644)
    found = [one for one in examine(workspace.root.parent, None) if one.detail == str(path)]
    assert [(one.state, one.mend) for one in found] == [("fail", f"chmod 600 {path}")]


def test_a_server_refuses_a_key_that_marks_no_tokens():
    with pytest.raises(UsageError) as caught:
        serve("embedded:desk", port=0, mark=new_key(Selection(), NOW))
    assert "chooses among whole answers" in caught.value.why
