"""Behavioural lineage: who answers like whom, beyond what chance and the controls explain."""

import gzip
import json
import math
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from crowd import PROMPTS, answers, crowd

from stillhouse.audit.lineage import behaviour, families
from stillhouse.audit.lineage.materials import align, answer_files, material, read_answers, subset
from stillhouse.errors import UsageError
from stillhouse.text import words

scipy_stats = pytest.importorskip("scipy.stats")


def panel(models, **more):
    rows = [
        (
            name,
            [_said(number, text, **more) for number, text in enumerate(texts)],
            0,
        )
        for name, texts in models.items()
    ]
    return align(rows)


def _said(number, text, expected=None):
    from stillhouse.audit.lineage.materials import Said

    return Said(f"prompt {number}", text, "", expected[number] if expected else None)


def verdict(models, level=0.05, related=None):
    return behaviour.compare_answers(panel(models), level, related)


def test_a_planted_student_is_found_and_says_in_what():
    others = crowd(18)
    teacher = answers("teacher")
    student = answers("student", of=teacher, share=0.4)
    found = verdict({"student": student, "teacher": teacher, **others})
    assert found.verdict == "supported"
    content = next(test for test in found.tests if test.name == "content")
    assert content.adjusted <= 0.05
    assert content.effect.low > 0.5
    assert content.control in others
    assert "every control" in found.why


def test_a_student_of_a_control_is_not_decided_and_the_control_is_named():
    others = crowd(18)
    student = answers("student", of=others["m7"], share=0.4)
    found = verdict({"student": student, "teacher": answers("teacher"), **others})
    assert found.verdict == "not decided"
    assert next(test for test in found.tests if test.name == "content").control == "m7"


def test_a_sibling_explains_the_student_as_well_unless_its_relation_is_stated():
    others = crowd(18)
    teacher = answers("teacher")
    others["sibling"] = answers("sibling", of=teacher, share=0.9)
    student = answers("student", of=others["sibling"], share=0.6)
    models = {"student": student, "teacher": teacher, **others}
    found = verdict(models)
    assert found.verdict == "not decided"
    assert "sibling" in found.why
    told = verdict(models, related={"teacher": ["maker"], "sibling": ["maker"]})
    assert told.verdict == "supported"
    assert told.facts["set_aside"] == ["sibling"]


def test_too_few_models_are_said_to_be_too_few():
    teacher = answers("teacher")
    student = answers("student", of=teacher, share=0.5)
    few = verdict({"student": student, "teacher": teacher, **crowd(4)}, level=0.01)
    assert few.verdict == "not decided"
    assert "more controls" in few.why
    with pytest.raises(UsageError, match="too few controls"):
        verdict({"student": student, "teacher": teacher, **crowd(1)})


def test_no_verdict_ever_says_innocent():
    found = verdict({"a": answers("a"), "b": answers("b"), **crowd(6)})
    assert found.verdict == "not decided"
    assert "innocen" not in found.why
    assert any("Not decided is not a finding" in limit for limit in found.limits)


def test_of_unrelated_models_no_more_pairs_are_accused_than_the_level_allows():
    """Every pair of crowds in which nobody learnt from anybody, in both directions."""
    accused = tried = 0
    for seed in range(3):
        models = crowd(14, seed)
        whole = panel(models)
        names, likeness = whole.names, behaviour.likenesses(whole)
        apart = behaviour.without_relation(names, {})
        for suspect in range(14):
            for teacher in range(14):
                if suspect == teacher:
                    continue
                controls = [m for m in range(14) if m not in (suspect, teacher)]
                tests = behaviour.judge(names, likeness, whole.groups, controls, apart, suspect, teacher)
                accused += any(test.adjusted <= 0.1 for test in tests)
                tried += 1
    assert accused / tried <= 0.1


def test_the_share_of_pairs_is_uniform_whoever_is_asked_about():
    """By models alone, over all pairs of one crowd: each p-value up to 1 comes about once."""
    whole = panel(crowd(12))
    mean = families.content(whole.texts).mean(axis=0)
    apart = behaviour.without_relation(whole.names, {})
    values = sorted(behaviour.among_pairs(mean, apart, a, b) for a in range(12) for b in range(12) if a < b)
    assert values == pytest.approx(np.arange(1, 67) / 66, abs=1e-9)


