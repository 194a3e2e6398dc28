"""The judge of a recipe, asked like any other model: gate, cap and ledger."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from stillhouse import ask as asking
from stillhouse.ask import judge as judging
from stillhouse.collect import limits_of
from stillhouse.ledger import Ledger
from stillhouse.pipeline.setup import open_teacher
from stillhouse.recipe import Recipe
from stillhouse.records import Watch
from stillhouse.terms import gate


@dataclass(frozen=True, slots=True)
class Bench:
    """A judge, ready to be asked about pairs. `tallies` say what that took."""

    judge: asking.Teacher
    decision: int
    limits: asking.Limits
    ledger: Ledger
    run: str
    watch: Watch
    tallies: list[asking.Tally] = field(default_factory=list)

    def __call__(self, pairs: Sequence[judging.Comparison]) -> list[judging.Judged]:
        tally = asking.ask(
            judging.judge_questions(pairs),
            self.judge,
            judging.SAMPLING,
            self.limits,
            self.ledger,
            self.run,
            self.decision,
            self.watch,
            judging.STAGE,
        )
        self.tallies.append(tally)
        failed = {question.prompt_id: question.reason for question in tally.failed}
        return list(judging.read_judgements(pairs, self.judge, self.ledger, failed))

    def bill(self) -> dict[str, float | None]:
        """Answers that the run bought from the judge, and what they cost (US dollars, None without a price);
        the stage's `cost` holds it too."""
        known = self.judge.price is not None
        return {
            "answers": sum(tally.bought for tally in self.tallies),
            "billed": sum(tally.billed for tally in self.tallies) if known else None,
        }


@contextmanager
def open_judge(recipe: Recipe, ledger: Ledger, run: str, log: Path, watch: Watch) -> Iterator[Bench | None]:
    """None where the recipe has no judge. Raises GateRefused where its terms do not allow `evaluation`."""
    settings = recipe.evaluate.judge
    if settings is None:
        yield None
        return
    decision = gate.admit(recipe, settings, "evaluation", ledger, datetime.now(UTC))
    with open_teacher(settings, log) as judge:
        yield Bench(judge, decision, limits_of(recipe), ledger, run, watch)
