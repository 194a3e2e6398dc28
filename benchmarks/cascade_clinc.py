"""CLINC150's pool: queries that neither the SVM nor the student learned from."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cascade_pool import Heard, Pool, answered
from clinc150 import EXAMPLE

from stillhouse.cascade.scores import sketch_of
from stillhouse.records import Message, Prompt

MAX_TOKENS = 4


def queries_pool(folder: Path, run: Path, data: dict[str, Any]) -> Pool:
    rows = [
        (text, label) for part in ("val", "test", "oos_val", "oos_test") for text, label in data.get(part, ())
    ]
    prompts = [
        Prompt(
            f"query-{n:05d}",
            (Message("user", text),),
            "oos" if label == "oos" else "in_scope",
            "",
            label,
            "exact",
        )
        for n, (text, label) in enumerate(rows)
    ]
    learned = [(text, label) for text, label in (*data["train"], *data["oos_train"])]

    def teacher(asked: Sequence[Prompt]) -> list[Heard | None]:
        sys.path.insert(0, str(EXAMPLE))
        from teacher import fitted

        classifier = fitted(learned)
        labels = classifier.predict([prompt.messages[0].content for prompt in asked])
        return [Heard(str(label), 0.0) for label in labels]

    sketch = sketch_of(text for text, _ in learned)
    return answered(folder / "pool.npz", prompts, teacher, str(run / "student"), sketch, MAX_TOKENS)
