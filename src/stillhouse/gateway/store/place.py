"""Where the gateway's tables lie, and the pepper under which keys are hashed."""

from __future__ import annotations

import hmac
import secrets
import socket
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

from stillhouse.errors import UsageError, storage
from stillhouse.guard import config
from stillhouse.ledger.database import Database, SQLite
from stillhouse.workspace import write_once

SCHEMA = "stillhouse_guard"
PEPPER_BYTES = 32
CACHE_KB = 1000  # of a SQLite file in memory, for each connection


def place_of(store: config.Store, file: str) -> Database:
    """PostgreSQL in a schema of its own, unless the URL names one; else `file` in the folder, which is made.
    Raises StorageError, and UsageError for a URL with a password in it."""
    if store.database is None:
        return SQLite(folder_of(store) / file)
    from stillhouse.ledger.postgres import PostgreSQL, checked_url

    url = checked_url(store.database)
    if "search_path" not in url:
        url += f"{'&' if '?' in url else '?'}options=-csearch_path%3D{SCHEMA}"
    return PostgreSQL(url)


def folder_of(store: config.Store) -> Path:
    """The store's folder, made where it is not there; only its owner may look into it."""
    folder = Path(store.folder)
    with storage("make", folder):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def replica_of(store: config.Store) -> str:
    """The machine and the folder: replicas beside one another have a ledger each."""
    folder = sha256(str(Path(store.folder).resolve()).encode()).hexdigest()
    return f"{socket.gethostname()}-{folder[:8]}"


def sealing_key(pepper: bytes) -> bytes:
    """The secret under which texts are sealed."""
    return hmac.digest(pepper, b"stillhouse guard: kept texts", "sha256")


def evidence_key(pepper: bytes) -> bytes:
    """The key of the marks that are kept of requests in place of their words."""
    return hmac.digest(pepper, b"stillhouse guard: evidence", "sha256")


def pepper_of(store: config.Store, environ: Mapping[str, str]) -> bytes:
    """The secret under which keys are hashed: of the variable, else of `pepper.key` in the folder, which is
    made once. Whoever copies the accounts cannot test guesses of keys without it.

    Raises UsageError when the variable is not set or the file is damaged, and StorageError.
    """
    if store.pepper_env is not None:
        if not environ.get(store.pepper_env):
            raise UsageError(
                f"the variable {store.pepper_env} is not set",
                "it holds the pepper under which keys are hashed (store.pepper_env)",
                "set it to the output of: openssl rand -base64 32",
            )
        return environ[store.pepper_env].encode()
    path = folder_of(store) / "pepper.key"
    with storage("read", path):
        if not path.exists():
            write_once(path, secrets.token_hex(PEPPER_BYTES).encode())
        pepper = bytes.fromhex(path.read_text()) if path.stat().st_size == 2 * PEPPER_BYTES else b""
    if len(pepper) != PEPPER_BYTES:
        raise UsageError(
            f"{path} is damaged",
            f"it must hold {2 * PEPPER_BYTES} hexadecimal digits, by which all keys are found",
            "put it back from a backup",
        )
    return pepper
