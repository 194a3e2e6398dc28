"""The table of terms: every row that is known, and which of them speak about one use of one teacher.

The rows that come with the package lie in `rows/`, those of a workspace in its folder `terms/`: a row there
is added, or stands for the package's row of the same key.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from datetime import date
from fnmatch import fnmatchcase
from functools import cache
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import rfc8785

from stillhouse.errors import storage
from stillhouse.terms.facts import OPEN, Access, Asked, Row, host_of, offers_others
from stillhouse.terms.reading import check_together, read_rows
from stillhouse.text import host_name

Layer = Literal["router", "host", "vendor", "model", "upstream"]
LAYERS: tuple[Layer, ...] = ("router", "host", "vendor", "model", "upstream")


@dataclass(frozen=True, slots=True)
class Match:
    """A row that speaks about a teacher, and as what.

    router: the text of a router in front. host: that of the server asked, known by its address or, where it
    offers others' models, by a name's prefix. vendor: that under which the model's maker offers it, known by
    the name. model: the licence of the weights, known by the name. upstream: terms that reach through
    another row, which `through` names. `by` is the pattern that fitted.
    """

    layer: Layer
    row: Row
    by: str
    through: str = ""


@dataclass(frozen=True, slots=True)
class Registry:
    """`digest` is the SHA-256 (hex) of the whole table in RFC 8785 JSON; `own` are the keys of the rows that
    the workspace added or replaced; `as_of` is the day to which the package's facts were gathered."""

    table: tuple[Row, ...]
    as_of: date
    digest: str
    own: tuple[str, ...] = ()

    def rows(self) -> tuple[Row, ...]:
        return self.table

    def row(self, key: str) -> Row | None:
        return next((row for row in self.table if row.key == key), None)

    def matching(self, asked: Asked) -> tuple[Row, ...]:
        """Every row that holds, each once; none where nothing is known, which a gate refuses."""
        found: dict[str, Row] = {}
        for name in dict.fromkeys((asked.model, *asked.also)):
            for match in self.matches(name, asked.access, asked.endpoint):
                found.setdefault(match.row.key, match.row)
        evidence = [row for row in self.table if _is_evident(row, asked)]
        if asked.built_on:
            evidence += [row.row for row in self.matches(asked.built_on, asked.access, asked.endpoint)]
        for row in evidence:
            if row.verdict != "allow":
                found.setdefault(row.key, _reviewed(row))
        return tuple(found.values())

    def matches(self, model: str, access: Access, endpoint: str = "") -> tuple[Match, ...]:
        """The rows that hold, in the order of LAYERS, each once.

        A server speaks for itself whatever a model is called there. Of a layer's rows the one of the highest
        priority holds; among equals that of the most specific pattern, and all that are equal in that too.
        A name alone can forbid but never allow: at a server that is none of a row's `hosts` an API's terms
        hold only where they ask for review or refuse. So does what fits only a part of a name, and at an
        endpoint what an API's model is called, though weights are said to be there. A licence of weights
        holds wherever they are served, but says nothing of the server: for access by api or router some row
        of the layer router or host must hold as well, or the server's own terms are unknown.
        """
        host = host_of(endpoint)
        here = [
            Match("router" if row.access == "router" else "host", row, by)
            for row in self.table
            for by in _best(map(host_name, row.hosts), host)
        ]
        found = [*here, *self._named(model, access, endpoint)]
        for name in _behind(model, found):
            found += self._named(name, access, endpoint)
        if not any(match.layer in ("vendor", "model") for match in found):
            found += self._forbidding(model, access, endpoint)
        kept = [match for layer in LAYERS for match in _foremost([m for m in found if m.layer == layer])]
        return tuple(self._with_upstream(kept))

    def _named(self, model: str, access: Access, endpoint: str) -> Iterator[Match]:
        host = host_of(endpoint)
        for row in self.table:
            layer = _layer(row, access)
            if layer is None or any(_fits(model, pattern) for pattern in row.excluding):
                continue
            stranger = bool(endpoint and row.hosts and not _best(map(host_name, row.hosts), host))
            if stranger and row.verdict in ("allow", "allow_with_obligations"):
                continue
            for by in _best(row.models, model):
                yield Match(layer, row, by)

    def _forbidding(self, model: str, access: Access, endpoint: str) -> list[Match]:
        """What holds against a teacher by what is left of its name without those before a `/`, in any of its
        usual spellings: it may be another's model under that name, so nothing is allowed by it.

        A licence that only allows keeps an API's terms away, for the weights may be had, and says no more.
        """
        open_rows = [
            (_literal(bare), match.row.priority, match)
            for name in _spellings(model)
            for match, bare in self._by_last_part(model, name, access)
        ]
        if open_rows:
            top = max(rank[:2] for rank in open_rows)
            found = [match for *rank, match in open_rows if tuple(rank) == top]
            return [
                replace(match, row=_reviewed(match.row)) for match in found if match.row.verdict != "allow"
            ]
        way: Access = "api" if access == "weights" and endpoint else access
        if way not in ("api", "router", "import"):
            return []
        parts = model.split("/")
        for at in range(len(parts)):
            name = "/".join(parts[at:])
            found = [
                match
                for match in self._named(name, way, endpoint)
                if match.layer == "vendor"
                and match.row.verdict not in ("allow", "allow_with_obligations")
                and not _excluded(match.row, model, name)
            ]
            if found:
                return found
        return []

    def _by_last_part(self, model: str, name: str, access: Access) -> Iterator[tuple[Match, str]]:
        """The licences of weights of which the last part of a pattern fits a name, and that part."""
        owner = model.lower().rpartition("/")[0]
        for row in self.table:
            if row.access != "weights" or _layer(row, access) is None or _excluded(row, model, name):
                continue
            for pattern in row.models:
                whose, _, bare = pattern.rpartition("/")
                if owner != whose.lower() and _fits_bare(name, bare):
                    yield Match("model", row, pattern), bare

    def _with_upstream(self, found: Iterable[Match]) -> Iterator[Match]:
        """Each row once, then those that it leads to; a row that leads back to itself ends the way."""
        seen: set[str] = set()
        waiting = list(found)
        for match in waiting:
            if match.row.key in seen:
                continue
            seen.add(match.row.key)
            yield match
            for key in match.row.upstream:
                row = self.row(key)
                if row is not None:
                    waiting.append(Match("upstream", row, "", match.row.key))


