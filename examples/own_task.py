"""Your own prompts and your own judgement, through the same stages: python examples/own_task.py"""

from pathlib import Path

from stillhouse.collect import PromptSet
from stillhouse.pipeline import run
from stillhouse.recipe import parse_recipe
from stillhouse.records import Message, Prompt
from stillhouse.workspace import init_workspace

QUEUES = ("billing", "shipping", "returns")
TEXTS = {
    "billing": "I was charged twice for order {n}.",
    "shipping": "Where is the parcel for order {n}?",
    "returns": "The item of order {n} broke and I want to send it back.",
}


def prompt(queue: str, n: int) -> Prompt:
    text = f"Which queue does this message belong to? {TEXTS[queue].format(n=n)}"
    return Prompt(
        f"{queue}-{n}", (Message("user", text),), family=queue, reference=queue, scorer="same_queue"
    )


def same_queue(answer: str, reference: str) -> float:
    """Right when the queue is named and no other one is."""
    return float([queue for queue in QUEUES if queue in answer.lower()] == [reference])


recipe = parse_recipe(
    {
        "run": {"name": "own-task"},
        "teacher": {"model": "embedded:desk"},
        "prompts": {"source": "own"},
        "student": {"init": "embedded:base"},
        "train": {"epochs": 4},
    }
)
train = tuple(prompt(queue, n) for n in range(100, 200) for queue in QUEUES)
test = tuple(prompt(queue, n) for n in range(700, 720) for queue in QUEUES)
finished = run(
    recipe, init_workspace(Path()), prompts=PromptSet(train, test), scorers={"same_queue": same_queue}
)
print(finished.evaluation["student"], finished.run.release)
