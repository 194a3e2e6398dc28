import json
import tomllib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillhouse.collect.prompts import NAMED, load_prompts, name_broken
from stillhouse.errors import UsageError
from stillhouse.recipe import Recipe, parse_recipe
from stillhouse.records import Message


def recipe(source: Path | str, evaluate: str = "") -> Recipe:
    text = f"""
        [run]
        name = "a"
        [teacher]
        model = "m"
        endpoint = "http://localhost/v1"
        [prompts]
        source = "{source}"
        [student]
        init = "x"
        [evaluate]
        {evaluate}
    """
    return parse_recipe(tomllib.loads(text))


def write(path: Path, lines: list[str]) -> Path:
    path.write_text("\n".join(lines) + "\n")
    return path


def test_broken_lines_are_named_and_counted_and_the_rest_goes_on(tmp_path: Path):
    lines = [
        '{"prompt": "one"}',
        "{broken",
        '{"prompt": ""}',
        '{"text": "no prompt column"}',
        '["a list"]',
        '{"messages": [{"role": "user", "content": "two"}]}',
        '{"messages": [{"role": "wizard", "content": "x"}]}',
        '{"prompt": "x", "id": "same"}',
        '{"prompt": "y", "id": "same"}',
        '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}',
    ]
    loaded = load_prompts(recipe(write(tmp_path / "p.jsonl", lines), "held_out = 0.0"))
    assert [p.messages[-1].content for p in loaded.train] == ["one", "two", "x"]
    assert [b.place for b in loaded.broken] == [f"p.jsonl:{n}" for n in (2, 3, 4, 5, 7, 9, 10)]
    assert "not a JSON line" in loaded.broken[0].reason
    assert "columns: text" in loaded.broken[2].reason


def test_many_broken_lines_are_not_all_printed(tmp_path: Path):
    lines = ["{", *['{"prompt": "x"}'], *["{"] * 50]
    named = name_broken(load_prompts(recipe(write(tmp_path / "p.jsonl", lines))).broken)
    assert len(named) == NAMED + 1
    assert named[-1] == f"and {51 - NAMED} more"


@pytest.mark.parametrize("content", ["", "\n\n", "{\n"])
def test_a_file_without_a_prompt_is_an_error(tmp_path: Path, content: str):
    path = tmp_path / "p.jsonl"
    path.write_text(content)
    with pytest.raises(UsageError, match="no usable prompt"):
        load_prompts(recipe(path))


def test_missing_and_unknown_files(tmp_path: Path):
    with pytest.raises(UsageError, match="no prompt file"):
        load_prompts(recipe(tmp_path / "none.jsonl"))
    with pytest.raises(UsageError, match="cannot read p.docx"):
        load_prompts(recipe(write(tmp_path / "p.docx", ["x"])))


def test_every_format_gives_the_same_prompts(tmp_path: Path):
    rows = [
        {"prompt": f'say "{i}", é', "family": f"f{i % 2}", "group": f"g{i}", "reference": str(i)}
        for i in range(9)
    ]
    write(tmp_path / "p.jsonl", [json.dumps(row) for row in rows])
    (tmp_path / "p.json").write_text(json.dumps(rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "p.parquet")
    import csv

    with (tmp_path / "p.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    sets = [load_prompts(recipe(tmp_path / f"p.{kind}")) for kind in ("jsonl", "json", "parquet", "csv")]
    assert sets[0].train[0].messages == (
        Message("user", rows[int(sets[0].train[0].reference or 0)]["prompt"]),
    )
    assert all(other == sets[0] for other in sets)


def test_what_is_tested_is_never_learned_from(tmp_path: Path):
    train = write(tmp_path / "p.jsonl", [json.dumps({"prompt": f"Question {i}"}) for i in range(50)])
    test = write(tmp_path / "t.jsonl", [json.dumps({"prompt": f"question  {i}"}) for i in range(10)])
    loaded = load_prompts(recipe(train, f'source = "{test}"'))
    assert len(loaded.test) == 10
    assert len(loaded.train) == 40
    assert loaded.leaked == 10


def test_groups_are_held_out_whole_and_a_longer_file_keeps_its_split(tmp_path: Path):
    rows = [json.dumps({"prompt": f"q {i}", "group": f"g{i % 40}"}) for i in range(400)]
    short = load_prompts(recipe(write(tmp_path / "a.jsonl", rows[:200]), "held_out = 0.3"))
    longer = load_prompts(recipe(write(tmp_path / "b.jsonl", rows), "held_out = 0.3"))
    assert {p.group for p in longer.test}.isdisjoint({p.group for p in longer.train})
    assert {p.group for p in short.test} == {p.group for p in longer.test}
    assert 0.1 < len(longer.test) / 400 < 0.5


@settings(max_examples=60, deadline=None)
@given(st.lists(st.binary(max_size=60), max_size=8))
def test_no_bytes_whatever_crash_the_reader(tmp_path_factory: pytest.TempPathFactory, lines: list[bytes]):
    path = tmp_path_factory.mktemp("h") / "p.jsonl"
    path.write_bytes(b'{"prompt": "good"}\n' + b"\n".join(lines))
    loaded = load_prompts(recipe(path, "held_out = 0.0"))
    full = [line for line in path.read_bytes().split(b"\n") if line.strip()]
    assert len(loaded.train) + len(loaded.broken) == len(full)
