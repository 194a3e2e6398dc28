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
    assert [b.place for b in loaded.broken] == [f"p.jsonl:{n}" for n in (2, 3, 4, 5, 7, 10, 9)]
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
    with pytest.raises(UsageError, match=r"cannot read p\.docx"):
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
    first, *_ = sets[0].train
    assert first.messages == (Message("user", rows[int(first.reference or 0)]["prompt"]),)
    for other in sets:
        assert (len(other.train), len(other.test)) == (len(list(other.train)), len(list(other.test)))
        assert [*other.train, *other.test] == [*sets[0].train, *sets[0].test]


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


def test_half_characters_and_wrong_types_are_broken_rows(tmp_path: Path):
    lines = [
        '{"prompt": "good"}',
        '{"prompt": "half \\ud83d"}',
        '{"prompt": "x", "group": "\\ud83d"}',
        '{"prompt": "x", "reference": {"a": "\\udc00"}}',
        '{"prompt": "x", "id": "\\ud83d"}',
        '{"\\ud83d": "x"}',
        '{"prompt": "x", "scorer": ["exact"]}',
        '{"prompt": "x", "scorer": 0}',
        '{"prompt": 7}',
        "[" * 20_000,
    ]
    loaded = load_prompts(recipe(write(tmp_path / "p.jsonl", lines), "held_out = 0.0"))
    assert [p.messages[0].content for p in loaded.train] == ["good"]
    assert [b.place for b in loaded.broken] == [f"p.jsonl:{n}" for n in range(2, 11)]
    assert "half a character" in loaded.broken[0].reason
    assert "scorer" in loaded.broken[5].reason
    "".join(name_broken(loaded.broken)).encode()  # what is printed can be printed


def test_dates_decimals_and_bytes_are_references(tmp_path: Path):
    from datetime import date
    from decimal import Decimal

    values = {
        "date": pa.array([date(2026, 11, 21)]),
        "decimal": pa.array([Decimal("12.50")]),
        "bytes": pa.array([b"caf\xc3\xa9"]),
        "nested": pa.array([{"on": date(2026, 11, 21), "n": 0}]),
        "zero": pa.array([0]),
        "false": pa.array([False]),
    }
    wanted = ["2026-11-21", "12.50", "café", '{"on": "2026-11-21", "n": 0}', "0", "false"]
    for (name, column), text in zip(values.items(), wanted, strict=True):
        path = tmp_path / f"{name}.parquet"
        pq.write_table(pa.table({"prompt": ["q"], "reference": column}), path)
        (prompt,) = load_prompts(recipe(path, "held_out = 0.0")).train
        assert prompt.reference == text


def test_a_value_without_a_python_form_breaks_its_row_alone(tmp_path: Path):
    raw = pa.array([b"one", b"\xff\xfe", b"three"], pa.binary())
    texts = pa.StringArray.from_buffers(3, raw.buffers()[1], raw.buffers()[2])
    pq.write_table(pa.table({"prompt": texts}), tmp_path / "p.parquet")
    loaded = load_prompts(recipe(tmp_path / "p.parquet", "held_out = 0.0"))
    assert [p.messages[0].content for p in loaded.train] == ["one", "three"]
    assert [b.place for b in loaded.broken] == ["p.parquet row 1"]
    pq.write_table(pa.table({"prompt": ["a", "b"], "reference": [b"fine", b"\xff"]}), tmp_path / "b.parquet")
    loaded = load_prompts(recipe(tmp_path / "b.parquet", "held_out = 0.0"))
    assert (len(loaded.train), len(loaded.broken)) == (1, 1)


def test_long_torn_and_undecodable_csv_rows(tmp_path: Path):
    path = tmp_path / "p.csv"
    long = "x" * 300_000
    path.write_bytes(f"prompt,group\n{long},a\n".encode() + b"caf\xe9,b\nq, with a comma,c\nlast,d\n")
    loaded = load_prompts(recipe(path, "held_out = 0.0"))
    assert [len(p.messages[0].content) for p in loaded.train] == [300_000, 4]
    assert [b.place for b in loaded.broken] == ["p.csv:3", "p.csv:4"]
    assert "not UTF-8" in loaded.broken[0].reason
    assert "more cells" in loaded.broken[1].reason


def test_a_row_that_the_csv_reader_refuses_is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import csv

    before = csv.field_size_limit()
    monkeypatch.setattr("stillhouse.collect.sources.LONGEST_CELL", 100)
    try:
        csv.field_size_limit(100)
        path = write(tmp_path / "p.csv", ["prompt", "one", "y" * 200, "two"])
        loaded = load_prompts(recipe(path, "held_out = 0.0"))
    finally:
        csv.field_size_limit(before)
    assert [p.messages[0].content for p in loaded.train] == ["one", "two"]
    assert [b.place for b in loaded.broken] == ["p.csv:3"]


