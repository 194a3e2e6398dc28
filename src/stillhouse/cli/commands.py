"""The commands. Each parses its arguments, calls the package, and prints what came back."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from stillhouse.cli import anchoring, importing, keeping, pushing, runs, terms_check
from stillhouse.cli.audits import audit_app
from stillhouse.cli.cascades import cascade_app
from stillhouse.cli.later import guard_later
from stillhouse.cli.options import Json
from stillhouse.cli.terms import terms_app
from stillhouse.cli.watermarks import watermark_app

if TYPE_CHECKING:
    from stillhouse.workspace import Workspace

app = typer.Typer(
    name="stillhouse",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "STILLHOUSE"},
    help="Distil a language model into a small one, and keep the proof of where every example came from.",
    epilog="Exit codes: 0 done, 1 failed, 2 wrong use, 3 refused by the terms gate, 4 budget reached, "
    "130 interrupted. STILLHOUSE_DEBUG=1 shows tracebacks.",
)
ledger_app = typer.Typer(
    rich_markup_mode=None, help="Look at, verify, anchor, erase from and back up the ledger."
)
app.add_typer(ledger_app, name="ledger")
for name, command in (keeping.LEDGER | anchoring.LEDGER).items():
    ledger_app.command(name)(command)
keys_app = typer.Typer(
    rich_markup_mode=None, help="Look at the workspace's keys, and replace the one that signs."
)
app.add_typer(keys_app, name="keys")
for name, command in anchoring.KEYS.items():
    keys_app.command(name)(command)
targets_app = typer.Typer(rich_markup_mode=None, help="Look at the teacher's probabilities of a run.")
app.add_typer(targets_app, name="targets")
app.add_typer(audit_app, name="audit")
app.add_typer(cascade_app, name="cascade")
app.add_typer(terms_app, name="terms")
app.add_typer(guard_later, name="guard")
app.add_typer(watermark_app, name="watermark")
terms_check.add_to(terms_app)

RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="The recipe, a TOML file.")]
RunName = Annotated[str, typer.Argument(metavar="RUN", help="A run's name or folder; the newest that fits.")]

STARTER = """\
# A run of stillhouse. Every setting: docs/recipe.md, or `stillhouse check --schema` for your editor.
[run]
name = "first"

[teacher]
model = "embedded:desk"            # the shipped teacher; or a folder, or a name at `endpoint`
# endpoint = "http://localhost:11434/v1"
# key_env = "OPENAI_API_KEY"
# terms = { document = "terms.txt", read_on = 2026-01-31, declared_by = "who read them" }

[prompts]
source = "embedded:desk"           # or prompts.jsonl with a column "prompt"
count = 1000

[student]
init = "embedded:base"             # or a transformers folder, or a hub id
"""


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        from importlib.metadata import version as installed

        print(installed("stillhouse"))
        raise typer.Exit


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="Where to make it.")] = Path(),
    ledger: Annotated[
        str | None, typer.Option(metavar="URL", help="Keep the ledger in this PostgreSQL database.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Make a workspace (.stillhouse with ledger and keys) and a first recipe, where there is none."""
    from stillhouse.cli import show
    from stillhouse.errors import storage
    from stillhouse.ledger import Ledger
    from stillhouse.ledger.postgres import reachable
    from stillhouse.workspace import init_workspace

    workspace = init_workspace(folder, None if ledger is None else reachable(ledger))
    with Ledger.open(workspace):
        pass
    recipe = folder / "recipe.toml"
    if not recipe.exists():
        with storage("write", recipe):
            recipe.write_text(STARTER)
    made = {"workspace": str(workspace.root), "recipe": str(recipe)}
    text = f"workspace  {workspace.root}\nrecipe     {recipe}\nnext       stillhouse plan {recipe}"
    show.result(made, text, as_json)


