"""Where things lie: the only module that knows the names of files in `.stillhouse/` and in a run folder."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from stillhouse.errors import StorageError, UsageError, storage

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

FOLDER = ".stillhouse"


@dataclass(frozen=True, slots=True)
class Workspace:
    """A `.stillhouse` folder: one ledger and its keys, shared by every run in it."""

    root: Path

    @property
    def ledger(self) -> Path:
        return self.root / "ledger.sqlite"

    @property
    def ledger_url(self) -> Path:
        """Names the PostgreSQL database that holds the ledger in place of the file; without a password."""
        return self.root / "ledger.url"

    @property
    def targets(self) -> Path:
        """Sealed shards of teacher probabilities, each named by its SHA-256; shared by all runs."""
        return self.root / "targets"

    @property
    def terms(self) -> Path:
        """TOML files with rows of terms that are added to the package's, or stand for some of them."""
        return self.root / "terms"

    @property
    def workspace_key(self) -> Path:
        """32 random bytes (hex) for exchange keys; whoever holds it can test guesses of a prompt."""
        return self.root / "keys" / "workspace.key"

    @property
    def signing_key(self) -> Path:
        """Ed25519 private key (PEM) that signs checkpoints and releases."""
        return self.root / "keys" / "signing.pem"

    @property
    def verifying_key(self) -> Path:
        return self.root / "keys" / "signing.pub"

    def earlier_verifying_key(self, public: bytes) -> Path:
        """Where a public key (32 bytes) is kept after it was replaced."""
        return self.root / "keys" / f"signing-{public.hex()[:8]}.pub"

    @property
    def model_signing_key(self) -> Path:
        """P-256 private key (PEM) that signs a release's `model.sig`, for those who check models with OMS."""
        return self.root / "keys" / "model-signing.pem"

    @property
    def model_verifying_key(self) -> Path:
        return self.root / "keys" / "model-signing.pub"

    def watermark_key(self, key_id: str) -> Path:
        """A secret (JSON) that marks answers: whoever holds it can find the marks, and forge them."""
        return self.root / "keys" / f"watermark-{key_id}.json"

    def watermark_keys(self) -> list[Path]:
        return sorted(self.root.glob("keys/watermark-*.json"))

    @property
    def erasing(self) -> Path:
        """What an erasure is about to remove: there only while one is under way, or was killed."""
        return self.root / "erasing.json"

    @property
    def anchors(self) -> Path:
        """What others said of this log's checkpoints, and the newest checkpoint itself."""
        return self.root / "anchors"

    @property
    def newest_checkpoint(self) -> Path:
        """Written at every checkpoint, outside the database: one put back to an older state lacks it."""
        return self.anchors / "newest-checkpoint"

    @property
    def operator(self) -> Path:
        """What the operator says of itself: facts on which teachers' terms depend."""
        return self.root / "operator.toml"

    @property
    def signals(self) -> Path:
        """Signals of distillation: the house's own, what it sent to whom, and what others sent."""
        return self.root / "signals"

    def cascade(self, name: str) -> Path:
        """A link to the run whose student is at work: its `student` is served, its calibration decides."""
        return self.root / "cascades" / name / "current"

    @property
    def runs(self) -> Path:
        return self.root / "runs"

    def run(self, name: str, digest: str) -> RunFolder:
        return RunFolder(self.runs / f"{name}-{digest[:8]}")

    def find_run(self, name: str) -> RunFolder:
        """The run called `name`, which may be a path, or leave out the digest, or be only the beginning.

        The exact name goes before a name without its digest, and that before a mere beginning; among
        equals the newest wins. Raises UsageError when there is none.
        """
        direct = Path(name)
        if _holds_a_run(direct):
            return RunFolder(direct.resolve())
        folders = sorted(self.runs.iterdir()) if self.runs.is_dir() else []
        found = [p for p in folders if p.name.startswith(name) and _holds_a_run(p)]
        if not found:
            known = ", ".join(p.name for p in folders[:8]) or "none yet"
            raise UsageError(
                f"no run named {name!r}", f"runs in {self.runs}: {known}", "see `stillhouse run RECIPE`"
            )
        whole = re.compile(re.escape(name) + "-[0-9a-f]{8}")

        def rank(folder: Path) -> tuple[bool, bool, int]:
            changed = (folder / "recipe.json").stat().st_mtime_ns
            return folder.name == name, whole.fullmatch(folder.name) is not None, changed

        return RunFolder(max(found, key=rank))


