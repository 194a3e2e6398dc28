"""Asks under a decision, as a process of its own: WORKSPACE URL RUN DECISION COUNT [CONCURRENCY]."""

import sys
from pathlib import Path

from stillhouse.ask import Limits, Question, Sampling, Teacher, ask
from stillhouse.errors import StillhouseError
from stillhouse.ledger import Ledger
from stillhouse.records import Message
from stillhouse.workspace import Workspace


def questions(run: str, count: int) -> list[Question]:
    return [Question(f"{run}-{n}", (Message("user", f"{run} asks {n}"),)) for n in range(count)]


def main(folder: str, url: str, run: str, decision: str, count: str, concurrency: str = "4") -> int:
    teacher = Teacher("m", "somewhere", "", lambda: url)
    limits = Limits(int(concurrency), 30.0, 0)
    with Ledger.open(Workspace(Path(folder))) as ledger:
        try:
            tally = ask(
                questions(run, int(count)), teacher, Sampling(0.0, 1.0, 8), limits, ledger, run, int(decision)
            )
        except StillhouseError as error:
            print(f"{error.what}: {error.why}")
            return error.exit_code
    print(tally.answered)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