@app.command()
def check(
    recipe: Annotated[Path | None, typer.Argument(metavar="RECIPE", help="The recipe to check.")] = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the recipe's JSON Schema.")] = False,
    as_json: Json = False,
) -> None:
    """Check a recipe and its prompt files without asking anybody anything."""
    import json
    import os

    from stillhouse.cli import show
    from stillhouse.errors import UsageError
    from stillhouse.recipe import load_recipe, recipe_digest, recipe_schema

    if schema:
        print(json.dumps(recipe_schema(), indent=2))
        return
    if recipe is None:
        raise UsageError("no recipe given", "`check` looks at one", "stillhouse check RECIPE")
    from stillhouse import pipeline
    from stillhouse.collect.prompts import load_prompts, name_broken

    loaded = load_recipe(recipe)
    prompts = load_prompts(loaded)
    pipeline.check(loaded, prompts)
    for key in (teacher.key_env for teacher in (loaded.teacher, *loaded.teachers)):
        if key and not os.environ.get(key):
            raise UsageError(
                f"the variable {key} is not set", "a teacher's `key_env` names it", f"export {key}=..."
            )
    found = {
        "digest": recipe_digest(loaded),
        "train": len(prompts.train) + len(prompts.further),
        "test": len(prompts.test),
        "broken_rows": name_broken(prompts.broken),
    }
    lines = [f"ok         {recipe}: {found['train']:,} prompts to learn from, {found['test']:,} to test on"]
    lines += [f"broken     {line}" for line in name_broken(prompts.broken)]
    show.result(found, "\n".join([*lines, f"next       stillhouse plan {recipe}"]), as_json)