@dataclass(frozen=True, slots=True)
class RunFolder:
    """One run's files. Stages write them, the report only reads them."""

    root: Path

    @property
    def recipe(self) -> Path:
        return self.root / "recipe.json"

    @property
    def prompts(self) -> Path:
        return self.root / "prompts.parquet"

    @property
    def grown(self) -> Path:
        return self.root / "grown.parquet"

    @property
    def exchanges(self) -> Path:
        return self.root / "exchanges.parquet"

    @property
    def targets(self) -> Path:
        """Which of the workspace's shards of targets are the run's, and what they hold."""
        return self.root / "targets.json"

    @property
    def captured(self) -> Path:
        """Which of the workspace's shards hold what the teacher said when it read the training rows."""
        return self.root / "captured.json"

    @property
    def readings(self) -> Path:
        """Which leaf holds what a teacher at an endpoint said when it read a training row."""
        return self.root / "readings.parquet"

    @property
    def batches(self) -> Path:
        """Files of batches that are under way; each goes when its answers are in the ledger."""
        return self.root / "batches"

    @property
    def shards(self) -> Path:
        """Where workers write what they were answered, until it is in the ledger."""
        return self.root / "shards"

    @property
    def samples(self) -> Path:
        return self.root / "samples.parquet"

    @property
    def dropped(self) -> Path:
        return self.root / "dropped.parquet"

    @property
    def unmixed(self) -> Path:
        """Where rows lie between the two passes of a mix; a killed run leaves it behind."""
        return self.root / ".unmixed.parquet"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def losses(self) -> Path:
        return self.root / "losses.jsonl"

    @property
    def student(self) -> Path:
        return self.root / "student"

    @property
    def student_before(self) -> Path:
        return self.root / "student-before"

    @property
    def predictions(self) -> Path:
        return self.root / "predictions.parquet"

    def further(self, name: str) -> RunFolder:
        """Where a student that is trained for comparison lies, in the form of a run."""
        return RunFolder(self.root / "further" / name)

    def all_further(self) -> list[RunFolder]:
        return [RunFolder(path) for path in sorted(self.root.glob("further/*")) if path.is_dir()]

    @property
    def judgements(self) -> Path:
        return self.root / "judgements.parquet"

    @property
    def battery(self) -> Path:
        """Answers to the fixed battery, as `predictions` holds those to the test prompts."""
        return self.root / "battery.parquet"

    @property
    def evaluation(self) -> Path:
        return self.root / "evaluation.json"

    @property
    def cascade(self) -> Path:
        """Which of the student's answers a gateway may keep: `stillhouse cascade calibrate`."""
        return self.root / "cascade.json"

    @property
    def cascade_curve(self) -> Path:
        """What a cascade would score, by the share that it defers."""
        return self.root / "cascade-curve.json"

    @property
    def release(self) -> Path:
        return self.root / "release"

    @property
    def report(self) -> Path:
        return self.root / "report.html"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def lock(self) -> Path:
        return self.root / "lock"

    @property
    def progress(self) -> Path:
        """How far the process that works on the run is, written anew every second."""
        return self.root / "progress.json"

    def marker(self, stage: str) -> Path:
        """A stage's done marker: written last, holds the digest of the stage's inputs and its counts."""
        return self.root / f"{stage}.done.json"


def find_workspace(start: Path) -> Workspace | None:
    """The nearest `.stillhouse` at or above `start`, as git finds `.git`."""
    for folder in (start.resolve(), *start.resolve().parents):
        if (folder / FOLDER / "keys").is_dir():
            return Workspace(folder / FOLDER)
    return None


def open_workspace(start: Path) -> Workspace:
    found = find_workspace(start)
    if found is None:
        raise UsageError(
            "no workspace here",
            f"no {FOLDER} folder in {start.resolve()} or above it",
            "make one with `stillhouse init`",
        )
    for key in (found.workspace_key, found.signing_key):
        if not key.is_file():
            raise UsageError(
                f"the workspace has lost {key.name}",
                f"{key} is missing; answers recorded under it cannot be recognised or signed without it",
                "restore it from a backup; see docs/keys.md for what can be done without one",
            )
    return found


def init_workspace(folder: Path, ledger_url: str | None = None) -> Workspace:
    """Make `.stillhouse` with its three keys (mode 0600) in `folder`. Leaves an existing workspace as it is.

    With `ledger_url` its ledger lies in that database. Raises UsageError when the workspace has another one.
    """
    workspace = Workspace(folder.resolve() / FOLDER)
    if ledger_url is not None:
        _refuse_another_ledger(workspace, ledger_url)
    with storage("make the workspace", workspace.root):
        keys = workspace.workspace_key.parent
        workspace.root.mkdir(parents=True, exist_ok=True)
        workspace.root.chmod(0o700)  # runs hold prompts and answers
        workspace.runs.mkdir(exist_ok=True)
        if not keys.is_dir():  # moved there whole, as another process may make them, or this one may die
            fresh = Workspace(workspace.root / f".making.{secrets.token_hex(4)}")
            try:
                _make_keys(fresh)
                fresh.workspace_key.parent.rename(keys)
                sync_folder(workspace.root)
            except OSError:
                if not keys.is_dir():
                    raise
            finally:
                shutil.rmtree(fresh.root, ignore_errors=True)
        _make_keys(workspace)
        if ledger_url is not None:
            write_atomic(workspace.ledger_url, (ledger_url + "\n").encode())
        ignore = workspace.root / ".gitignore"
        if not ignore.exists():
            ignore.write_text("*\n")
    return workspace


