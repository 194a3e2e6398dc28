"""A model that a student answers and its teacher stands behind: one whole answer of one, whatever fails."""

import json
import time
from datetime import UTC, datetime

import pytest
from behind import USAGE
from cascade_house import ANSWER, STREAMED, STUDENT, TEACHER, Student, calibration, cascade
from gate import HELLO, SECRET, ask, told
from teller import Teller

from stillhouse.cascade.calibration import written
from stillhouse.errors import UsageError
from stillhouse.gateway.cascading import opened
from stillhouse.gateway.store.events import Events
from stillhouse.guard.config import Cascade
from stillhouse.guard.reading import check, read_config
from stillhouse.watermark import Selection, account_key, new_key, write_key


@pytest.fixture(scope="module")
def student():
    with Student() as server:
        yield server


def events(made):
    kept = Events(made.config.store)
    try:
        return kept.newest(most=1000)
    finally:
        kept.close()


@pytest.mark.parametrize("stream", [False, True])
def test_a_sure_answer_is_the_students_and_an_unsure_one_the_teachers(tmp_path, student, behind, stream):
    models = {"sure": ("sure", "whole"), "unsure": ("unsure", "whole")}
    with cascade(tmp_path, student, behind, models) as made:
        behind.seen.clear()
        first = ask(made, "sure", stream)
        assert told(first) == (ANSWER, STUDENT, True)
        assert first.headers["x-stillhouse-cascade"] == "student; sure"
        assert "logprob" not in first.text.replace('"logprobs":null', "")
        assert not behind.seen
        second = ask(made, "unsure", stream)
        assert told(second) == (STREAMED if stream else TEACHER, USAGE, True)
        assert second.headers["x-stillhouse-cascade"] == "teacher; unsure"
        assert made.stop() == 0
    kept = {event.model: event for event in events(made)}
    assert (kept["sure"].input_tokens, kept["sure"].output_tokens) == (5, 2)
    assert kept["sure"].upstream == student.url
    both = (5 + USAGE["prompt_tokens"], 2 + USAGE["completion_tokens"])
    assert (kept["unsure"].input_tokens, kept["unsure"].output_tokens) == both
    assert kept["unsure"].upstream == behind.url
    assert all(event.ended == "whole" and event.counted == "told" for event in kept.values())


FAULTS = ["close", "half", "no-json", "status-500", "status-429", "status-400", "hang", "silent"]


@pytest.mark.parametrize("stream", [False, True])
def test_whatever_the_student_does_wrong_the_teachers_answer_comes_whole_and_alone(
    tmp_path, student, behind, stream
):
    with cascade(tmp_path, student, behind, {name: (name, "whole") for name in FAULTS}) as made:
        for name in FAULTS:
            said = ask(made, name, stream)
            assert told(said) == (STREAMED if stream else TEACHER, USAGE, True), name
            why = "not_judged" if name == "silent" else "student_failed"
            assert said.headers["x-stillhouse-cascade"] == f"teacher; {why}", name
        assert made.stop() == 0
    counted = {event.model: event.counted for event in events(made)}
    assert counted["status-500"] == "told"
    assert counted["hang"] == "bound"  # what a server that is silent took is not known