@app.command()
def doctor(
    recipe: Annotated[Path | None, typer.Argument(metavar="RECIPE", help="Also check what it needs.")] = None,
    losses: Annotated[
        bool, typer.Option("--losses", help="Examine the losses of distillation instead, on this machine.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Check this machine, the workspace and, with a recipe, its endpoint. Asks no model anything."""
    from stillhouse.cli import show
    from stillhouse.cli.doctor import examine, examine_losses

    findings = examine_losses() if losses else examine(Path.cwd(), recipe)
    lines = [
        f"{f.state:<5} {f.what:<12} {f.detail}" + (f"\n      mend: {f.mend}" if f.mend else "")
        for f in findings
    ]
    rows = [{"state": f.state, "what": f.what, "detail": f.detail, "mend": f.mend} for f in findings]
    show.result({"checks": rows}, "\n".join(lines), as_json)
    if any(f.state == "fail" for f in findings):
        raise typer.Exit(1)


@app.command()
def plan(
    recipe: RecipeFile,
    pilot: Annotated[
        int,
        typer.Option(
            min=0, help="Ask so many questions now, keep their answers, and estimate the rest by them."
        ),
    ] = 0,
    as_json: Json = False,
) -> None:
    """Print what a run would do, what is paid for already, and what it may cost. Sends only a pilot."""
    runs.plan(recipe, as_json, pilot)


@app.command()
def run(
    recipe: RecipeFile,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan and stop; the same as `plan`.")
    ] = False,
    from_cascade: Annotated[
        Path | None,
        typer.Option(
            metavar="CONFIG", help="Make a new run that also learns what this guard's cascade deferred."
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="With --from-cascade: the model there, if several have a student.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Run every stage of a recipe, then write the report. Run it again to go on where it stopped."""
    from stillhouse.errors import UsageError

    if (dry_run and from_cascade is not None) or (model is not None and from_cascade is None):
        raise UsageError(
            "these options do not go together",
            "--from-cascade takes into the ledger what is learned, and --model is of its guard",
            "stillhouse run RECIPE --from-cascade CONFIG --model NAME, or stillhouse run RECIPE --dry-run",
        )
    if dry_run:
        runs.plan(recipe, as_json)
    else:
        runs.run(recipe, None, as_json, cascade=None if from_cascade is None else (from_cascade, model))


@app.command()
def collect(
    recipe: Annotated[Path | None, typer.Argument(metavar="RECIPE", help="The recipe, a TOML file.")] = None,
    watch: Annotated[
        str | None,
        typer.Option(metavar="RUN", help="Ask nothing: show how far another process is with this run."),
    ] = None,
    focus: Annotated[
        str | None,
        typer.Option(metavar="RUN", help="Make a new run, with further prompts where this one lost most."),
    ] = None,
    count: Annotated[
        int | None, typer.Option(min=1, help="With --focus: how many; a fifth of what RUN had by default.")
    ] = None,
    cancel_batches: Annotated[
        bool,
        typer.Option("--cancel-batches", help="Only cancel this run's batches, and keep what is ready."),
    ] = False,
    on: Annotated[
        Literal["ray"] | None,
        typer.Option(help="Ask from a Ray cluster: RAY_ADDRESS, or one started on this machine."),
    ] = None,
    workers: Annotated[
        int, typer.Option(min=0, help="With --on: so many processes that ask; 0: one a machine, at least 2.")
    ] = 0,
    as_json: Json = False,
) -> None:
    """Ask the teacher every prompt that the ledger does not hold an answer to."""
    from stillhouse.errors import UsageError

    if (recipe is None) == (watch is None) or (watch and (focus or cancel_batches or on)):
        raise UsageError(
            "give either a recipe or a run to watch",
            "`collect` asks what a recipe says, or shows how far a run is",
            "stillhouse collect RECIPE, or stillhouse collect --watch RUN",
        )
    if count is not None and focus is None:
        raise UsageError(
            "--count is given without --focus",
            "it says how many further prompts a round takes",
            "name the run with --focus, or set `prompts.count` in the recipe",
        )
    if workers and on is None:
        raise UsageError("--workers goes with --on", "without a cluster this process asks", "add `--on ray`")
    if watch is not None:
        from stillhouse.cli.watching import follow

        follow(_workspace().find_run(watch), as_json)
    elif recipe is not None and cancel_batches:
        runs.cancel_batches(recipe, as_json)
    elif recipe is not None:
        runs.run(recipe, ["collect"], as_json, focus, count, None if on is None else workers)


@app.command()
def curate(
    recipe: RecipeFile,
    on: Annotated[
        Literal["ray"] | None,
        typer.Option(help="Judge rows over a Ray cluster: RAY_ADDRESS, or one started on this machine."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Turn the collected answers into training samples; every dropped row keeps its reason."""
    runs.run(recipe, ["curate"], as_json, ray_workers=None if on is None else 0)


@app.command()
def train(recipe: RecipeFile, as_json: Json = False) -> None:
    """Train the student on the curated samples; a killed training goes on from its last checkpoint."""
    runs.run(recipe, ["train"], as_json)


@app.command()
def evaluate(recipe: RecipeFile, as_json: Json = False) -> None:
    """Score teacher, untrained student, student and baseline on the test prompts."""
    runs.run(recipe, ["evaluate"], as_json)


@app.command()
def release(recipe: RecipeFile, as_json: Json = False) -> None:
    """Write the release folder: weights, card, provenance and the ledger's signed checkpoint."""
    runs.run(recipe, ["release"], as_json)


@app.command()
def export(
    release: Annotated[Path, typer.Argument(metavar="RELEASE", help="The folder of a release.")],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A new file, such as student.gguf.")],
    format: Annotated[
        Literal["gguf", "ollama"],
        typer.Option(help="gguf for llama.cpp; ollama writes a Modelfile beside it."),
    ] = "gguf",
    as_json: Json = False,
) -> None:
    """Write a released student for llama.cpp or Ollama, every weight in its own precision."""
    from stillhouse.cli import show
    from stillhouse.pipeline import need_extra
    from stillhouse.release.exports import export as write
    from stillhouse.release.owed import FILES

    need_extra("gguf", ("gguf",))
    need_extra("train", ("safetensors", "torch", "transformers"))
    written = [str(path) for path in write(release, file, format == "ollama")]
    owed = [name for name in FILES if (release / name).exists()]
    lines = [f"written    {path}" for path in written]
    lines += [f"hand on    {', '.join(owed)} of the release: they go with these weights"] if owed else []
    show.result({"written": written, "hand_on": owed}, "\n".join(lines), as_json)


app.command()(pushing.push)


@app.command()
def report(run_name: RunName, as_json: Json = False) -> None:
    """Write the HTML report of a run from its files."""
    from stillhouse.cli import show
    from stillhouse.report import write_report
    from stillhouse.workspace import open_workspace

    path = write_report(open_workspace(Path.cwd()).find_run(run_name))
    show.result({"report": str(path)}, str(path), as_json)


app.command("import")(importing.import_answers)


@app.command()
def serve(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="embedded:desk, a transformers folder, or a hub id.")
    ],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.")] = 8080,
    name: Annotated[str | None, typer.Option(help="The model's name in requests.")] = None,
    max_logprobs: Annotated[
        int, typer.Option(help="Most tokens told beside each one of a prompt that is read; -1 for no bound.")
    ] = 20,
    watermark: Annotated[
        Path | None, typer.Option(metavar="KEY", help="Mark answers with the key in this file.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Serve a local model as an OpenAI-compatible server."""
    from stillhouse.cli import show
    from stillhouse.models.serve import serve as serve_model
    from stillhouse.pipeline import need_extra
    from stillhouse.watermark.keys import read_key

    def ready(url: str) -> None:
        show.result({"url": url, "model": name or model}, f"serving    {model} at {url}", as_json)
        sys.stdout.flush()

    need_extra("train", ("torch", "transformers"))
    key = None if watermark is None else read_key(watermark)
    serve_model(model, host, port, name, ready, max_logprobs, key)


@app.command()
def chat(
    run_name: RunName,
    prompt: Annotated[
        str | None, typer.Argument(help="One prompt; without it, prompts are read line by line.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Answer a prompt by teacher and student side by side."""
    from stillhouse.cli.chat import converse
    from stillhouse.workspace import open_workspace

    workspace = open_workspace(Path.cwd())
    prompts = [prompt] if prompt is not None else sys.stdin
    converse(workspace, workspace.find_run(run_name), prompts, as_json)


@targets_app.callback()
def targets() -> None:
    """Look at the teacher's probabilities of a run."""


@targets_app.command("info")
def targets_info(run_name: RunName, as_json: Json = False) -> None:
    """Print what a run's targets hold, what they weigh, and what was lost; every shard is checked."""
    from stillhouse.cli import show
    from stillhouse.cli.targets import info

    workspace = _workspace()
    found, text = info(workspace, workspace.find_run(run_name))
    show.result(found, text, as_json)


@ledger_app.command("show")
def ledger_show(
    leaf: Annotated[int | None, typer.Argument(metavar="LEAF", help="One leaf, with its content.")] = None,
    kind: Annotated[str | None, typer.Option(help="Only leaves of this kind.")] = None,
    limit: Annotated[int, typer.Option(help="At most so many of the newest leaves.")] = 20,
    as_json: Json = False,
) -> None:
    """Print the newest leaves, or one whole."""
    from stillhouse.cli import show
    from stillhouse.cli.ledgers import leaf_view, overview
    from stillhouse.ledger import Ledger

    with Ledger.open(_workspace()) as ledger:
        found, text = overview(ledger, kind, limit) if leaf is None else leaf_view(ledger, leaf)
    show.result(found, text, as_json)


@ledger_app.command("verify")
def ledger_verify(
    against: Annotated[Path | None, typer.Option(help="A checkpoint that somebody else kept.")] = None,
    key: Annotated[
        Path | None, typer.Option(metavar="PEM", help="A public key from which the log's key must follow.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Check every leaf, content and anchor; with --against also that nothing was rewritten since."""
    from stillhouse.cli import show
    from stillhouse.cli.ledgers import verification
    from stillhouse.ledger import Ledger

    with Ledger.open(_workspace()) as ledger:
        found, text, ok = verification(ledger, against, key)
    show.result(found, text, as_json)
    if not ok:
        raise typer.Exit(1)


@ledger_app.command("export")
def ledger_export(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A new or empty folder.")],
    contents: Annotated[bool, typer.Option("--contents", help="Also prompts and answers in clear.")] = False,
    as_json: Json = False,
) -> None:
    """Write leaves, tiles, signed checkpoint and public key for somebody else to verify."""
    from stillhouse.cli import show
    from stillhouse.ledger import Ledger

    with Ledger.open(_workspace()) as ledger:
        ledger.export(folder, contents=contents)
        size = ledger.size()
    show.result({"folder": str(folder), "leaves": size}, f"exported   {size:,} leaves to {folder}", as_json)


def _workspace() -> Workspace:
    from stillhouse.workspace import open_workspace

    return open_workspace(Path.cwd())