def complete(error: UsageError) -> bool:
    return bool(error.what and error.why and error.mend)


def test_a_folder_as_source_says_so(tmp_path: Path):
    with pytest.raises(UsageError) as caught:
        load_prompts(recipe(tmp_path))
    assert caught.value.why == "it is a folder"
    assert complete(caught.value)


@pytest.mark.parametrize("name", ["p.jsonl", "p.json", "p.csv", "p.parquet"])
def test_a_file_that_cannot_be_read_is_an_error_for_people(tmp_path: Path, name: str):
    path = tmp_path / name
    path.symlink_to("/proc/self/mem")  # opens, and then fails to read
    with pytest.raises(UsageError, match="cannot read") as caught:
        load_prompts(recipe(path))
    assert complete(caught.value)


def test_a_parquet_file_that_is_damaged_in_the_middle_is_an_error_for_people(tmp_path: Path):
    path = tmp_path / "p.parquet"
    texts = [f"question {i * 7919}" for i in range(4000)]
    pq.write_table(pa.table({"prompt": texts}), path, row_group_size=1000, compression="zstd")
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 200] = bytes(200)
    path.write_bytes(data)
    with pytest.raises(UsageError, match="cannot read") as caught:
        load_prompts(recipe(path))
    assert complete(caught.value)


def test_a_data_set_that_breaks_off_is_an_error_for_people(monkeypatch: pytest.MonkeyPatch):
    import sys
    from types import SimpleNamespace

    def rows(*_: object, **__: object):
        yield {"prompt": "one"}
        raise ConnectionError("reset by peer")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=rows))
    with pytest.raises(UsageError, match="cannot load hf:some/set") as caught:
        load_prompts(recipe("hf:some/set"))
    assert caught.value.why == "after 1 rows: ConnectionError: reset by peer"
    assert complete(caught.value)


def test_zero_and_false_are_values(tmp_path: Path):
    rows = [{"prompt": f"q {i}", "id": i, "group": i % 2, "family": False, "reference": 0} for i in range(4)]
    loaded = load_prompts(recipe(write(tmp_path / "p.jsonl", list(map(json.dumps, rows))), "held_out = 0.0"))
    assert [p.id for p in loaded.train] == ["0", "1", "2", "3"]
    assert [p.group for p in loaded.train] == ["0", "1", "0", "1"]
    assert {p.family for p in loaded.train} == {"false"}
    assert {p.reference for p in loaded.train} == {"0"}
    absent = [{"prompt": "q", "id": "", "group": None, "family": "", "reference": "", "scorer": ""}]
    path = write(tmp_path / "a.jsonl", list(map(json.dumps, absent)))
    (prompt,) = load_prompts(recipe(path, "held_out = 0.0")).train
    assert (prompt.group, prompt.family, prompt.reference, prompt.scorer) == ("", "default", None, None)
    assert prompt.id.startswith("0000000-")


def test_no_training_prompt_left_is_an_error(tmp_path: Path):
    path = write(tmp_path / "p.jsonl", [json.dumps({"prompt": f"q {i}"}) for i in range(5)])
    with pytest.raises(UsageError, match="no training prompt is left") as caught:
        load_prompts(recipe(path, f'source = "{path}"'))
    assert "all 5 are also test prompts" in caught.value.why
    with pytest.raises(UsageError, match="no training prompt is left") as caught:
        load_prompts(recipe(path, "held_out = 1.0"))
    assert complete(caught.value)


def test_a_test_source_without_a_usable_prompt_is_an_error(tmp_path: Path):
    path = write(tmp_path / "p.jsonl", ['{"prompt": "q"}'])
    test = write(tmp_path / "t.jsonl", ['{"question": "q"}'])
    with pytest.raises(UsageError, match=r"no usable prompt in .*t\.jsonl") as caught:
        load_prompts(recipe(path, f'source = "{test}"'))
    assert "t.jsonl:1" in caught.value.why


def test_conversations_are_compared_by_their_words_and_roles():
    from stillhouse.text import conversation

    asked = [("system", "Be brief."), ("user", "Why?")]
    assert conversation(asked) == conversation([("system", " be  BRIEF."), ("user", "why?\n")])
    assert conversation(asked) != conversation([("user", "Be brief."), ("user", "Why?")])
    assert conversation(asked) != conversation([("system", "Be brief.\x1e user\x1fWhy?")])