DOWN = ["close", "half", "no-json", "status-500", "status-429", "status-401", "hang"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_teacher_that_is_down_leaves_the_students_answer_marked(tmp_path, student, behind, stream):
    models = {name: ("unsure", name) for name in [*DOWN, "status-400"]}
    with cascade(tmp_path, student, behind, models, teacher_down="student") as made:
        for name in DOWN:
            if stream and name in ("half", "no-json"):
                continue
            said = ask(made, name, stream)
            assert said.status_code == 200, name
            assert told(said) == (ANSWER, STUDENT, True), name
            assert said.headers["x-stillhouse-cascade"] == "student; teacher_down", name
        refused = ask(made, "status-400", stream)  # the teacher answers: that the request is wrong
        assert refused.status_code == 400
        assert refused.json()["error"]["code"] == "odd"


@pytest.mark.parametrize("stream", [False, True])
def test_a_teacher_that_is_down_is_an_error_where_that_is_declared(tmp_path, student, behind, stream):
    with cascade(tmp_path, student, behind, {name: ("unsure", name) for name in DOWN}) as made:
        for name in DOWN:
            said = ask(made, name, stream)
            assert said.status_code >= 429, name
            assert ANSWER not in said.text


@pytest.mark.parametrize("name", ["cut", "stall", "late-error", "no-end"])
def test_a_teacher_that_breaks_off_in_the_middle_is_never_joined_by_the_student(
    tmp_path, student, behind, name
):
    with cascade(tmp_path, student, behind, {name: ("unsure", name)}, teacher_down="student") as made:
        said = ask(made, name, stream=True)
        assert said.text.startswith("data: ")
        assert "student" not in said.text
        assert "w4" in said.text
        assert '"error"' in said.text


def test_what_no_calibration_speaks_of_goes_to_the_teacher_at_once(tmp_path, student, behind):
    with cascade(tmp_path, student, behind, {"m": ("sure", "whole")}) as made:
        student.seen.clear()
        for more in (
            {"n": 2},
            {"temperature": 0.7},
            {"tools": [{"type": "function", "function": {"name": "f"}}]},
            {"logprobs": True},
        ):
            said = ask(made, "m", **more)
            assert said.status_code == 200
            assert said.headers["x-stillhouse-cascade"] == "teacher; not_judged"
        parts = [{"role": "user", "content": [{"type": "text", "text": "hello"}]}]
        assert ask(made, "m", messages=parts).headers["x-stillhouse-cascade"] == "teacher; not_judged"
        assert not student.seen


def test_where_nothing_could_be_promised_nothing_is_kept(tmp_path, student, behind):
    with cascade(tmp_path, student, behind, {"m": ("sure", "whole")}, threshold=None) as made:
        assert ask(made, "m").headers["x-stillhouse-cascade"] == "teacher; nothing_promised"


def test_a_limit_has_room_for_both_and_counts_both(tmp_path, student, behind):
    with cascade(tmp_path, student, behind, {"m": ("unsure", "whole")}) as made:
        first = ask(made, "m", max_tokens=50)
        left = int(first.headers["x-ratelimit-remaining-output-tokens"])
        assert left == 10**6 - 2 * 50
        second = ask(made, "m", max_tokens=50)
        took = STUDENT["completion_tokens"] + USAGE["completion_tokens"]
        assert int(second.headers["x-ratelimit-remaining-output-tokens"]) == left - took


def figures(made):
    with made.client(SECRET) as client:
        text = client.get(made.url.removesuffix("/v1") + "/metrics").text
    lines = [line.split() for line in text.splitlines() if line.startswith("stillhouse_guard_cascade")]
    return {name: float(value) for name, value in lines}


def test_audited_answers_are_compared_and_an_alarm_defers_everything(tmp_path, student, behind):
    with cascade(tmp_path, student, behind, {"m": ("sure", "whole")}, audit=1.0) as made:
        said = ask(made, "m", stream=True)
        assert said.headers["x-stillhouse-cascade"] == "teacher; audit"
        seen = figures(made)
        assert seen['stillhouse_guard_cascade_agreement{model="m"}'] == 0.0
        for _ in range(20):
            said = ask(made, "m")
        assert said.headers["x-stillhouse-cascade"] == "teacher; traffic_changed"
        seen = figures(made)
        assert seen['stillhouse_guard_cascade_alarm{model="m"}'] == 1.0
        assert seen['stillhouse_guard_cascade_labels_needed{model="m"}'] == 299
        made.reload()  # the calibration is the same: the alarm stays
        time.sleep(0.5)
        assert ask(made, "m").headers["x-stillhouse-cascade"] == "teacher; traffic_changed"
        assert made.stop() == 0
    assert "cascade alarm" in (tmp_path / "log").read_text()


def test_prompts_of_another_kind_raise_an_alarm_and_are_deferred_and_familiar_ones_are_not(
    tmp_path, student, behind
):
    strange = [{"role": "user", "content": "translate quartz fjords into verse"}]
    with cascade(tmp_path, student, behind, {"m": ("sure", "whole")}) as made:
        assert ask(made, "m", messages=strange).headers["x-stillhouse-cascade"] == "student; sure"
        for _ in range(20):
            said = ask(made, "m", messages=strange)
        assert said.headers["x-stillhouse-cascade"] == "teacher; traffic_changed"
        assert ask(made, "m").headers["x-stillhouse-cascade"] == "student; sure"


def test_a_client_that_leaves_while_the_student_thinks_is_counted_and_nobody_else_is_asked(
    tmp_path, student, behind
):
    with cascade(tmp_path, student, behind, {"m": ("hang", "whole")}) as made:
        behind.seen.clear()
        with made.client() as client, pytest.raises(Exception, match="timed out"):
            client.post("/chat/completions", json={"model": "m", "messages": HELLO}, timeout=0.2)
        time.sleep(0.8)
        assert not behind.seen
        assert made.stop() == 0
    assert [event.ended for event in events(made)] == ["client_left"]


def test_of_a_cascade_the_teachers_sampled_answers_are_marked_and_the_students_are_not(tmp_path, student):
    key = new_key(Selection(), datetime.now(UTC))
    file = tmp_path / "key.json"
    write_key(key, file)
    with Teller() as teller, cascade(tmp_path, student, teller, {"m": ("sure", "whole")}) as made:
        made.tree["models"][0]["watermark"] = {"key": str(file)}
        made.reload()
        end = time.monotonic() + 30
        while "x-stillhouse-watermark" not in (said := ask(made, "m")).headers:
            assert time.monotonic() < end
        assert said.headers["x-stillhouse-watermark"] == "none; why=student"
        assert said.headers["x-stillhouse-cascade"] == "student; sure"
        said = ask(made, "m", temperature=0.7, stream=True)
        assert said.headers["x-stillhouse-cascade"] == "teacher; not_judged"
        assert said.headers["x-stillhouse-watermark"] == account_key(key, made.account).id


CONFIG = """
[[models]]
name = "desk"
upstreams = [{ url = "http://127.0.0.1:8001/v1" }]

[models.cascade]
upstreams = [{ url = "http://169.254.169.254/v1" }]
calibration = "cascade.json"
"""


def test_a_calibration_lies_beside_the_settings_and_a_students_server_is_checked_like_any(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("STILLHOUSE_ADMIN_SECRET", "f7Qp2-mWz9_Lk4RtYb8sXvNc")
    (tmp_path / "guard.toml").write_text(CONFIG)
    config = read_config(tmp_path / "guard.toml")
    wrong = {finding.where: finding for finding in check(config, {}) if finding.level == "error"}
    assert "metadata" in wrong["models.0.cascade.upstreams.0.url"].what
    assert str(tmp_path / "cascade.json") in wrong["models.0.cascade.calibration"].what
    (tmp_path / "cascade.json").write_text("{}")
    assert "models.0.cascade.calibration" not in {finding.where for finding in check(config, {})}


@pytest.mark.parametrize(
    ("text", "family", "said"),
    [
        (None, None, "cannot read"),
        ("no JSON", None, "no calibration"),
        ("[]", None, "no calibration"),
        ('{"form": "stillhouse cascade 0", "signals": []}', None, "another version"),
        (json.dumps(written(calibration())), "legal", "no family 'legal'"),
    ],
)
def test_a_calibration_that_cannot_be_used_is_refused_before_anything_is_served(tmp_path, text, family, said):
    file = tmp_path / "cascade.json"
    if text is not None:
        file.write_text(text)
    settings = Cascade(upstreams=[{"url": "http://127.0.0.1:1/v1"}], calibration=str(file), family=family)
    with pytest.raises(UsageError, match=said):
        opened(settings, ())


def test_a_student_of_other_weights_than_were_calibrated_is_not_believed(tmp_path, student, behind):
    with cascade(tmp_path, student, behind, {"m": ("sure fp_0123456789ab", "whole")}) as made:
        said = ask(made, "m")
        assert said.headers["x-stillhouse-cascade"] == "teacher; other_student"
        (tmp_path / "cascade.json").write_text(json.dumps(written(calibration(student="0123456789ab" * 5))))
        made.reload()
        deadline = time.monotonic() + 10
        while ask(made, "m").headers["x-stillhouse-cascade"] != "student; sure":
            assert time.monotonic() < deadline


def test_what_is_saved_is_told_by_both_prices_and_not_where_one_is_unknown(tmp_path, student, behind):
    prices = {"student_price": {"input": 10, "output": 10}, "teacher_price": {"input": 100, "output": 100}}
    models = {"sure": ("sure", "whole"), "unsure": ("unsure", "whole")}
    saved, took = "stillhouse_guard_cascade_saved_dollars", STUDENT["total_tokens"]
    kept = 'stillhouse_guard_cascade_tokens_total{direction="output",model="sure",of="kept"}'
    with cascade(tmp_path, student, behind, models, **prices) as made:
        for model in ("sure", "sure", "unsure"):
            ask(made, model)
        seen = figures(made)
        assert seen[saved + '{model="sure"}'] == pytest.approx(2 * took * 90 / 1e6)
        assert seen[saved + '{model="unsure"}'] == pytest.approx(-took * 10 / 1e6)
        assert seen[kept] == 2 * STUDENT["completion_tokens"]
        for model in made.tree["models"]:
            del model["cascade"]["teacher_price"]
        made.reload()
        deadline = time.monotonic() + 10
        while any(saved in name for name in seen):
            assert time.monotonic() < deadline
            seen = figures(made)
        assert seen[kept] == 2 * STUDENT["completion_tokens"]  # the calibration is the same: it goes on