def _make_keys(workspace: Workspace) -> None:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    keys = workspace.workspace_key.parent
    keys.mkdir(parents=True, exist_ok=True)
    keys.chmod(0o700)
    if not workspace.workspace_key.exists():
        _write_new(workspace.workspace_key, (secrets.token_hex(32) + "\n").encode(), 0o600)
    if not workspace.signing_key.exists():
        pem, public = pems(Ed25519PrivateKey.generate())
        _write_new(workspace.signing_key, pem, 0o600)
        write_atomic(workspace.verifying_key, public)
    make_model_signing_key(workspace)


def make_model_signing_key(workspace: Workspace) -> None:
    """Make the key that signs `model.sig` where there is none, as in workspaces of before there was one."""
    from cryptography.hazmat.primitives.asymmetric import ec

    if not workspace.model_signing_key.exists():
        pem, public = pems(ec.generate_private_key(ec.SECP256R1()))
        with storage("write", workspace.model_signing_key):
            _write_new(workspace.model_signing_key, pem, 0o600)
        write_atomic(workspace.model_verifying_key, public)


def pems(key: Ed25519PrivateKey | EllipticCurvePrivateKey) -> tuple[bytes, bytes]:
    """The private and the public half of a key, each as PEM and without a password."""
    from cryptography.hazmat.primitives import serialization

    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return private, public


def write_atomic(path: Path, data: bytes, durable: bool = True) -> None:
    """Write a file so that a reader sees the old or the new content, never a part; on disk on return, unless
    it need not be `durable`.

    Who may read it is for the umask to say, as for any new file.
    """
    with storage("write", path):
        fresh = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        try:
            _write_new(fresh, data, 0o666, durable)
            os.replace(fresh, path)
        except BaseException:
            fresh.unlink(missing_ok=True)
            raise
        if durable:
            sync_folder(path.parent)


def write_private(path: Path, data: bytes) -> None:
    """Write a new file that nobody but its owner can read, never even for a moment; on disk on return."""
    _write_new(path, data, 0o600)
    sync_folder(path.parent)


def write_once(path: Path, data: bytes) -> None:
    """Write a private file whole, unless it is there: of several processes that make it at once one does."""
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        _write_new(fresh, data, 0o600)
        with suppress(FileExistsError):
            os.link(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)
    sync_folder(path.parent)


def write_json(path: Path, value: Any) -> None:
    write_atomic(path, (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode())


def read_marker(run: RunFolder, stage: str) -> dict[str, Any] | None:
    """The stage's marker, or None if the stage never finished (a torn file counts as never)."""
    try:
        marker = json.loads(run.marker(stage).read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return marker if isinstance(marker, dict) else None


@contextmanager
def locked(run: RunFolder) -> Iterator[None]:
    """Hold the run for this process; a second process gets an error instead of a mixed run."""
    import fcntl

    with storage("open the run folder", run.root):
        run.root.mkdir(parents=True, exist_ok=True)
        file = run.lock.open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise StorageError(
            f"the run {run.root.name} is in use",
            "another stillhouse process works on it",
            "wait for it, or stop it",
        ) from None
    try:
        yield
    finally:
        file.close()


def locked_within(seconds: float, file: int | BinaryIO, kind: int) -> bool:
    """Whether the lock of that `kind` (of fcntl's `LOCK_`) on an open file was had within so many seconds."""
    import fcntl

    until = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > until:
                return False
        time.sleep(0.01)


def _holds_a_run(folder: Path) -> bool:
    try:
        return (folder / "recipe.json").is_file()
    except OSError:  # a name too long for the file system, or a folder of somebody else
        return False


def _refuse_another_ledger(workspace: Workspace, url: str) -> None:
    known = workspace.ledger_url.read_text().strip() if workspace.ledger_url.exists() else None
    if known == url or (known is None and not workspace.ledger.exists()):
        return
    raise UsageError(
        f"the workspace {workspace.root} has a ledger already",
        f"it is {known or workspace.ledger}",
        "leave the URL out, or make a workspace in another folder",
    )


def _write_new(path: Path, data: bytes, mode: int, durable: bool = True) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(handle, "wb") as file:
        file.write(data)
        if durable:
            file.flush()
            os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
