"""What each of several processes does in `test_processes.py`: the trainings of a plan, one after another.

    RANK=.. WORLD_SIZE=.. python several.py PLAN.json

The first process trains, the others follow. Where the plan says so, one of them is interrupted or killed in
the middle of its n-th step, and what was raised is written beside the run.
"""

import json
import os
import signal
import sys
from itertools import count
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
torch.set_num_threads(1)

from train.tiny_student import make_recipe  # noqa: E402

from stillhouse.errors import StillhouseError  # noqa: E402
from stillhouse.train import Source, follow, loop, train  # noqa: E402
from stillhouse.workspace import RunFolder  # noqa: E402

NUMBER = int(os.environ["RANK"])
step = loop.train_step


def held(work) -> list[int]:
    """Bytes of parameters and of their optimiser's state, as this process has them."""
    parameters = list(work.model.parameters())
    states = [value for each in work.optimisers for of in each.state.values() for value in of.values()]
    return [sum(map(own_bytes, each)) for each in (parameters, states)]


def own_bytes(value: torch.Tensor) -> int:
    return getattr(value, "_local_tensor", value).nbytes


def one(case: dict) -> None:
    run, seen = RunFolder(Path(case["run"])), count(1)
    struck, when, blow = case.get("strike", (None, 0, 0))

    def taken(*args):
        if case.get("held"):
            (run.root / f"held-{NUMBER}").write_text(json.dumps(held(args[0])))
        if struck == NUMBER and next(seen) == when:
            os.kill(os.getpid(), blow)
        return step(*args)

    loop.train_step = taken
    said = "done"
    try:
        if NUMBER:
            follow()
        else:
            source = Source(run.root.parent / "targets", (), "teacher", "r1")
            recipe, ticks = make_recipe(case["student"], case["train"]), count()
            train(run, recipe, lambda _: None, case["teacher"], lambda: float(next(ticks)), source)
    except StillhouseError as error:
        said = f"{type(error).__name__}: {error.what}. {error.mend}"
    (run.root / f"said-{NUMBER}").write_text(said)


signal.signal(signal.SIGINT, signal.default_int_handler)
for each in json.loads(Path(sys.argv[1]).read_text()):
    one(each)
