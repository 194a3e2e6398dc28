"""The shape of the code: who imports whom, what start-up costs, how long things may grow."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "stillhouse"
FILES = sorted(PACKAGE.rglob("*.py"))

LEVELS = {
    1: ("records", "recipe", "errors", "money", "prices", "refusals", "stats", "text", "workspace"),
    2: ("ledger", "terms", "models", "watermark", "scoring", "similar"),
    3: ("ask",),
    4: ("collect", "curate", "train", "evaluate", "release", "guard", "cascade", "audit"),
    5: ("pipeline", "gateway", "report"),
    6: ("cli",),
}
LEVEL = {name: level for level, names in LEVELS.items() for name in names}
ALONE = (4, 5)  # siblings on these levels never import each other
BESIDE = {("terms", "ledger"), ("models", "watermark")}  # the only neighbours on level 2
TORCH = ("torch", "transformers", "peft", "safetensors", "accelerate")
HEAVY_ALLOWED = ("train/", "models/local", "models/serve", "watermark/")

LONGEST_FUNCTION = 120
LONGEST_FILE = 500


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(tree: ast.AST) -> set[str]:
    """Parts of stillhouse that a module imports, anywhere in it."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {
                alias.name.split(".")[1] for alias in node.names if alias.name.startswith("stillhouse.")
            }
        elif isinstance(node, ast.ImportFrom) and node.module == "stillhouse":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("stillhouse."):
            found.add(node.module.split(".")[1])
    return found


def at_import(tree: ast.Module) -> set[str]:
    """What importing the module imports: all but what stands in functions or under TYPE_CHECKING."""
    found: set[str] = set()

    def walk(nodes: list[ast.stmt]) -> None:
        for node in nodes:
            if isinstance(node, ast.Import):
                found.update(alias.name.split(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                found.add(node.module.split(".")[0])
            elif isinstance(node, ast.If) and "TYPE_CHECKING" not in ast.dump(node.test):
                walk(node.body + node.orelse)
            elif isinstance(node, ast.Try | ast.With | ast.ClassDef):
                walk(node.body)

    walk(tree.body)
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_downward_only(path):
    me = part_of(path)
    if me == "__init__":
        return
    for other in imported(ast.parse(path.read_text())) - {me}:
        assert other in LEVEL, f"{other} has no level"
        same = LEVEL[other] == LEVEL[me]
        assert LEVEL[other] <= LEVEL[me], f"{me} imports {other}, which lies above it"
        assert not (same and LEVEL[me] in ALONE), f"{me} imports its sibling {other}"
        assert not (same and LEVEL[me] == 2 and (me, other) not in BESIDE), (
            f"{me} imports its neighbour {other}"
        )


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_torch_is_imported_only_where_it_may_be(path):
    name = str(path.relative_to(PACKAGE))
    if not name.startswith(HEAVY_ALLOWED):
        assert not at_import(ast.parse(path.read_text())) & set(TORCH)


def test_only_ask_calls_the_endpoint():
    for path in FILES:
        if part_of(path) not in ("ask", "models"):
            assert "models.endpoint" not in path.read_text(), path
            assert "models.batches" not in path.read_text(), path


def test_sql_is_spoken_only_in_the_ledger():
    for path in FILES:
        if part_of(path) not in ("ledger", "gateway"):
            assert "sqlite3" not in path.read_text(), path


def test_nothing_prints_below_the_command_line():
    for path in FILES:
        if part_of(path) == "cli":
            continue
        calls = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
        for call in calls:
            name = call.func.id if isinstance(call.func, ast.Name) else ""
            assert name not in ("print", "input", "exit"), f"{path}:{call.lineno}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_functions_and_files_stay_readable(path):
    text = path.read_text()
    assert text.count("\n") <= LONGEST_FILE
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < LONGEST_FUNCTION, f"{path}:{node.lineno} {node.name}"


def test_importing_the_package_and_asking_for_help_loads_no_torch():
    code = (
        "import sys, stillhouse, stillhouse.cli.commands, stillhouse.pipeline, stillhouse.report\n"
        "assert not {'torch', 'transformers', 'sklearn'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_help_answers_at_once():
    """Under 150 ms of processor time: wall time would measure what else the machine does. The best of some
    tries, as a shared processor is at times half as fast."""
    import resource

    best = float("inf")
    for _ in range(30):
        if best < 0.150:
            break
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "stillhouse.cli", "--help"], check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        best = min(best, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert best < 0.150


def commands() -> list[tuple[str, ...]]:
    from typer.main import get_command

    from stillhouse.cli.commands import app

    def below(group) -> list[tuple[str, ...]]:
        found: list[tuple[str, ...]] = []
        for name in group.list_commands(None):
            command = group.get_command(None, name)
            deeper = below(command) if hasattr(command, "list_commands") else [()]
            found += [(name, *rest) for rest in deeper]
        return found

    return below(get_command(app))


def test_every_command_of_the_design_is_there():
    wanted = (
        "init check doctor plan run collect curate train evaluate release report serve chat import".split()
    )
    assert {(name,) for name in wanted} | {("ledger", n) for n in ("show", "verify", "export")} <= set(
        commands()
    )


def test_every_command_has_help_and_is_documented():
    reference = (ROOT / "docs" / "commands.md").read_text()
    for command in commands():
        assert f"## stillhouse {' '.join(command)}\n" in reference, (
            f"docs/commands.md lacks {command}: run `make docs`"
        )
