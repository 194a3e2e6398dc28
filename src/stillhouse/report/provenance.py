"""Where the run came from, how far that is proven, and how to make it again."""

from __future__ import annotations

import json
from importlib import metadata
from typing import Any

from stillhouse.recipe import Recipe
from stillhouse.report.cost import imported
from stillhouse.report.figures import (
    UNKNOWN,
    at,
    count,
    moment,
    number,
    plural,
)
from stillhouse.report.layout import IMPORTED, UNANCHORED, absent, pairs, section, table
from stillhouse.report.markup import Html, join, short, tag
from stillhouse.report.read import STAGES, Facts, named_by

_FILES = 200  # released files listed


def provenance(facts: Facts) -> Html:
    decision = number(facts.result("collect", "decision"))
    teacher, endpoint = at(facts.recipe, "teacher", "model"), at(facts.recipe, "teacher", "endpoint")
    where = _code(endpoint) if endpoint else "served by the run itself" if facts.recipe else UNKNOWN
    where = IMPORTED if imported(facts) else where
    revision = facts.result("collect", "revision") or at(facts.recipe, "teacher", "revision")
    entries: list[tuple[str, object]] = [
        ("run", tag("code", facts.name)),
        ("recipe digest", _digest(facts)),
        ("teacher", _code(facts.result("collect", "teacher") or teacher)),
        ("endpoint", where),
        ("revision", _code(revision) if revision else "none declared" if facts.recipe else UNKNOWN),
        ("answered by", _answered_by(facts)),
        ("teacher watched", _watched(facts)),
        ("its probabilities", _targets(facts)),
        ("terms", _terms(facts)),
        ("decision", f"leaf {count(decision)} of the ledger" if decision is not None else UNKNOWN),
        ("prompts", _code(at(facts.recipe, "prompts", "source"))),
        ("student from", _code(at(facts.recipe, "student", "init"))),
        ("seeds", _seeds(facts)),
        ("ledger checkpoint", _checkpoint(facts)),
        ("standing", _standing(facts)),
        ("versions", _versions(facts)),
    ]
    finished = [(stage, facts.markers[stage]) for stage in STAGES if facts.markers[stage]]
    inputs = [(stage, moment(at(m, "finished")), _code(at(m, "inputs"))) for stage, m in finished]
    return section(
        "provenance",
        "Provenance",
        "Where every figure comes from, and how to make it again.",
        pairs(entries),
        _reproduce(facts),
        _folded("Stages and the digests of their inputs", ("stage", "finished", "inputs"), inputs),
        _folded("SHA-256 of every released file", ("file", "SHA-256"), _files(facts)[:_FILES]),
    )


def _answers(facts: Facts) -> list[Any]:
    """What collect recorded of who answered, an entry for each teacher."""
    found = facts.result("collect", "answered_by")
    return found if isinstance(found, list) else []


def _answered_by(facts: Facts) -> str:
    """The model ids that the servers returned, with the number of rows of each."""
    ids = [at(who, "models") for who in _answers(facts)]
    named = [
        f"{name or 'a server that names none'} ({count(number(models, name))})"
        for models in ids
        if isinstance(models, dict)
        for name in models
    ]
    return short(", ".join(named), 300) if named else UNKNOWN


def _watched(facts: Facts) -> object:
    """What the canaries of each teacher say."""
    answers = _answers(facts)
    said = [_said(at(who, "teacher"), at(who, "canary"), len(answers) > 1) for who in answers]
    return join(*(tag("div", line) for line in said)) if said else UNKNOWN


def _said(teacher: Any, canary: Any, named: bool) -> object:
    who = f"{short(str(teacher), 60)}: " if named else ""
    rounds, older = number(canary, "rounds"), number(canary, "older")
    if not isinstance(canary, dict) or not rounds:
        return f"{who}no"
    asked = f"{plural(rounds, 'round')} of {plural(number(canary, 'questions'), 'canary question')}"
    before = f"; {plural(older, 'row')} were there before" if older else ""
    change = at(canary, "change")
    if isinstance(change, dict):
        words, since = short(str(change.get("words")), 300), number(change, "since")
        place = f", from round {count(None if since is None else since + 1)} of {count(rounds)} on"
        return tag("strong", f"▲ {who}teacher changed during the run: {words}{place}{before}")
    if rounds < 3:
        return f"{who}{asked}, too few to compare{before}"
    return f"{who}no change seen in {asked}{before}"


def _targets(facts: Facts) -> object:
    """What the teachers said of their probabilities, and what could not be had of it."""
    if not facts.recipe:
        return UNKNOWN
    if at(facts.recipe, "collect", "top_logprobs") is None:
        return "not asked for"
    found = facts.result("collect", "targets")
    return join(*(tag("div", _target(one)) for one in found)) if isinstance(found, list) else UNKNOWN


def _target(one: Any) -> str:
    known, positions, each = (number(one, key) for key in ("known", "positions", "bytes_per_token"))
    weight = UNKNOWN if each is None else f"{each:.1f}"
    who = short(str(at(one, "teacher")), 60)
    said = f"{who}: {count(known)} of {count(positions)} tokens, {weight} bytes each"
    for name, of in (("answers without any", at(one, "reasons")), ("by rule", at(one, "counts"))):
        if isinstance(of, dict) and of:
            counts = ", ".join(f"{short(why, 60)} ({count(number(of, why))})" for why in sorted(of))
            said += f"; {name}: {counts}"
    return said