def load(own_rows: Path | None = None) -> Registry:
    """The package's table, with the rows of the TOML files in the folder `own_rows`, where there are any.

    Raises UsageError for a file that cannot be read as rows, naming file and row.
    """
    theirs = shipped()
    paths = sorted(own_rows.glob("*.toml")) if own_rows is not None else []
    if not paths:
        return theirs
    placed: list[tuple[str, Row]] = []
    for path in paths:
        with storage("read", path):
            text = path.read_text(encoding="utf-8", errors="replace")
        placed += [(str(path), row) for row in read_rows(str(path), text)]
    check_together(placed, (row.key for row in theirs.table))
    own = {row.key: row for _, row in placed}
    rows = [own.pop(row.key, row) for row in theirs.table] + list(own.values())
    return _registry(rows, theirs.as_of, tuple(sorted(row.key for _, row in placed)))


@cache
def shipped() -> Registry:
    """The table of the package, read once."""
    import tomllib

    here = files("stillhouse.terms")
    placed: list[tuple[str, Row]] = []
    for file in sorted(here.joinpath("rows").iterdir(), key=lambda file: file.name):
        if file.name.endswith(".toml"):
            placed += [(file.name, row) for row in read_rows(file.name, file.read_text(encoding="utf-8"))]
    check_together(placed)
    as_of = tomllib.loads(here.joinpath("version.toml").read_text(encoding="utf-8"))["as_of"]
    return _registry([row for _, row in placed], as_of, ())


def record(row: Row) -> dict[str, Any]:
    """A row as JSON, each condition under the name that its file gives it."""
    found = asdict(row)
    found["conditions"] = [
        {"kind": type(condition).__name__.lower(), **asdict(condition)} for condition in row.conditions
    ]
    found["read_on"] = None if row.read_on is None else row.read_on.isoformat()
    return found


