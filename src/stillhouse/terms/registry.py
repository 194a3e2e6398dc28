"""What is known about teachers, as data: only the shipped ones; all others need a declaration."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from hashlib import sha256
from typing import Literal
from urllib.parse import urlsplit

import rfc8785

Use = Literal["train_target", "evaluation"]
Access = Literal["shipped", "folder", "endpoint", "import"]


@dataclass(frozen=True, slots=True)
class TeacherFacts:
    """One teacher by one way of access. `terms` is empty when none are known, and `uses` are those that
    they allow; `endpoint` is the server without user, password or query."""

    model: str
    access: Access
    endpoint: str = ""
    revision: str = ""
    terms: str = ""
    uses: tuple[Use, ...] = ()


REGISTRY: tuple[TeacherFacts, ...] = (
    TeacherFacts(
        model="embedded:desk",
        access="shipped",
        terms="Apache-2.0; weights made by the stillhouse project and shipped with this package",
        uses=("train_target", "evaluation"),
    ),
)


def teacher_facts(model: str, endpoint: str | None = None, revision: str = "") -> TeacherFacts:
    """What is known about a teacher of a recipe.

    A shipped model is known only when it runs from the package: a server that answers to its name may hold
    anything. A model in a local folder is as unknown as any other.
    """
    if endpoint is None:
        for facts in REGISTRY:
            if facts.model == model:
                return facts
        return TeacherFacts(model, "folder", revision=revision)
    return TeacherFacts(model, "endpoint", _without_secrets(endpoint), revision)


def registry_digest() -> str:
    """SHA-256 (hex) of the table by which a decision was made."""
    rows = [{**asdict(facts), "uses": list(facts.uses)} for facts in REGISTRY]
    return sha256(rfc8785.dumps(rows)).hexdigest()


def _without_secrets(url: str) -> str:
    parts = urlsplit(url)
    host = parts.hostname or ""
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{f'[{host}]' if ':' in host else host}{port}{parts.path}"
