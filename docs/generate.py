"""Writes docs/commands.md, docs/recipe.md, docs/guard-settings.md and the table of docs/terms.md from the
program itself; `--check` only compares."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from typer.main import get_command

from stillhouse.cli.commands import app
from stillhouse.guard.config import Guard
from stillhouse.recipe import Recipe, recipe_schema
from stillhouse.terms.registry import shipped

DOCS = Path(__file__).parent


def commands_page() -> str:
    parts = [
        "# Commands",
        "",
        "Results go to stdout, everything else to stderr. Exit codes: 0 done, 1 failed, 2 wrong use, "
        "3 refused by the terms gate, 4 budget reached, 130 interrupted. Every option can also be given as "
        "an environment variable, `STILLHOUSE_COMMAND_OPTION`. For completion in your shell: "
        "`stillhouse --install-completion`.",
        "",
    ]

    for command in _below(get_command(app)):
        done = subprocess.run(
            [sys.executable, "-m", "stillhouse.cli", *command, "--help"],
            capture_output=True,
            text=True,
            check=True,
            env={
                "COLUMNS": "100",
                "PATH": "",
                "LC_ALL": "C.UTF-8",
                "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
            },
        )
        text = done.stdout.replace("python -m stillhouse.cli", "stillhouse")
        parts += [f"## stillhouse {' '.join(command)}", "", "```text", text.strip(), "```", ""]
    return "\n".join(parts)


def _below(group: Any) -> list[list[str]]:
    """First its own commands by name, then those of its groups."""
    commands = {name: group.get_command(None, name) for name in group.list_commands(None)}
    groups = [name for name, command in commands.items() if hasattr(command, "list_commands")]
    return [[name] for name in sorted(commands.keys() - groups)] + [
        [name, *command] for name in groups for command in _below(commands[name])
    ]


def recipe_page() -> str:
    schema = recipe_schema()
    parts = [
        "# The recipe",
        "",
        "One TOML file describes one run. An unknown key stops the run and names the nearest valid one. "
        "`stillhouse check --schema` prints the JSON Schema for editors. Relative paths are taken from the "
        "recipe's folder.",
        "",
    ]
    for table in Recipe.model_fields:
        if table == "teachers":
            about = schema["properties"][table]["description"]
            parts += ["## `[[teachers]]`", "", f"{about} The keys are those of [teacher].", ""]
            continue
        parts += _table(f"[{table}]", schema["properties"][table], schema)
    for name, place in (
        ("Declaration", "[teacher.terms]"),
        ("Price", "[teacher.price]"),
        ("Canary", "[collect.canary]"),
        ("Grow", "[prompts.grow]"),
        ("Focus", "[prompts.focus]"),
        ("LeakSet", "[[curate.leak_sets]]"),
        ("Mix", "[curate.mix]"),
        ("Width", "[student.keep_width]"),
        ("Lora", "[student.lora]"),
        ("Distil", "[train.distil]"),
        ("OnPolicy", "[train.on_policy]"),
        ("Rationale", "[train.rationale]"),
        ("Preference", "[train.preference]"),
        ("Judge", "[evaluate.judge]"),
    ):
        parts += _table(place, {"$ref": f"#/$defs/{name}"}, schema)
    return "\n".join(parts)


def _table(title: str, entry: dict[str, Any], schema: dict[str, Any]) -> list[str]:
    definition = schema["$defs"][entry["$ref"].rsplit("/", 1)[1]]
    intro = [definition["description"], ""] if "description" in definition else []
    rows = [f"## `{title}`", "", *intro, "| key | type | default | |", "|---|---|---|---|"]
    required = definition.get("required", [])
    for key, value in definition["properties"].items():
        default = "required" if key in required else f"`{_plain(value.get('default'))}`"
        if "$ref" in value and key not in required:
            default = "its defaults"
        rows.append(f"| `{key}` | {_type(value)} | {default} | {value.get('description', '')} |")
    return [*rows, ""]


def _plain(value: Any) -> str:
    """As TOML writes it; a text without its quotation marks unless it is empty."""
    if value is None:
        return "none"
    return value if isinstance(value, str) and value else json.dumps(value)


def _type(value: dict[str, Any]) -> str:
    if "anyOf" in value:
        return " or ".join(_type(part) for part in value["anyOf"] if part.get("type") != "null")
    if "enum" in value:
        return " or ".join(f"`{choice}`" for choice in value["enum"])
    if "const" in value:
        return f"`{value['const']}`"
    if "$ref" in value:
        return "table"
    return str(value.get("format", value.get("type", "any")))


def guard_page() -> str:
    schema = Guard.model_json_schema()
    parts = [
        "# The guard's settings",
        "",
        "One TOML file describes a gateway: `stillhouse guard init` writes one to begin with, "
        "`stillhouse guard check` says what is wrong with it. An unknown key stops it and names the nearest "
        "valid one. Relative paths are taken from the file's folder.",
        "",
    ]
    for name, place in (
        ("Server", "[server]"),
        ("Store", "[store]"),
        ("Model", "[[models]]"),
        ("Upstream", "[[models.upstreams]]"),
        ("Cascade", "[models.cascade]"),
        ("Watermark", "[models.watermark]"),
        ("Schedule", "[prices.NAME]"),
        ("Step", "[[prices.NAME.steps]]"),
        ("Tier", "[tiers.NAME]"),
        ("Limits", "[tiers.NAME.limits]"),
        ("Leaks", "[tiers.NAME.leaks]"),
        ("Terms", "[terms]"),
        ("Record", "[record]"),
        ("Detection", "[detection]"),
    ):
        parts += _table(place, {"$ref": f"#/$defs/{name}"}, schema)
    return "\n".join(parts)


TABLE = "<!-- The table below is written by docs/generate.py. -->\n"


def terms_page() -> str:
    """The page as it is written by hand, with the table of this revision below its mark."""
    above, mark, _ = (DOCS / "terms.md").read_text().partition(TABLE)
    registry = shipped()
    rows = [
        f"{len(registry.rows())} rows, as of {registry.as_of}, SHA-256 `{registry.digest}`.",
        "",
        "| key | models | access | licence | verdict | text of | evidence | confidence |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in registry.rows():
        models = ", ".join(f"`{pattern}`" for pattern in dict.fromkeys((*row.models, *row.hosts)))
        cells = [f"`{row.key}`", models, row.access, row.licence.name, row.verdict]
        cells += [str(row.read_on or "-"), row.evidence, row.confidence]
        rows.append(f"| {' | '.join(cells)} |")
    return above + mark + "\n" + "\n".join(rows) + "\n"


PAGES = {
    "commands.md": commands_page,
    "recipe.md": recipe_page,
    "terms.md": terms_page,
    "guard-settings.md": guard_page,
}

if __name__ == "__main__":
    stale = []
    for name, make in PAGES.items():
        path, text = DOCS / name, make()
        if "--check" in sys.argv:
            if not path.exists() or path.read_text() != text:
                stale.append(name)
        else:
            path.write_text(text)
    if stale:
        sys.exit(f"out of date: {', '.join(stale)}; run `make docs`")
