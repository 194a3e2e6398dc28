import tomllib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stillhouse.collect import EXCHANGES
from stillhouse.curate import curate
from stillhouse.curate.funnel import Judged, put_through
from stillhouse.curate.quality import not_refused
from stillhouse.curate.steps import chosen
from stillhouse.ledger import Ledger
from stillhouse.recipe import Curate, parse_recipe
from stillhouse.workspace import RunFolder, Workspace

RECIPE = parse_recipe(
    tomllib.loads(
        '[run]\nname="a"\n[teacher]\nmodel="m"\nendpoint="http://x/v1"\n[prompts]\nsource="p"\n[student]\ninit="s"'
    )
)


def row(
    answer: str, prompt: str = "q", finish: str = "stop", leaf: int = 0, refusal: str | None = None
) -> dict:
    return {
        "key": f"{leaf:064x}",
        "leaf": leaf,
        "decision": 0,
        "prompt_id": f"p{leaf}",
        "sample_index": 0,
        "messages": [{"role": "user", "content": prompt}],
        "answer": answer,
        "finish_reason": finish,
        "refusal": refusal,
        "reasoning": None,
        "family": "f",
        "group": "g",
        "teacher": "m",
        "prompt_tokens": None,
        "completion_tokens": None,
    }


def judged(rows: list[dict], settings: Curate) -> list[Judged]:
    plan = chosen(settings)
    return put_through(map(Judged, rows), (*plan.alone, *plan.ordered))


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([row("  \n")], "empty"),
        ([row("half an ans", finish="length")], "truncated"),
        ([row("I'm sorry, but I can't help with that.")], "refusal"),
        ([row("", refusal="No.")], "refusal"),
        ([row("x", finish="content_filter")], "refusal"),
        ([row("Yes, it IS.", "Is it?"), row("yes,  it is.", "is it?")], "duplicate"),
    ],
)
def test_the_last_row_is_dropped_for_its_reason(rows: list[dict], reason: str):
    assert [one.verdict.reason for one in judged(rows, Curate())] == [*[""] * (len(rows) - 1), reason]


@pytest.mark.parametrize(
    "answer",
    [
        "We are sorry that the lamp arrived broken.",
        "I'm sorry for your loss; here is what you can do.",
        "I can help with that.",
        "I can't wait to see it! Here is the plan.",
        "Sorry, the answer is 4.",
    ],
)
def test_a_polite_answer_is_no_refusal(answer: str):
    assert not_refused(row(answer)).ruling == "keep"


@pytest.mark.parametrize(
    "answer",
    [
        "I am sorry, but I cannot assist with that request.",
        "I cannot provide medical advice.",
        "As an AI language model, I cannot predict the future.",
        "I’m unable to".replace("’", "'").replace("I'm", "I am") + " help with this.",
        "I won't write that.",
    ],
)
def test_a_refusal_is_seen(answer: str):
    assert not_refused(row(answer)).reason == "refusal"


def test_rows_balance_and_every_kept_row_is_a_leaf_that_names_its_exchange(workspace: Workspace):
    run = RunFolder(workspace.runs / "r")
    run.root.mkdir()
    rows = [
        row(f"answer {i % 40}", f"question {i % 40}", "length" if i % 10 == 0 else "stop", i)
        for i in range(60)
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=EXCHANGES), run.exchanges)
    with Ledger.open(workspace) as ledger:
        done = curate(run, RECIPE, ledger)
        leaves = list(ledger.leaves("row"))
        assert ledger.verify().ok
    assert done.rows == 60 == done.kept + sum(done.reasons.values())
    assert done.reasons == {"truncated": 6, "duplicate": 18}
    kept = pq.read_table(run.samples).to_pylist()
    dropped = pq.read_table(run.dropped).to_pylist()
    assert len(kept) == done.kept
    assert len(dropped) == sum(done.reasons.values())
    assert [leaf.body["exchanges"] for leaf in leaves] == [sample["leaves"] for sample in kept]
    assert {leaf.body["transform"] for leaf in leaves} == {done.transform}


def test_filters_can_be_switched_off(tmp_path: Path):
    settings = Curate(duplicates=False, near_duplicates=0, truncated=False, refusals=False)
    rows = [row("same"), row("same"), row("x", finish="length"), row("I cannot help with that.")]
    assert {one.verdict.ruling for one in judged(rows, settings)} == {"keep"}
