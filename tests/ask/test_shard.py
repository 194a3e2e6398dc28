"""What a worker leaves behind: whole frames are read and torn ones are not; merging twice does no more."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillhouse.ask import Part, Question, Teacher, recover, settling, shard
from stillhouse.ask.settling import Ended
from stillhouse.ask.shard import Shard, frame, read_shard, shard_name
from stillhouse.errors import LedgerError, StorageError, UsageError
from stillhouse.ledger import Ledger
from stillhouse.models.endpoint import Failure, Reply, parse_chat
from stillhouse.money import Price
from stillhouse.records import Message
from stillhouse.workspace import Workspace

RUN = "run"
TEACHER = Teacher("m", "somewhere", "r1", None, price=Price(1.0, 4.0))


def response(text: str) -> bytes:
    return json.dumps(
        {
            "model": "m-1",
            "choices": [{"index": 0, "message": {"content": text}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 10, "completion_tokens": 5},
        }
    ).encode()


def answered(attempt: int, key: str, text: str) -> Ended:
    raw = response(text)
    question = Question(f"p{attempt}", (Message("user", "?"),))
    begun = settling.begun(attempt, key, Part(TEACHER, 3, [question]), question, RUN, "collect", 0.01)
    return Ended(begun, Reply(200, raw, {}, parse_chat(raw)), b'{"messages":[]}', 0.25)


def key_of(number: int) -> str:
    return f"{number:064x}"


def begin(ledger: Ledger, count: int) -> list[int]:
    """So many attempts that are open."""
    return [ledger.begin(key_of(n), RUN, f"p{n}", "m", 0, 0.01).result() for n in range(count)]


def leave(folder: Path, ledger: Ledger, *ended: Ended) -> Path:
    """A shard as a worker leaves it when it dies."""
    path = folder / shard_name(ledger.origin, f"{len(list(folder.glob('*')))}-{'0' * 8}")
    writing = Shard(path)
    writing.append([frame(one) for one in ended])
    writing.close()
    return path


@settings(deadline=None)
@given(texts=st.lists(st.text(max_size=200), min_size=1, max_size=6), data=st.data())
def test_a_shard_that_ends_anywhere_gives_the_frames_that_are_whole(tmp_path_factory, texts, data):
    path = tmp_path_factory.mktemp("shard") / "a.shard"
    wrote = [answered(n, key_of(n), text) for n, text in enumerate(texts)]
    frames = [frame(one) for one in wrote]
    whole = b"".join(frames)
    cut = data.draw(st.integers(0, len(whole)))
    path.write_bytes(whole[:cut])
    ends = [sum(map(len, frames[: n + 1])) for n in range(len(frames))]
    assert list(read_shard(path, range(10))) == wrote[: sum(end <= cut for end in ends)]


@settings(deadline=None)
@given(place=st.integers(0), bit=st.integers(0, 7))
def test_a_flipped_bit_is_never_taken_for_an_answer(tmp_path_factory, place, bit):
    path = tmp_path_factory.mktemp("shard") / "a.shard"
    wrote = [answered(n, key_of(n), f"answer {n}") for n in range(3)]
    data = bytearray(b"".join(map(frame, wrote)))
    data[place % len(data)] ^= 1 << bit
    path.write_bytes(data)
    read = list(read_shard(path, range(10)))
    assert read == wrote[: len(read)]
    assert len(read) < 3


def test_answers_and_failures_of_a_dead_worker_get_into_the_ledger_once(tmp_path: Path, workspace: Workspace):
    folder = tmp_path / "shards"
    folder.mkdir()
    with Ledger.open(workspace) as ledger:
        attempts = begin(ledger, 4)
        one, two = (answered(attempts[n], key_of(n), f"answer {n}") for n in (0, 1))
        cut = Ended(two.begun, Failure("cut", "broke", sent=True), b"", 0.1)
        refused = answered(attempts[2], key_of(2), "")
        refused = Ended(refused.begun, Failure("rate_limited", "later", status=429), b"", 0.1)
        path = leave(folder, ledger, one, cut)
        leave(folder, ledger, refused)
        keep = path.read_bytes()
        recover(folder, ledger, RUN)
        counts = ledger.attempts(RUN)
        assert (counts.answered, counts.failed, counts.open) == (1, 2, 1)
        assert not list(folder.iterdir())
        (stored,) = ledger.exchanges([key_of(0)])
        assert stored.response == response("answer 0")
        assert stored.body["decision"] == 3
        assert stored.body["nanodollars"] == 30_000
        assert stored.body["milliseconds"] == 250
        spent, size = ledger.spent(RUN), ledger.size()
        assert spent.known == pytest.approx(30e-6)
        assert spent.most == pytest.approx(30e-6 + 2 * 0.01)  # what was cut and what is open may be billed

        path.write_bytes(keep)  # as if the crash came before the shard was removed
        recover(folder, ledger, RUN)
        assert (ledger.size(), ledger.spent(RUN), ledger.attempts(RUN)) == (size, spent, counts)
        assert all(check.ok for check in ledger.verify().checks)


def test_an_attempt_that_was_given_up_is_answered_by_a_shard_found_later(
    tmp_path: Path, workspace: Workspace
):
    folder = tmp_path / "shards"
    folder.mkdir()
    with Ledger.open(workspace) as ledger:
        (attempt,) = begin(ledger, 1)
        ledger.lose([attempt]).result()
        assert ledger.attempts(RUN).unknown == 1
        assert ledger.spent(RUN).most == pytest.approx(0.01)
        leave(folder, ledger, answered(attempt, key_of(0), "late"))
        recover(folder, ledger, RUN)
        assert ledger.attempts(RUN).unknown == 0
        assert ledger.spent(RUN).most == pytest.approx(30e-6)


def test_a_shard_of_another_ledger_is_not_taken(tmp_path: Path, workspace: Workspace):
    folder = tmp_path / "shards"
    folder.mkdir()
    with Ledger.open(workspace) as ledger:
        (attempt,) = begin(ledger, 1)
        foreign = folder / shard_name("stillhouse/0123456789abcdef", "1-1")
        leave(folder, ledger, answered(attempt, key_of(0), "theirs")).rename(foreign)
        recover(folder, ledger, RUN)
        assert ledger.attempts(RUN).open == 1
        assert foreign.exists()
        foreign.unlink()
        path = leave(folder, ledger, answered(attempt, key_of(7), "to another question"))
        with pytest.raises(LedgerError, match="another question"):
            recover(folder, ledger, RUN)
        assert path.exists()


def test_what_may_lie_on_other_machines_is_not_asked_again_unasked(tmp_path: Path, workspace: Workspace):
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "elsewhere").write_text("head:6379\n")
    with Ledger.open(workspace) as ledger, pytest.raises(UsageError, match="other machines"):
        recover(tmp_path / "shards", ledger, RUN)


def test_a_shard_is_not_read_while_its_worker_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shard, "LOCKED_SECONDS", 0.1)
    path = tmp_path / "a.shard"
    writing = Shard(path)
    writing.append([frame(answered(1, key_of(1), "yes"))])
    with pytest.raises(StorageError, match="still being written"):
        list(read_shard(path, {1}))
    writing.close()
    assert len(list(read_shard(path, {1}))) == 1
    assert list(read_shard(path, {2})) == []


def test_a_full_disk_takes_the_whole_group_back(tmp_path: Path):
    """A file may grow to two frames here; a third is refused, and what is there stays readable."""
    path = tmp_path / "a.shard"
    frames = [frame(answered(n, key_of(n), "x" * 100)) for n in range(4)]
    code = f"""
        import resource, signal, sys
        from pathlib import Path
        from stillhouse.ask.shard import Shard
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        data = sys.stdin.buffer.read()
        size = len(data) // 4
        frames = [data[n * size : (n + 1) * size] for n in range(4)]
        resource.setrlimit(resource.RLIMIT_FSIZE, (2 * size + 10, 2 * size + 10))
        writing = Shard(Path({str(path)!r}))
        writing.append(frames[:1])
        try:
            writing.append(frames[1:3])
        except OSError:
            writing.append(frames[3:])
            print("refused")
    """
    assert len({len(one) for one in frames}) == 1
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], input=b"".join(frames), capture_output=True, check=True
    )
    assert done.stdout == b"refused\n", done.stderr
    assert [ended.begun.attempt for ended in read_shard(path, range(10))] == [0, 3]


def test_merging_that_is_killed_anywhere_ends_in_the_same_ledger(tmp_path: Path, workspace: Workspace):
    """Killed after some answers were merged and before the shard was removed; then merged to its end."""
    folder = tmp_path / "shards"
    folder.mkdir()
    with Ledger.open(workspace) as ledger:
        attempts = begin(ledger, 300)
        leave(folder, ledger, *(answered(a, key_of(n), f"answer {n}") for n, a in enumerate(attempts)))
    code = f"""
        import os, signal
        from pathlib import Path
        from stillhouse.ask import recover, settling
        from stillhouse.ledger import Ledger
        from stillhouse.workspace import Workspace
        real, count = settling.settle, 0
        def settle(ledger, ended):
            global count
            count += 1
            written = real(ledger, ended)
            if count == 100:
                written.result()
                os.kill(os.getpid(), signal.SIGKILL)
            return written
        settling.settle = settle
        with Ledger.open(Workspace(Path({str(workspace.root)!r}))) as ledger:
            recover(Path({str(folder)!r}), ledger, {RUN!r})
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=False)
    assert done.returncode == -signal.SIGKILL
    with Ledger.open(workspace) as ledger:
        assert 100 <= ledger.attempts(RUN).answered < 300
        recover(folder, ledger, RUN)
        assert ledger.attempts(RUN).answered == 300
        assert ledger.size() == 300
        texts = [stored.response for stored in ledger.exchanges(key_of(n) for n in range(300))]
        assert texts == [response(f"answer {n}") for n in range(300)]


def test_the_writer_holds_its_shard_locked(tmp_path: Path):
    writing = Shard(tmp_path / "a.shard")
    with (tmp_path / "a.shard").open("rb") as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    assert os.stat(tmp_path / "a.shard").st_mode & 0o077 == 0
    writing.close()
