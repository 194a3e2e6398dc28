"""A release that replaces another."""

from pathlib import Path

import pytest

from stillhouse.release import _put_in_place


def _folder(path, text):
    path.mkdir()
    (path / "README.md").write_text(text)
    return path


@pytest.mark.parametrize("dies", [False, True])
def test_the_release_of_before_is_kept_until_the_new_one_is_in_its_place(tmp_path, monkeypatch, dies):
    place, old = _folder(tmp_path / "release", "old"), tmp_path / "release.old"
    new = _folder(tmp_path / "release.new", "new")
    if dies:
        rename = Path.rename

        def until(path, target):
            if path == new:
                raise KeyboardInterrupt
            return rename(path, target)

        with monkeypatch.context() as patched:
            patched.setattr(Path, "rename", until)
            with pytest.raises(KeyboardInterrupt):
                _put_in_place(new, place)
        assert (old / "README.md").read_text() == "old"
    _put_in_place(new, place)
    assert (place / "README.md").read_text() == "new"
    assert not old.exists()