def _registry(rows: Iterable[Row], as_of: date, own: tuple[str, ...]) -> Registry:
    table = tuple(sorted(rows, key=lambda row: row.key))
    whole: Any = {"as_of": as_of.isoformat(), "rows": [record(row) for row in table]}
    return Registry(table, as_of, sha256(rfc8785.dumps(whole)).hexdigest(), own)


def _is_evident(row: Row, asked: Asked) -> bool:
    """Whether what lies in a model's folder shows that a licence of weights is its own, however it is called:
    the kind of model, or that licence's very text."""
    if row.access != "weights":
        return False
    known = any(_best(row.architectures, kind) for kind in asked.architectures)
    return known or (bool(asked.licence_sha256) and asked.licence_sha256 in row.licence.sha256)


def _layer(row: Row, access: Access) -> Layer | None:
    """As what a row that fits by name speaks about a teacher reached by `access`; None where it does not."""
    if row.access == "any":
        return "model"
    if row.access in OPEN:
        theirs = row.access == access or (row.access == "weights" and access in ("api", "router", "import"))
        return "model" if theirs else None
    if access == "import":  # nobody can tell how such answers were got
        return "router" if row.access == "router" else "vendor"
    if row.access == "router":
        return "router" if access in ("api", "router") else None
    if row.access == "api":
        named: Layer = "host" if offers_others(row) else "vendor"
        return named if access in ("api", "router") else None
    return "vendor" if access == "consumer_app" else None


def _behind(model: str, found: Iterable[Match]) -> set[str]:
    """What the model is called without the prefix of a service that offers others' models."""
    names = set()
    for match in found:
        prefix, star = match.by[:-1].lower(), match.by[-1:]
        if offers_others(match.row) and prefix.endswith("/") and star == "*":
            names |= {model[len(prefix) :]} if model.lower().startswith(prefix) else set()
    return names


def _foremost(found: list[Match]) -> list[Match]:
    ranked = [((match.row.priority, _literal(match.by)), match) for match in found]
    top = max((rank for rank, _ in ranked), default=None)
    return [match for rank, match in ranked if rank == top]


def _best(patterns: Iterable[str], name: str) -> list[str]:
    """The most specific of the patterns that fit, or nothing."""
    fitting = [pattern for pattern in patterns if name and _fits(name, pattern)]
    return [max(fitting, key=_literal)] if fitting else []


def _fits(name: str, pattern: str) -> bool:
    return fnmatchcase(name.strip().lower(), pattern.lower())


def _spellings(model: str) -> list[str]:
    """The last part of a name as it stands, with a server's `:` and `_` as hyphens and its `v3p1` as `3.1`,
    and with a hyphen before the first number or without: `llama3.1:8b` is `llama-3.1-8b`."""
    name = model.rstrip("/").rpartition("/")[2].lower()
    plain = re.sub(r"v?(\d+)p(\d+)", r"\1.\2", re.sub("[:_]", "-", name))
    with_hyphen = re.sub(r"(?<=[a-z]{3})(?=\d)", "-", plain, count=1)
    without = re.sub(r"(?<=[a-z]{3})-(?=\d)", "", plain, count=1)
    return list(dict.fromkeys((name, plain, with_hyphen, without)))


def _fits_bare(name: str, bare: str) -> bool:
    """Whether a pattern's last part fits; one that leaves next to nothing to fit tells nothing."""
    return _literal(bare) > 2 and (_fits(name, bare) or _fits(f"{name}-", bare))


def _excluded(row: Row, model: str, name: str) -> bool:
    return any(
        _fits(model, pattern) or _fits_bare(name, pattern.rpartition("/")[2]) for pattern in row.excluding
    )


def _reviewed(row: Row) -> Row:
    return replace(row, verdict="review") if row.verdict == "allow_with_obligations" else row


def _literal(pattern: str) -> int:
    return sum(character not in "*?[]" for character in pattern)