def test_the_test_over_prompts_is_scipys_exact_one_against_the_hardest_control():
    rng = np.random.default_rng(3)
    teacher = rng.normal(0.6, 1, 10)
    controls = rng.normal(0, 1, (10, 3))
    groups = np.arange(10)
    expected = [
        scipy_stats.permutation_test(
            (teacher, control),
            lambda x, y: np.sum(x - y),
            permutation_type="samples",
            alternative="greater",
            n_resamples=np.inf,
        ).pvalue
        for control in controls.T
    ]
    # Sums are rounded to a 20,000th, which moves a permutation or two of 1,024.
    assert behaviour.nearer_than_all(teacher, controls, groups) == pytest.approx(max(expected), abs=0.003)


def test_the_test_over_prompts_is_calibrated_and_prompts_of_a_group_count_as_one():
    rng = np.random.default_rng(5)
    reached = alone = 0
    for _ in range(400):
        shared = np.repeat(rng.normal(size=20), 4)
        gaps = (shared + 0.3 * rng.normal(size=80)).astype(np.float32)
        zero = np.zeros((80, 1), dtype=np.float32)
        reached += behaviour.nearer_than_all(gaps, zero, np.repeat(np.arange(20), 4)) <= 0.05
        alone += behaviour.nearer_than_all(gaps, zero, np.arange(80)) <= 0.05
    assert reached / 400 <= 0.08
    assert alone / 400 > 0.12


def test_order_and_names_of_models_change_nothing():
    others = crowd(8)
    student, teacher = answers("s", of=others["m1"], share=0.2), answers("t")
    first = verdict({"s": student, "t": teacher, **others})
    turned = {f"x{name}": text for name, text in reversed(others.items())}
    second = verdict({"s": student, "t": teacher, **turned})
    assert [test.p for test in first.tests] == pytest.approx([test.p for test in second.tests], rel=1e-4)


def test_what_all_say_tells_nobody_apart_and_rare_phrases_do():
    common = "the answer is as everybody knows"
    texts = [[f"{common} zebra quagga", f"{common} zebra quagga", f"{common} horse", f"{common} mule"]]
    likeness = families.content(texts)[0]
    assert likeness[0, 1] == pytest.approx(1.0)
    assert likeness[0, 2] == pytest.approx(likeness[0, 3])
    assert likeness[0, 2] < 0.2


TOLD = (
    "the cat sat on the mat",
    "The cat sat, the cat ran",
    "",
    "one",
    "caf\u00e9 the cat",
    "the cat sat on the mat",
)


def cosines(features):
    used = Counter(feature for each in features for feature in each)
    weight = {feature: math.log((len(features) + 1) / count) for feature, count in used.items()}
    norm = [math.sqrt(sum(weight[one] ** 2 for one in each)) for each in features]
    dot = [[sum(weight[one] ** 2 for one in a & b) for b in features] for a in features]
    return np.array(dot) / np.maximum(np.outer(norm, norm), 1e-9)


def test_likeness_in_content_and_in_ends_is_the_cosine_that_it_is_said_to_be():
    said = [words(text) for text in TOLD]
    runs = [{tuple(each[at : at + n]) for n in (1, 2, 3) for at in range(len(each) - n + 1)} for each in said]
    ends = [
        {("first", *each[: n + 1]) for n in range(min(8, len(each)))}
        | {("last", *each[-n - 1 :]) for n in range(min(8, len(each)))}
        | {("in first", *run) for run in pairwise(each[:8])}
        | {("in last", *run) for run in pairwise(each[-8:])}
        for each in said
    ]
    two = ~np.eye(len(TOLD), dtype=bool)  # nobody asks how alike a model is to itself
    for family, features in ((families.content, runs), (families.openings, ends)):
        np.testing.assert_allclose(family([TOLD])[0][two], cosines(features)[two], atol=1e-6)


def test_capitals_are_counted_in_any_script():
    plain, accents = ("abc def Ghi", "abc def ghi"), ("abc def \u00c9hi", "abc def \u00e9hi")
    np.testing.assert_allclose(families.style([plain]), families.style([accents]), atol=1e-6)


