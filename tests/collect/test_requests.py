"""What a teacher is asked when it is to write prompts, and what is read out of its reply."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.collect.requests import (
    INSTRUCTIONS,
    PERSONAS,
    WANTED,
    WAYS,
    by_family,
    read_list,
    read_means,
    request,
)
from stillhouse.errors import UsageError
from stillhouse.recipe import Grow
from stillhouse.records import Message, Prompt

SEEDS = [
    Prompt(f"p{i}", (Message("user", f"question number {i} about {{things}}"),), family=f"f{i % 3}")
    for i in range(30)
]


def growing(method: str, **more: object) -> Grow:
    return Grow.model_validate({"method": method, "count": 9, **more})


@pytest.mark.parametrize("method", INSTRUCTIONS)
def test_a_request_shows_seeds_of_one_family_and_follows_from_its_number(method):
    means, families = read_means(growing(method)), by_family(SEEDS)
    made = [request(number, families, means, "7") for number in range(40)]
    assert made == [request(number, families, means, "7") for number in range(40)]
    assert made != [request(number, families, means, "8") for number in range(40)]
    assert {one.seeds[0].family for one in made} == {"f0", "f1", "f2"}
    for one in made:
        assert len({seed.family for seed in one.seeds}) == 1
        assert len({seed.id for seed in one.seeds}) == len(one.seeds)
        for seed in one.seeds:
            assert seed.messages[0].content in one.text  # braces and all
            assert seed.messages[0].content not in one.echo
        assert f"array of {WANTED[method]} strings" in one.text
        assert ("{" in one.echo) is False
        assert sum(way in one.text for way in WAYS) == (WANTED[method] if method == "evolve" else 0)
        assert sum(persona in one.text for persona in PERSONAS) == (method == "personas")


def test_a_lone_seed_is_enough():
    one = request(0, by_family(SEEDS[:1]), read_means(growing("self_instruct")), "7")
    assert [seed.id for seed in one.seeds] == ["p0"]


def test_ones_own_instructions_and_people_take_the_place_of_the_shipped(tmp_path: Path):
    (tmp_path / "a.txt").write_text("As {persona} write {count} like:\n{examples}\nand {{braces}}")
    (tmp_path / "b.txt").write_text("Other words: {examples}")
    (tmp_path / "people.txt").write_text("a diver\n\n  a judge \n")
    (tmp_path / "people.csv").write_text("persona\na diver\na judge\n")
    for people in ("people.txt", "people.csv"):
        means = read_means(
            growing(
                "personas",
                personas=str(tmp_path / people),
                template=[str(tmp_path / "a.txt"), str(tmp_path / "b.txt")],
            )
        )
        assert means.personas == ("a diver", "a judge")
        texts = [request(number, by_family(SEEDS), means, "7").text for number in range(20)]
        assert all("JSON array of 4 strings" in text for text in texts)
        assert {text.split()[0] for text in texts} == {"As", "Other"}
        assert any("As a diver write 4 like" in text for text in texts)
        assert not any("{{" in text for text in texts)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("Write {count}", "shows no examples"),
        ("{examples} {person}", "asks for 'person'"),
        (None, "cannot read"),
    ],
)
def test_a_template_that_cannot_work_is_refused_before_anybody_is_asked(tmp_path: Path, text, says):
    path = tmp_path / "t.txt"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UsageError, match=says):
        read_means(growing("self_instruct", template=str(path)))


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("p.txt", "\n", "nobody"),
        ("p.jsonl", '{"who": "x"}\n', "describes no person"),
        ("q.txt", None, "cannot"),
    ],
)
def test_a_file_of_people_is_read_whole_or_not_at_all(tmp_path: Path, name, text, says):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(UsageError, match=says):
        read_means(growing("personas", personas=str(tmp_path / name)))


@pytest.mark.parametrize(
    ("reply", "found"),
    [
        ('["a", "b"]', ["a", "b"]),
        (' \n["a\\nb"]\n', ["a\nb"]),
        ('```json\n["a"]\n```', ["a"]),
        ("1. a\n2. b [x]", ["a", "b [x]"]),
        ("  1) a\n\n  2) b", ["a", "b"]),
        ('["a", 1]', None),
        ('["a"', None),
        ('["a"] I hope this helps', None),
        ('Here you are: ["a"]', None),
        ("Here you are:\n1. a", None),
        ("1. a\n3. b", None),
        ("2. a", None),
        ("1. a\nb", None),
        ("[]", None),
        ("", None),
        ('{"1": "a"}', None),
        ("[" * 10_000, None),
    ],
)
def test_only_a_list_and_nothing_else_is_read(reply, found):
    assert read_list(reply) == found


texts = st.text(st.characters(codec="utf-8"), max_size=40)


@given(st.lists(texts, min_size=1, max_size=6), st.sampled_from(["", "```json\n", "```\n"]))
def test_every_array_of_texts_is_read_as_it_was_written(items, fence):
    reply = fence + json.dumps(items) + ("\n```" if fence else "")
    assert read_list(reply) == items


@given(st.lists(texts.map(lambda text: " ".join(text.split())).filter(bool), min_size=1, max_size=6))
def test_every_numbered_list_of_lines_is_read_as_it_was_written(items):
    reply = "\n".join(f"{number}. {item}" for number, item in enumerate(items, 1))
    assert read_list(reply) == items


@given(st.one_of(st.text(), st.recursive(st.none() | st.text() | st.floats(), st.lists).map(json.dumps)))
def test_no_reply_whatever_breaks_the_reader(reply):
    found = read_list(reply)
    assert found is None or (found and all(isinstance(item, str) for item in found))