def _terms(facts: Facts) -> str:
    given = at(facts.recipe, "teacher", "terms")
    several = [each for each in (given if isinstance(given, list) else [given]) if isinstance(each, dict)]
    if not several:
        if str(at(facts.recipe, "teacher", "model") or "").startswith("embedded:"):
            return "allowed as a model that stillhouse ships"
        return "no declaration in the recipe" if facts.recipe else UNKNOWN
    return "; ".join(map(_declared, several))


def _declared(terms: dict[str, Any]) -> str:
    scope, document = at(terms, "scope"), at(terms, "document")
    uses = ", ".join(map(str, scope)) if isinstance(scope, list) else UNKNOWN
    said = f"declared by {terms.get('declared_by') or UNKNOWN}, read on {terms.get('read_on') or UNKNOWN}"
    about = ", ".join(map(str, at(terms, "about") or ()))
    of = f", about {about}" if about else ""
    return short(f"{said}, for {uses}{of}; {document or 'no document named'}", 300)


def _checkpoint(facts: Facts) -> object:
    size, root = (facts.result("release", "checkpoint", key) for key in ("size", "root"))
    size = number(size)
    if size is None and not root:
        return UNKNOWN
    return join(f"{count(size)} leaves, root ", _code(root))


def _standing(facts: Facts) -> object:
    state = tag("strong", f"▲ {UNANCHORED}", class_="unanchored")
    return state if facts.markers["release"] else join(state, " (nothing is released)")


def _code(value: Any) -> object:
    return UNKNOWN if value is None or value == "" else tag("code", short(str(value), 200))


def _digest(facts: Facts) -> object:
    if facts.digest is None:
        return UNKNOWN
    named = facts.name.rpartition("-")[2]
    same = bool(named) and (named_by(facts.recipe) or "").startswith(named)
    said = " ✓ computed anew, agrees with the run’s name" if same else " ▲ does not agree with the run’s name"
    return join(tag("code", facts.digest), tag("small", said))


def _seeds(facts: Facts) -> str:
    if not facts.recipe:
        return UNKNOWN
    named = (("training", "run"), ("prompts", "prompts"), ("evaluation", "evaluate"))
    seeds = [(name, number(facts.recipe, table, "seed")) for name, table in named]
    return ", ".join(f"{name} {UNKNOWN if seed is None else f'{seed:.0f}'}" for name, seed in seeds)


def _versions(facts: Facts) -> str:
    found = facts.evaluation.get("versions")
    try:
        ours = f"this page by stillhouse {metadata.version('stillhouse')}"
    except metadata.PackageNotFoundError:
        ours = "this page by an uninstalled stillhouse"
    if not isinstance(found, dict):
        return f"{ours}; those of the run are not recorded"
    return "; ".join([*(f"{name} {version}" for name, version in sorted(found.items())), ours])


def _files(facts: Facts) -> list[tuple[object, object]]:
    files = facts.result("release", "files")
    return (
        [(short(str(k), 120), _code(v)) for k, v in sorted(files.items())] if isinstance(files, dict) else []
    )


def _folded(name: str, head: tuple[str, ...], rows: list[Any]) -> Html | None:
    if not rows:
        return None
    return tag(
        "details",
        tag("summary", f"{name} ({len(rows)})"),
        table(name, head, rows, words=range(9)),
        class_="numbers",
    )


def _reproduce(facts: Facts) -> Html:
    if not facts.recipe:
        return absent("No command to reproduce.", "The recipe could not be read.")
    ordered = {name: facts.recipe[name] for name in Recipe.model_fields if facts.recipe.get(name)}
    how = join(
        "To make it again: save the recipe below as ",
        tag("code", "recipe.toml"),
        ", then ",
        tag("code", "stillhouse run recipe.toml"),
    )
    note = "The recipe with every default filled in; the same digest gives the run the same name."
    return tag(
        "details",
        tag("summary", how),
        tag("div", toml(ordered)[:20_000], class_="text", tabindex=0),
        tag("p", note, class_="method"),
        class_="numbers recipe",
    )


def toml(tree: dict[str, Any], *place: str, item: bool = False) -> str:
    """The resolved recipe as TOML that reads back to the same tree, keys that are null left out. `item`
    says that the tree stands in a list of tables."""
    name = ".".join(_key(part) for part in place)
    lines = [f"[[{name}]]" if item else f"[{name}]"] if place else []
    tables = [key for key, value in tree.items() if isinstance(value, dict) or _is_tables(value)]
    lines += [f"{_key(k)} = {_value(v)}" for k, v in tree.items() if k not in tables and v is not None]
    blocks = ["\n".join(lines)] if len(lines) > bool(place) or not tables or item else []
    for key in tables:
        listed = isinstance(tree[key], list)
        parts = tree[key] if listed else [tree[key]]
        blocks += [toml(part, *place, key, item=listed) for part in parts]
    return "\n\n".join(blocks) + ("" if place else "\n")


def _is_tables(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(part, dict) for part in value)


def _key(name: str) -> str:
    return name if name.replace("_", "").replace("-", "").isalnum() and name.isascii() else _value(name)


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_key(k)} = {_value(v)}" for k, v in value.items() if v is not None) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_value(item) for item in value if item is not None) + "]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
