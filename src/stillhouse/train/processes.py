"""Several processes that train one student: each works its share of every step, and all step alike.

They are started by a launcher, `torchrun` or `accelerate launch`, which tells each its number by the
environment. The gradient of a step is the sum of theirs, each part divided by the tokens of the whole step
beforehand; so how many processes there are changes the order of sums, and nothing else.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from stillhouse.errors import ModelError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from stillhouse.recipe import Recipe

T = TypeVar("T")

# How long one waits for another, whose teacher may read rows for hours. A process that died is noticed at
# once, by its connection.
LONGEST = timedelta(days=1)
BUCKET = 1 << 24  # elements of gradients that are summed at once


def launched() -> tuple[int, int]:
    """This process's number and how many there are, as the launcher says; (0, 1) without one."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def check_shared(recipe: Recipe, reads_there: bool, count: int) -> None:
    """Raises UsageError for a training that `count` processes cannot share; `reads_there` says whether the
    teacher reads the student's tokens at an endpoint."""
    if count > 1 and recipe.train.preference is not None:
        raise UsageError(
            "pairs of answers are learned by one process",
            f"there are {count}",
            "train in one process, or leave out `train.preference`",
        )
    if count > 1 and reads_there:
        raise UsageError(
            "a teacher at an endpoint is asked by one process",
            f"there are {count}, each of which would ask for its own rows",
            "train in one process, or keep the teacher's weights here",
        )


@dataclass(frozen=True, slots=True)
class Processes:
    """How many processes train together, and which of them this is. The first writes what is written."""

    number: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        return self.number == 0

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """This process's part: every `count`-th. What is sorted by length is shared out evenly."""
        return items[self.number :: self.count]

    def total(self, *values: float) -> list[float]:
        """The sum of each value over all processes, the same bits in all of them."""
        if self.count == 1:
            return list(values)
        import torch
        from torch import distributed

        sums = torch.tensor(values, dtype=torch.float64)
        with _company():
            distributed.all_reduce(sums)
        return [float(each) for each in sums]

    def gather(self, value: T) -> list[T]:
        """The value of each process, in all of them."""
        if self.count == 1:
            return [value]
        from torch import distributed

        values: list[Any] = [None] * self.count
        with _company():
            distributed.all_gather_object(values, value)
        return values

    def sum_gradients(self, parameters: Sequence[Tensor]) -> None:
        """The gradients of all processes in place of this one's. A parameter that none of them used stays
        without one, as it would with a single process."""
        if self.count == 1:
            return
        import torch
        from torch import distributed

        used = self.total(*(float(each.grad is not None) for each in parameters))
        for bucket in _buckets([each for each, count in zip(parameters, used, strict=True) if count]):
            for each in bucket:
                if each.grad is None:
                    each.grad = torch.zeros_like(each)
            gradients = [each.grad for each in bucket if each.grad is not None]
            flat = torch.cat([gradient.flatten() for gradient in gradients])
            with _company():
                distributed.all_reduce(flat)
            for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
                gradient.copy_(part.view_as(gradient))

    @contextmanager
    def first_before_others(self) -> Iterator[None]:
        """The first process does what stands within, and then the others, who find it done."""
        if not self.first:
            self.gather(None)
        yield
        if self.first:
            self.gather(None)

    def tell(self, task: Any) -> Any:
        """What the first process says, in all of them."""
        if self.count == 1:
            return task
        from torch import distributed

        told = [task]
        with _company():
            distributed.broadcast_object_list(told, src=0)
        return told[0]

    def check_same(self, seen: object) -> None:
        """Raises UsageError unless all processes have read the same."""
        if any(each != seen for each in self.gather(seen)):
            raise UsageError(
                "the processes of this training do not see the same run",
                "samples, student or checkpoints differ from one to another",
                "put the workspace and the models on a file system that all machines share",
            )


ALONE = Processes()


def join() -> Processes:
    """This process among those that the launcher started, connected with them and with a GPU of its own
    where there are any; `ALONE` without a launcher."""
    number, count = launched()
    if count == 1:
        return ALONE
    import torch
    from torch import distributed

    gpus = torch.cuda.device_count()
    if gpus:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", number)) % gpus)
    if not distributed.is_initialized():
        with _company():
            distributed.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo", timeout=LONGEST)
        # Its threads must be gone before those of the interpreter are: else the process may abort as it ends
        atexit.register(distributed.destroy_process_group)
    return Processes(number, count)


def _buckets(parameters: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Parameters of one type and device together, in their order, `BUCKET` elements or one parameter each."""
    bucket: list[Tensor] = []
    size = 0
    for each in parameters:
        if bucket and (size + each.numel() > BUCKET or each.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(each)
        size += each.numel()
    if bucket:
        yield bucket


@contextmanager
def _company() -> Iterator[None]:
    """What is raised where another process is gone."""
    try:
        yield
    except RuntimeError as error:
        raise _gone(error) from error


@contextmanager
def in_company() -> Iterator[None]:
    """The same for what torch exchanges itself, among other work that may fail in its own ways."""
    try:
        yield
    except RuntimeError as error:
        from torch.distributed import DistError

        if isinstance(error, DistError) or "gloo" in str(error):
            raise _gone(error) from error
        raise


def _gone(error: RuntimeError) -> ModelError:
    return ModelError(
        "another process of this training is gone",
        str(error).splitlines()[0][:200],
        "see what it said before; the last checkpoint is intact, and the same command goes on from it",
    )
