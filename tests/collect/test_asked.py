"""Which teacher answers which prompt, templates, tools in prompt files, and prompts that stay on disk."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.collect import Asked, asked_of, load_prompts
from stillhouse.collect.prompts import fill
from stillhouse.recipe import Recipe, parse_recipe
from stillhouse.records import Message, Prompt


def recipe(source: Path, further: list[dict] | None = None, **changes: dict) -> Recipe:
    endpoint = "http://localhost/v1"
    tree = {
        "run": {"name": "a"},
        "teacher": {"model": "m", "endpoint": endpoint},
        "teachers": [{"endpoint": endpoint, **teacher} for teacher in further or []],
        "prompts": {"source": str(source)},
        "student": {"init": "x"},
        "evaluate": {"held_out": 0.0},
    }
    for table, keys in changes.items():
        tree[table] = {**tree.get(table, {}), **keys}
    return parse_recipe(tree)


def written(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def many(count: int, families: str = "abc") -> list[dict]:
    return [
        {"prompt": f"say {i}", "id": f"p{i}", "family": families[i % len(families)]} for i in range(count)
    ]


def test_each_prompt_goes_to_one_teacher_by_family_then_weight(tmp_path: Path):
    further = [{"model": "maths", "families": ["a"]}, {"model": "big", "weight": 3.0}]
    settings = recipe(written(tmp_path / "p.jsonl", many(3000)), further)
    prompts = load_prompts(settings).train
    first, maths, big = asked_of(settings, prompts)
    assert sorted(q.prompt_id for part in (first, maths, big) for q in part) == sorted(p.id for p in prompts)
    assert len(maths) == len(list(maths)) == 1000
    assert {p.family for p, _ in maths.pairs()} == {"a"}
    assert 2.6 < len(big) / len(first) < 3.5  # 2,000 draws at 3 to 1: four standard errors
    assert [list(part) for part in asked_of(settings, prompts)] == [list(p) for p in (first, maths, big)]


def test_a_longer_file_sends_old_prompts_where_they_went(tmp_path: Path):
    further = [{"model": "big", "weight": 1.0}]
    short = recipe(written(tmp_path / "s.jsonl", many(200)), further)
    longer = recipe(written(tmp_path / "l.jsonl", many(400)), further)
    for few, more in zip(
        asked_of(short, load_prompts(short).train), asked_of(longer, load_prompts(longer).train), strict=True
    ):
        assert {q.prompt_id for q in few} <= {q.prompt_id for q in more}


def test_all_teachers_get_every_prompt_and_every_sample(tmp_path: Path):
    settings = recipe(
        written(tmp_path / "p.jsonl", many(9)), [{"model": "b"}], collect={"teachers": "all", "samples": 2}
    )
    for part in asked_of(settings, load_prompts(settings).train):
        assert Counter(q.sample_index for q in part) == {0: 9, 1: 9}
        assert len(part) == 18


def test_a_template_is_filled_from_the_columns_of_each_row(tmp_path: Path):
    rows = [{"question": "Why?", "topic": "{stars}", "n": 3}, {"question": "no topic"}]
    template = "On {topic} ({{{n}}}): {question}"
    loaded = load_prompts(recipe(written(tmp_path / "p.jsonl", rows), prompts={"template": template}))
    assert [p.messages[0].content for p in loaded.train] == ["On {stars} ({3}): Why?"]
    assert [b.reason for b in loaded.broken] == ["the template needs a column 'topic'"]


@given(st.dictionaries(st.sampled_from("ab"), st.text(max_size=9), min_size=2))
def test_nothing_in_a_row_is_taken_for_a_template(row: dict[str, str]):
    if not all(row.values()):
        with pytest.raises(KeyError):
            fill("{a}|{b}", row)
    else:
        assert fill("{a}|{{}}|{b}", row) == f"{row['a']}|{{}}|{row['b']}"


def test_tools_and_tool_messages_of_a_file_are_kept_whole(tmp_path: Path):
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    turns = [
        {"role": "user", "content": "go", "name": "ann"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "done", "tool_call_id": "c"},
    ]
    tool = {"type": "function", "function": {"name": "f"}}
    rows = [
        {"messages": turns, "tools": [tool]},
        {"messages": turns, "tools": json.dumps([tool])},
        {"messages": turns, "tools": "f"},
        {"messages": [{"role": "assistant", "content": None}, turns[0]]},
    ]
    loaded = load_prompts(recipe(written(tmp_path / "p.jsonl", rows)))
    first, second = loaded.train
    assert first.messages == second.messages
    assert json.loads(first.tools) == json.loads(second.tools) == [tool]
    assert first.messages[0] == Message("user", "go", '{"name":"ann"}')
    assert json.loads(first.messages[1].extra) == {"tool_calls": [call]}
    assert [b.place for b in loaded.broken] == ["p.jsonl:3", "p.jsonl:4"]


def test_own_prompts_may_be_a_plain_list():
    prompts = [Prompt("a", (Message("user", "x"),)), Prompt("b", (Message("user", "y"),))]
    assert [q.prompt_id for q in Asked(prompts, 2)] == ["a", "a", "b", "b"]


PEAK = """
import resource, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_asked import recipe
from stillhouse.collect import load_prompts
loaded = load_prompts(recipe(Path(sys.argv[1]), evaluate={"held_out": 0.1}))
assert sum(1 for _ in loaded.train) == len(loaded.train)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_ten_times_the_prompts_take_no_more_memory(tmp_path: Path):
    def peak(count: int) -> int:
        rows = [{"prompt": f"{i} " + "word " * 200} for i in range(count)]
        path = written(tmp_path / f"{count}.jsonl", rows)
        command = [sys.executable, "-c", PEAK, str(path), str(Path(__file__).parent)]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    assert peak(40_000) < 1.2 * peak(4_000)


def test_weights_hold_for_what_the_test_split_leaves(tmp_path: Path):
    settings = recipe(
        written(tmp_path / "p.jsonl", many(4000)),
        [{"model": "big", "weight": 9.0}],
        evaluate={"held_out": 0.1},
    )
    first, big = asked_of(settings, load_prompts(settings).train)
    assert 0.07 < len(first) / (len(first) + len(big)) < 0.13


def test_what_data_sets_hang_on_messages_is_not_sent(tmp_path: Path):
    turn = {"role": "user", "content": "hi", "hashed_ip": "ab12", "timestamp": "2024", "toxic": True}
    (prompt,) = load_prompts(recipe(written(tmp_path / "p.jsonl", [{"messages": [turn]}]))).train
    assert prompt.messages == (Message("user", "hi"),)


def test_a_test_prompt_that_is_left_out_keeps_nothing_from_training(tmp_path: Path):
    train = written(tmp_path / "a.jsonl", [{"prompt": "x", "id": "1"}, {"prompt": "y", "id": "2"}])
    test = written(tmp_path / "b.jsonl", [{"prompt": "z", "id": "1"}, {"prompt": "x", "id": "1"}])
    loaded = load_prompts(recipe(train, evaluate={"source": str(test)}))
    assert [p.id for p in loaded.train] == ["1", "2"]
    assert [(b.place, len(loaded.test)) for b in loaded.broken] == [("b.jsonl:2", 1)]
