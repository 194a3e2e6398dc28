"""The key that signs models, beside the one that signs the log."""

import stat

import pytest

from stillhouse.errors import UsageError
from stillhouse.ledger import Ledger, rotate_signing_key
from stillhouse.ledger.backup import back_up, restore
from stillhouse.ledger.keys import read_model_signing_key
from stillhouse.workspace import Workspace, init_workspace, pems


def test_it_is_made_once_for_its_owner_alone(tmp_path):
    workspace = init_workspace(tmp_path)
    path = workspace.model_signing_key
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    before = path.read_bytes()
    key = read_model_signing_key(init_workspace(tmp_path))
    assert path.read_bytes() == before
    assert pems(key) == (before, workspace.model_verifying_key.read_bytes())


def test_a_workspace_of_before_there_was_one_gets_it_when_it_is_needed(workspace):
    workspace.model_signing_key.unlink()
    workspace.model_verifying_key.unlink()
    key = read_model_signing_key(workspace)
    assert pems(key)[1] == workspace.model_verifying_key.read_bytes()
    assert stat.S_IMODE(workspace.model_signing_key.stat().st_mode) == 0o600


def test_a_key_of_another_kind_is_refused(workspace):
    workspace.model_signing_key.write_bytes(workspace.signing_key.read_bytes())
    with pytest.raises(UsageError, match=r"model-signing\.pem") as caught:
        read_model_signing_key(workspace)
    assert "P-256" in caught.value.why


def test_it_is_replaced_together_with_the_key_of_the_log(workspace):
    before = workspace.model_signing_key.read_bytes()
    with Ledger.open(workspace) as ledger:
        rotate_signing_key(workspace, ledger)
        assert ledger.verify().ok
    private, public = pems(read_model_signing_key(workspace))
    assert private != before
    assert public == workspace.model_verifying_key.read_bytes()
    assert stat.S_IMODE(workspace.model_signing_key.stat().st_mode) == 0o600


def test_a_backup_holds_it_only_with_the_other_private_keys(workspace, tmp_path):
    secret = workspace.model_signing_key.read_bytes()
    with Ledger.open(workspace) as ledger:
        back_up(ledger, tmp_path / "without")
        back_up(ledger, tmp_path / "with", keys=True)
    assert secret not in (tmp_path / "without").read_bytes()
    other = Workspace(tmp_path / "elsewhere" / ".stillhouse")
    restore(tmp_path / "with", other)
    assert other.model_signing_key.read_bytes() == secret


def test_a_backup_of_before_there_was_one_is_restored(workspace, tmp_path):
    workspace.model_signing_key.unlink()
    workspace.model_verifying_key.unlink()
    with Ledger.open(workspace) as ledger:
        back_up(ledger, tmp_path / "old", keys=True)
    other = Workspace(tmp_path / "elsewhere" / ".stillhouse")
    restore(tmp_path / "old", other)
    assert not other.model_signing_key.exists()
    assert read_model_signing_key(other)
