"""CLINC150 end to end: an SVM served over HTTP teaches a small language model 150 intents.

    .venv/bin/python benchmarks/clinc150.py [--quick] [--json FILE]

The scripts and the recipe are those of examples/clinc150, run from an empty folder. Peers are the rows SVM
and MLP (on sentence embeddings) of Larson et al. 2019, table 2, "oos-train, Full": accuracy on the 4,500
queries in scope, recall on the 1,000 out of scope. --quick takes 20 intents: it shows that the path works,
and its figures are not comparable with the published ones.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from rows import DATA, Row, arguments, header, need, show

from stillhouse import stats
from stillhouse.evaluate import Prediction, read_predictions
from stillhouse.workspace import RunFolder

EXAMPLE = Path(__file__).parents[1] / "examples" / "clinc150"
FAMILIES = {"in_scope": "in-scope accuracy", "oos": "out-of-scope recall"}
PUBLISHED = {"SVM": {"in_scope": 0.910, "oos": 0.145}, "MLP": {"in_scope": 0.935, "oos": 0.474}}
SEED = 17
QUICK = {"train": 50, "test": 20}  # queries of each of the quick run's intents
QUICK_INTENTS = 20
QUICK_CHANGES = {"epochs = 5": "epochs = 12"}  # there are fewer steps in each


class Ended(NamedTuple):
    """What `stillhouse run --json` and the teacher said, the rows and the wall seconds of the run."""

    found: dict[str, Any]
    teacher: dict[str, Any]
    predictions: list[Prediction]
    seconds: float


def smaller(data: dict[str, Any], intents: int, queries: dict[str, int], seed: int) -> dict[str, Any]:
    """A data set of the same form with some intents and some of their queries; out of scope as many as of
    five intents, but all of `oos_train`."""
    draw = random.Random(seed)
    labels = set(draw.sample(sorted({label for _, label in data["train"]}), intents))
    taken: dict[str, Any] = {"oos_train": data["oos_train"]}
    for part, count in queries.items():
        by_label: dict[str, list[list[str]]] = {}
        for row in data[part]:
            by_label.setdefault(row[1], []).append(row)
        taken[part] = [row for label in sorted(labels) for row in draw.sample(by_label[label], count)]
    taken["oos_test"] = draw.sample(data["oos_test"], min(5 * queries["test"], len(data["oos_test"])))
    return taken


@contextmanager
def teacher(data: Path) -> Iterator[dict[str, Any]]:
    """What the teacher says once it answers; its process ends with the block, or with this process."""
    command = [sys.executable, str(EXAMPLE / "teacher.py"), str(data), "--port", "0", "--until-stdin-ends"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        said = child.stdout.readline()
        if not said:
            raise RuntimeError(f"the teacher did not start (exit {child.wait()})")
        yield json.loads(said)


def run(data: Path, folder: Path, changes: Mapping[str, str] = MappingProxyType({})) -> Ended:
    """Prepare `folder`, serve the teacher, and run the recipe with `changes` made to its text."""
    subprocess.run([sys.executable, str(EXAMPLE / "prepare.py"), str(data), str(folder)], check=True)
    recipe = folder / "recipe.toml"
    with teacher(data) as told:
        text = recipe.read_text()
        for old, new in {"http://127.0.0.1:8150/v1": told["url"], **changes}.items():
            if old not in text:
                raise ValueError(f"the recipe has no {old!r}")
            text = text.replace(old, new)
        recipe.write_text(text)
        started = time.monotonic()
        command = [sys.executable, "-m", "stillhouse.cli", "run", recipe.name, "--json"]
        done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, text=True, check=True)
        seconds = time.monotonic() - started
    found = json.loads(done.stdout)
    return Ended(found, told, read_predictions(RunFolder(Path(found["folder"])).predictions), seconds)


def turned_away(system: str, predictions: Sequence[Prediction]) -> Row:
    """What a recall out of scope is bought with: queries in scope that are answered `oos`."""
    inside = [row for row in predictions if row.system == system and row.family == "in_scope"]
    away = np.array([row.answer == "oos" for row in inside], dtype=np.float64)
    codes = stats.group_codes([row.group for row in inside], [row.prompt_id for row in inside])
    span = stats.clustered_share(away, codes)
    return Row(f"{system}, in scope but answered oos", span.value, "", span.low, span.high)


def scored(system: str, family: str, found: dict[str, Any]) -> Row:
    standing = found["families"][family][system]
    return Row(f"{system}, {FAMILIES[family]}", standing["score"], "", standing["low"], standing["high"])


def beside(row: Row, peer: str, published: float, target: bool) -> Row:
    """The row with a published figure beside it; with `target` it must be no lower."""
    assert row.value is not None
    ratio = row.value / published
    row = replace(row, peer=f"{peer}, published", peer_value=published, ratio=ratio)
    return replace(row, target=f">= {published:g}", holds=ratio >= 1) if target else row


def figures(ended: Ended, full: bool) -> list[Row]:
    """With `full` beside the published figures, which are of all 150 intents."""
    found = ended.found["evaluation"]
    families, seconds, told = found["families"], found["seconds"], ended.teacher
    rows = []
    for name in FAMILIES:
        row = scored("teacher", name, found)
        rows.append(beside(row, "SVM", PUBLISHED["SVM"][name], True) if full else row)
    for name in FAMILIES:
        row = scored("student", name, found)
        rows += [beside(row, peer, PUBLISHED[peer][name], False) for peer in PUBLISHED] if full else [row]
    for name, what in FAMILIES.items():
        kept, target = families[name]["retention"], full and name == "in_scope"
        row = Row(f"share of the teacher's {what} kept", kept["value"], "", kept["low"], kept["high"])
        rows.append(replace(row, target=">= 0.97", holds=kept["value"] >= 0.97) if target else row)
    rows += [turned_away(system, ended.predictions) for system in ("teacher", "student")]
    right, wrong = found["agreement"]["teacher_right"], found["agreement"]["teacher_wrong"]
    return [
        *rows,
        Row("same answer where the teacher is right", right["value"], "", right["low"], right["high"]),
        Row("same answer where it is wrong", wrong["value"], "", wrong["low"], wrong["high"]),
        Row("exchanges sent", found["exchanges"]["sent"], ""),
        Row("weights of the teacher, labels times features", told["labels"] * told["features"], ""),
        Row("parameters of the student", found["parameters"]["student"], ""),
        Row("training of the teacher, wall time", told["seconds"], "s"),
        Row("whole run, wall time", ended.seconds, "s"),
        *(Row(f"  {stage}", seconds[stage], "s") for stage in ("collect", "curate")),
        Row("  train", seconds["train"], "s", target="< 600 s", holds=seconds["train"] < 600),
        Row("  evaluate", seconds["evaluate"], "s"),
    ]


def main() -> None:
    options = arguments(__doc__ or "")
    data = need(DATA / "intents" / "data_full.json")
    with tempfile.TemporaryDirectory() as name:
        if options.quick:
            taken = smaller(json.loads(data.read_text()), QUICK_INTENTS, QUICK, SEED)
            data = Path(name, "quick.json")
            data.write_text(json.dumps(taken))
        ended = run(data, Path(name, "run"), QUICK_CHANGES if options.quick else {})
    packages = ["stillhouse", "scikit-learn", "torch", "transformers", "tokenizers"]
    show(header(SEED, packages), figures(ended, not options.quick), options.json)


if __name__ == "__main__":
    main()
