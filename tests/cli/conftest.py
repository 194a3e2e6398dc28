"""What several tests of the command line stand on."""

import pytest

from stillhouse.cli import main
from stillhouse.guard import config


@pytest.fixture
def guard(tmp_path, monkeypatch, capsys):
    """The whole command but for the process: that one loads and leaves is shown once, below."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("gc.set_threshold", lambda *_: None)

    def run(*words, code=0, **environment):
        with monkeypatch.context() as patched:
            patched.setattr("sys.argv", ["stillhouse", "guard", *map(str, words)])
            for name, value in environment.items():
                patched.setenv(name, value)
            with pytest.raises(SystemExit) as left:
                main()
        done = capsys.readouterr()
        assert left.value.code == code, done.out + done.err
        assert "Traceback" not in done.out + done.err
        return done.out + done.err

    return run


@pytest.fixture
def store(tmp_path):
    """Where `guard init` says that the gateway keeps what it knows."""
    return config.Store(folder=str(tmp_path / ".stillhouse" / "guard"))
