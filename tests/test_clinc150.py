"""The example of CLINC150: a classifier behind the wire format, and the whole path on a tiny data set."""

import importlib.util
import json
import math
from pathlib import Path

import clinc150
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.svm import LinearSVC
from starlette.testclient import TestClient

from stillhouse.models.logprobs import read_answer

EXAMPLE = Path(__file__).parents[1] / "examples" / "clinc150"
WORDS = {
    "timer": ("set a timer for {} minutes", "remind me in {} minutes"),
    "pay_bill": ("pay my bill of {} dollars", "i owe {} dollars please pay"),
    "oil_change": ("does my car need oil after {} miles", "oil change at {} miles"),
    "oos": ("who won game {}", "how tall is statue {}"),
}


def queries(label: str, numbers: range) -> list[list[str]]:
    return [[form.format(number), label] for number in numbers for form in WORDS[label]]


def tiny_data() -> dict[str, list[list[str]]]:
    inside = [label for label in WORDS if label != "oos"]
    return {
        "train": [row for label in inside for row in queries(label, range(10, 40))],
        "test": [row for label in inside for row in queries(label, range(50, 55))],
        "oos_train": queries("oos", range(10, 15)),
        "oos_test": queries("oos", range(50, 55)),
    }


@pytest.fixture(scope="module")
def server():
    spec = importlib.util.spec_from_file_location("classifier_server", EXAMPLE / "classifier_server.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def client(server, model) -> TestClient:
    texts, labels = zip(*(row for label in WORDS for row in queries(label, range(10, 40))), strict=True)
    fitted = make_pipeline(TfidfVectorizer(), model).fit(texts, labels)
    return TestClient(server.application(fitted, "tiny", "fp_1"))


def asking(**fields) -> dict:
    return {"model": "tiny", "messages": [{"role": "user", "content": "set a timer for 3 minutes"}], **fields}


def test_the_label_is_the_answer_and_no_tokens_are_claimed(server):
    said = client(server, LinearSVC()).post("/v1/chat/completions", json=asking(temperature=0)).json()
    assert said["model"] == "tiny"
    assert said["system_fingerprint"] == "fp_1"
    assert said["choices"][0]["message"]["content"] == "timer"
    assert said["choices"][0]["finish_reason"] == "stop"
    assert "usage" not in said


def test_the_server_lists_its_one_model(server):
    said = client(server, LinearSVC()).get("/v1/models").json()
    assert [row["id"] for row in said["data"]] == ["tiny"]


def test_probabilities_are_logprobs_of_labels_that_the_reader_of_answers_takes(server):
    reply = client(server, LogisticRegression()).post(
        "/v1/chat/completions", json=asking(logprobs=True, top_logprobs=4)
    )
    answer = read_answer(reply.content, 4)
    assert [token.raw for token in answer.tokens] == [b"timer"]
    entry = reply.json()["choices"][0]["logprobs"]["content"][0]
    assert entry["token"] == entry["top_logprobs"][0]["token"] == "timer"
    assert {rival["token"] for rival in entry["top_logprobs"]} == set(WORDS)
    assert sum(math.exp(rival["logprob"]) for rival in entry["top_logprobs"]) == pytest.approx(1)


@pytest.mark.parametrize(
    ("fields", "status", "named"),
    [
        ({"logprobs": True, "top_logprobs": 2}, 400, "logprobs"),
        ({"model": "gpt-5"}, 404, "model"),
        ({"stream": True}, 400, "stream"),
        ({"n": 2}, 400, "n"),
        ({"stop": ["x"]}, 400, "stop"),
        (
            {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]},
            400,
            "messages",
        ),
    ],
)
def test_what_a_classifier_cannot_do_is_refused_by_name(server, fields, status, named):
    reply = client(server, LinearSVC()).post("/v1/chat/completions", json=asking(**fields))
    assert reply.status_code == status
    assert reply.json()["error"]["param"] == named


def test_a_body_that_is_no_json_is_refused(server):
    reply = client(server, LinearSVC()).post("/v1/chat/completions", content=b"{")
    assert reply.status_code == 400
    assert "JSON" in reply.json()["error"]["message"]


def test_the_quick_data_set_is_a_part_of_the_whole_one():
    data = tiny_data()
    part = clinc150.smaller(data, 2, {"train": 8, "test": 4}, 3)
    assert len({label for _, label in part["train"]}) == 2
    assert {label for _, label in part["test"]} == {label for _, label in part["train"]}
    assert [len(part[name]) for name in ("train", "test", "oos_train", "oos_test")] == [16, 8, 10, 10]
    assert all(row in data[name] for name in part for row in part[name])


def test_the_example_runs_from_an_empty_folder_over_http(tmp_path):
    data = tmp_path / "data.json"
    data.write_text(json.dumps(tiny_data()))
    folder = tmp_path / "run"
    ended = clinc150.run(data, folder, {"epochs = 5": "epochs = 30"})
    found = ended.found["evaluation"]
    assert found["exchanges"] == {"sent": 190 + 40, "reused": 0, "failed": 0, "unknown": 0}
    assert found["families"]["in_scope"]["n"] == 30
    assert found["families"]["oos"]["n"] == 10
    assert found["families"]["in_scope"]["teacher"]["score"] == 1.0
    assert found["families"]["in_scope"]["student"]["score"] > 0.9
    assert found["student_before"]["score"] < 0.5
    assert found["student"]["unscored"] == found["student"]["failed"] == 0
    rows = clinc150.figures(ended, full=True)
    assert next(row.value for row in rows if row.what.endswith("answered oos")) == 0.0
    assert {row.peer for row in rows if row.peer} == {"SVM, published", "MLP, published"}
    assert next(row for row in rows if row.what == "teacher, in-scope accuracy").holds