def test_sharing_a_wrong_answer_counts_and_sharing_the_right_one_does_not():
    texts = [["seven", "Seven ", "five", "five", "nine"], ["a", "b", "c", "d", "e"]]
    likeness = families.errors(texts, ["five", None])
    assert likeness[0, 0, 1] == pytest.approx(np.log(5 / 2))
    assert likeness[0, 2, 3] == 0
    assert likeness[0, 0, 4] == 0
    assert not likeness[1].any()


def test_errors_are_tested_where_right_answers_are_known():
    models = crowd(4)
    right = ["never said"] * PROMPTS
    found = behaviour.compare_answers(panel(models, expected=right), 0.05)
    assert "errors" in {test.name for test in found.tests}
    assert "errors" not in {test.name for test in verdict(models).tests}


def test_refusals_speak_only_where_the_panel_is_divided():
    no, yes = "I'm sorry, but I can't help with that.", "Here is how it is done: with flour."
    likeness = families.refusals([[no, no, yes, yes], [yes, yes, yes, yes]])
    assert likeness[0, 0, 1] == pytest.approx(1)
    assert likeness[0, 0, 2] == pytest.approx(-1)
    assert not likeness[1].any()


def test_files_are_read_as_they_come_and_what_is_broken_is_counted(tmp_path):
    lines = [
        json.dumps({"prompt": "a", "answer": "1", "group": "g"}),
        "not json",
        json.dumps({"prompt": "a", "answer": "2"}),
        json.dumps({"instruction": "b", "output": "3"}),
        json.dumps({"prompt": "c"}),
    ]
    (tmp_path / "one.jsonl").write_text("\n".join(lines))
    rows, broken = read_answers(tmp_path / "one.jsonl")
    assert [(row.prompt, row.answer, row.group) for row in rows] == [("a", "1", "g"), ("b", "3", "")]
    assert broken == 3
    (tmp_path / "two.json.gz").write_bytes(
        gzip.compress(json.dumps([{"prompt": "b", "answer": "4"}]).encode())
    )
    other, _ = read_answers(tmp_path / "two.json.gz")
    whole = align([("one", rows, broken), ("two", other, 0)])
    assert whole.prompts == ("b",)
    assert whole.texts == (("3", "4"),)
    assert whole.alone == (4, 0)
    assert [file.name for file in answer_files(tmp_path)] == ["one.jsonl", "two.json.gz"]
    assert material("control", tmp_path / "two.json.gz").name == "two"


def test_files_without_a_prompt_in_common_and_files_that_are_none_are_refused(tmp_path):
    with pytest.raises(UsageError, match="no prompt was answered by all"):
        align([("a", read(tmp_path, "x", "1"), 0), ("b", read(tmp_path, "y", "2"), 0)])
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(UsageError, match="cannot read"):
        read_answers(tmp_path / "bad.json")
    with pytest.raises(UsageError, match="cannot read"):
        read_answers(tmp_path / "none.jsonl")


def read(folder, prompt, answer):
    (folder / f"{prompt}.jsonl").write_text(json.dumps({"prompt": prompt, "answer": answer}))
    return read_answers(folder / f"{prompt}.jsonl")[0]


def test_a_part_of_the_prompts_keeps_groups_together():
    whole = panel(crowd(3))
    part = subset(whole, [5, 1])
    assert part.prompts == ("prompt 5", "prompt 1")
    assert part.texts[0] == whole.texts[5]


MANY = Path(__file__).parents[2].parent / "shared/data/many_models"


@pytest.mark.skipif(not MANY.is_dir(), reason="data sets are not part of the project")
def test_a_real_student_is_found_among_real_models_and_a_stranger_is_not():
    """Of one maker's two models the small one was taught by the large one, as the maker states."""
    files = [file for file in sorted(MANY.glob("*.json.gz")) if "lama" not in file.name][::3]
    small, large = (MANY / f"Meta-Llama-3.1-{size}-Instruct-Turbo.json.gz" for size in ("8B", "405B"))

    def asked(suspect, teacher, controls):
        paths = [suspect, teacher, *controls]
        whole = align([(file.name, *read_answers(file)) for file in paths])
        return behaviour.compare_answers(subset(whole, range(0, len(whole.prompts), 6)), 0.05)

    found = asked(small, large, files)
    assert found.verdict == "supported", found.why
    assert next(test for test in found.tests if test.name == "content").adjusted <= 0.05
    assert asked(files[0], large, files[1:]).verdict == "not decided"
