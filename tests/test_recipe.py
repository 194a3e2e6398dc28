import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.errors import UsageError
from stillhouse.recipe import Recipe, load_recipe, parse_recipe, recipe_digest, recipe_schema

GOOD = """\
[run]
name = "a"

[teacher]
model = "embedded:desk"

[prompts]
source = "embedded:desk"

[student]
init = "embedded:base"

[train]
epochs = 2
"""


def parse(text: str) -> Recipe:
    return parse_recipe(tomllib.loads(text), text, "a.toml")


def test_a_typo_names_its_line_and_the_nearest_key():
    with pytest.raises(UsageError) as caught:
        parse(GOOD.replace("epochs", "epoch"))
    assert caught.value.what == "a.toml:14: unknown key `train.epoch`"
    assert caught.value.mend == "did you mean `epochs`?"
    assert caught.value.exit_code == 2


def test_a_mistyped_table_names_the_nearest_table():
    with pytest.raises(UsageError) as caught:
        parse(GOOD.replace("[train]", "[trian]"))
    assert caught.value.mend == "did you mean `train`?"
    assert ":13:" in caught.value.what


def test_a_typo_in_a_nested_table_is_found():
    text = GOOD + "[student.lora]\nrnak = 8\n"
    with pytest.raises(UsageError) as caught:
        parse(text)
    assert "student.lora.rnak" in caught.value.what
    assert caught.value.mend == "did you mean `rank`?"
    assert f":{text.splitlines().index('rnak = 8') + 1}:" in caught.value.what


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("epochs = 2", "epochs = 0", "train.epochs"),
        ("epochs = 2", 'epochs = "two"', "train.epochs"),
        ('name = "a"', 'name = "../a"', "run.name"),
        ('model = "embedded:desk"', 'model = "m"\nendpoint = "ftp://x"', "teacher.endpoint"),
    ],
)
def test_a_bad_value_is_named(old, new, named):
    with pytest.raises(UsageError, match=named):
        parse(GOOD.replace(old, new))


def test_a_missing_table_is_named():
    with pytest.raises(UsageError, match="`student` is missing"):
        parse(GOOD.replace('[student]\ninit = "embedded:base"\n', ""))


def test_broken_toml_and_missing_file(tmp_path: Path):
    path = tmp_path / "r.toml"
    path.write_text("[run\n")
    with pytest.raises(UsageError, match="not valid TOML"):
        load_recipe(path)
    with pytest.raises(UsageError, match="no recipe"):
        load_recipe(tmp_path / "none.toml")


def test_relative_paths_are_taken_from_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "p.jsonl").write_text("{}")
    path = tmp_path / "sub" / "r.toml"
    path.write_text(GOOD.replace('source = "embedded:desk"', 'source = "p.jsonl"'))
    monkeypatch.chdir(tmp_path)
    assert load_recipe(path).prompts.source == str(tmp_path / "sub" / "p.jsonl")


def test_the_digest_does_not_depend_on_order_or_spelled_out_defaults():
    reordered = "\n\n".join(reversed(GOOD.strip().split("\n\n")))
    spelled = GOOD + "weight_decay = 0.1\n"
    assert recipe_digest(parse(GOOD)) == recipe_digest(parse(reordered)) == recipe_digest(parse(spelled))
    assert recipe_digest(parse(GOOD)) != recipe_digest(parse(GOOD.replace("epochs = 2", "epochs = 3")))


def test_the_schema_forbids_unknown_keys_and_describes_the_tables():
    schema = recipe_schema()
    assert schema["additionalProperties"] is False
    assert set(schema["required"]) == {"run", "teacher", "prompts", "student"}


@given(st.text(max_size=30), st.text(max_size=30))
def test_no_key_whatever_crashes_the_reader(table, key):
    tree = tomllib.loads(GOOD)
    tree.setdefault(table, {})
    if isinstance(tree[table], dict):
        tree[table][key] = 1
    try:
        parse_recipe(tree, GOOD)
    except UsageError as error:
        shown = (error.what, error.mend)
        assert all(shown)
