"""What a release holds: the SHA-256 of every file, as a C2SP signed-note. Only `model.sig` comes after.

stillhouse/1f2e3d4c5b6a7988
release desk-small
4bf5...  README.md
...

— stillhouse/1f2e3d4c5b6a7988 KEY-ID-AND-SIGNATURE-IN-BASE64
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from stillhouse.errors import LedgerError, storage
from stillhouse.ledger import oms
from stillhouse.ledger.checkpoint import note_text, sign_note
from stillhouse.workspace import write_atomic

NAME = "MANIFEST"
BROUGHT = (".gitattributes", ".cache/huggingface/")  # what a download from a hub lays beside a release
_LINE = re.compile(r"([0-9a-f]{64})  (\S.*)")


@dataclass(frozen=True, slots=True)
class Manifest:
    """`files` are SHA-256 (hex) by path; `note` is the whole file, signature and all."""

    origin: str
    release: str
    files: dict[str, str]
    note: bytes


def seal(folder: Path, origin: str, release: str, key: Ed25519PrivateKey) -> Manifest:
    """Write the manifest of all that lies in the folder but `model.sig`, which covers the manifest.

    Raises LedgerError for a name with a line break.
    """
    files = {name: digest for name, digest in digests(folder).items() if name not in (NAME, oms.NAME)}
    for name in (release, *files):
        if name != name.strip() or "\n" in name or "\r" in name or not name:
            raise LedgerError(
                f"{name!r} cannot stand in a manifest",
                "it has blanks at its ends or a line break",
                "rename it",
            )
    lines = [f"{digest}  {name}" for name, digest in files.items()]
    text = "\n".join([origin, f"release {release}", *lines]) + "\n"
    note = sign_note(origin, text, key)
    write_atomic(folder / NAME, note)
    return Manifest(origin, release, files, note)


def read_manifest(note: bytes) -> Manifest:
    """Parse a manifest without looking at its signature. Raises LedgerError when it is none."""
    lines = note_text(note)[:-1].split("\n")
    found = [_LINE.fullmatch(line) for line in lines[2:]]
    matches = [match for match in found if match]
    files = {match[2]: match[1] for match in matches}
    if len(lines) < 2 or not lines[1].startswith("release ") or not len(found) == len(matches) == len(files):
        raise LedgerError(
            "this is no manifest of a release",
            "a line is not a SHA-256, two blanks and a path, or a path stands there twice",
            "give the folder that `stillhouse release` wrote, unchanged",
        )
    return Manifest(lines[0], lines[1].removeprefix("release "), files, note)


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 (hex) of every file below the folder, by path in order.

    Raises LedgerError for a link: what it holds is not the folder's.
    """
    return {name: sha256_of(folder / name) for name in names(folder)}


def brought(name: str) -> str:
    """Which of BROUGHT a file is, or lies in; empty for any other."""
    file, folder = BROUGHT
    return file if name == file else folder if name.startswith(folder) else ""


def sha256_of(path: Path) -> str:
    with storage("read", path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def names(folder: Path) -> list[str]:
    """The path of every file below the folder, in order. Raises LedgerError for a link."""
    found = []
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            raise LedgerError(
                f"{path} is a link", "a release holds its files itself", "put the file there in its place"
            )
        if not path.is_dir():
            found.append(path.relative_to(folder).as_posix())
    return found
