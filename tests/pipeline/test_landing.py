"""What a cascade deferred is learned by the next student: asked of the gate, taken once, and erasable."""

import json
from collections.abc import Callable

import pyarrow.parquet as pq
import pytest
from maker import row_toml
from provider import Provider, answer
from tiny import tiny_model

from stillhouse import pipeline
from stillhouse.audit import verify
from stillhouse.cascade.deferred import Deferred
from stillhouse.errors import GateRefused, UsageError
from stillhouse.ledger import Ledger
from stillhouse.ledger.erasure import erase
from stillhouse.ledger.subject import Subject, find
from stillhouse.pipeline.landing import land, with_landed
from stillhouse.recipe import parse_recipe, run_digest

Serve = Callable[..., Provider]
ASKED = 40


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("student"))


@pytest.fixture
def recipe(tmp_path, student):
    rows = [
        {"prompt": f"say {n % 7} {n}", "id": f"p{n}", "reference": str(n % 7), "scorer": "exact"}
        for n in range(ASKED)
    ]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "terms.txt").write_text("you may train on the answers")
    terms = {"document": str(tmp_path / "terms.txt"), "read_on": "2026-01-02", "declared_by": "a test"}

    def make(url, **changes):
        tree = {
            "run": {"name": "next", "seed": 3},
            "teacher": {"model": "m", "endpoint": url, "provider": "somewhere", "terms": terms},
            "prompts": {"source": str(tmp_path / "prompts.jsonl")},
            "collect": {"concurrency": 4, "max_tokens": 8},
            "student": {"init": str(student)},
            "train": {"epochs": 1, "batch_tokens": 512, "dtype": "float32"},
            "evaluate": {"held_out": 0.2, "resamples": 50, "baseline": False},
        }
        for place, value in changes.items():
            table, key = place.split("__")
            tree.setdefault(table, {})[key] = value
        return parse_recipe(tree)

    return make


def deferred(url, n, account="acct_1", text=None, **changes):
    told = {
        "id": f"req_{n}",
        "account": account,
        "model": "desk",
        "at": 1.79e9 + n,
        "why": "unsure",
        "consent": "2",
        "upstream": url,
        "called": "m",
        "messages": ({"role": "user", "content": text or f"say {n % 7} please {n}"},),
        "sampling": {"max_tokens": 50},
        "answer": str(n % 7),
    }
    return Deferred(**told | changes)


async def digit(body, number):
    return answer(body["messages"][-1]["content"].split()[1])


def test_the_next_student_learns_what_was_deferred_and_nobody_is_asked_for_it_again(
    provider, workspace, recipe
):
    server = provider(digit)
    made = recipe(server.url)
    found = [
        *(deferred(server.url, n) for n in range(12)),
        deferred(server.url, 20, text="say 3 please 3"),  # asked before, by the same account
        deferred(server.url, 21, called="other"),
        "it is erased, or was not kept",
        "its account has not agreed to training",
        "its account has not agreed to training",
    ]
    with Ledger.open(workspace) as ledger:
        prompts = pipeline.plan(made, workspace, ledger).prompts
        found.append(deferred(server.url, 22, text=next(iter(prompts.test)).messages[0].content))
        found.append(deferred(server.url, 23, text=next(iter(prompts.train)).messages[0].content))
        more, landed = land(made, "desk", [(server.url, "m"), ("http://x/v1", "m")], found, ledger)
        assert (landed.taken, landed.known) == (12, 0)
        assert landed.left_out == {
            "a prompt of the recipe asks the same": 1,
            "a test prompt asks the same": 1,
            "another server answered it than the recipe's teacher": 1,
            "it is erased, or was not kept": 1,
            "it was asked before": 1,
            "its account has not agreed to training": 2,
        }
        assert sum(landed.left_out.values()) + landed.taken == len(found)
        again, same = land(made, "desk", [(server.url, "m")], found, ledger)
        assert (again, same.leaf, same.known) == (more, landed.leaf, 12)
        imports = list(ledger.leaves("import"))
        assert len(imports) == 12
        assert {leaf.body["decision"] for leaf in imports} == {landed.decision}
        assert ledger.leaf(landed.decision).body["use"] == "train_target"
        assert b"acct_1" not in b"".join(leaf.data for leaf in imports)
    assert run_digest(more) != run_digest(made)
    done = pipeline.run(more, workspace)
    assert not any("please" in text for text in server.asked)
    rows = pq.read_table(done.run.exchanges).to_pylist()
    landed_rows = [row for row in rows if row["family"] == "deferred"]
    assert [row["prompt_id"] for row in landed_rows] == [f"req_{n}" for n in range(12)]
    assert {row["leaf"] for row in landed_rows} == {leaf.index for leaf in imports}
    learned = pq.read_table(done.run.samples).to_pylist()
    assert sum(row["family"] == "deferred" for row in learned) > 0
    assert verify(done.run.release).ok
    card = (done.run.release / "README.md").read_text()
    assert "and to 12 requests of customers who agreed to training" in card
    told = [path.read_text() for path in done.run.release.rglob("*.md")]
    assert any("12 requests to a cascade, of customers who agreed to training" in text for text in told)
    # The run's own recipe makes the same run again
    resumed = pipeline.run(more, workspace)
    assert resumed.skipped == pipeline.STAGES


def test_what_an_account_brought_is_erased_with_its_prompts_and_learned_no_more(provider, workspace, recipe):
    server = provider(digit)
    made = recipe(server.url)
    found = [deferred(server.url, n, account=f"acct_{n % 2}", text=f"the heron {n}") for n in range(8)]
    with Ledger.open(workspace) as ledger:
        more, landed = land(made, "desk", [(server.url, "m")], found, ledger)
        done = pipeline.run(more, workspace, stages=("collect", "curate"))
        subject = Subject(account="acct_1")
        assert find(ledger, subject).asked == {"import": 4}
        erase(ledger, subject, "asked for")
        texts = [str(row) for path in (done.run.prompts, done.run.exchanges) for row in _rows(path)]
        assert not any("the heron 1'" in text for text in texts)
        assert any("the heron 2'" in text for text in texts)
        prompts = with_landed(pipeline.plan(made, workspace, ledger).prompts, more, ledger)
        assert [prompt.id for prompt in prompts.further] == ["req_0", "req_2", "req_4", "req_6"]
        # What was erased here does not come back from what the guard still keeps
        _, rest = land(made, "desk", [(server.url, "m")], found, ledger)
        assert (rest.taken, rest.left_out) == (4, {"it was erased from this workspace": 4})
        # The same question of another account: the answer in the ledger is this account's too
        same = deferred(server.url, 30, "acct_3", "the heron 2")
        _, again = land(made, "desk", [(server.url, "m")], [same], ledger)
        assert (again.taken, again.known) == (1, 1)
        assert find(ledger, Subject(account="acct_3")).asked["import"] == 1
        assert landed.taken == 8


def _rows(path):
    return pq.read_table(path).to_pylist()


def test_where_the_gate_refuses_the_teacher_nothing_is_looked_at_or_taken(workspace, recipe):
    (workspace.root / "terms").mkdir()
    row = row_toml(trains_others="no", trains_competing="no", verdict="refuse", clause="No models of Output.")
    (workspace.root / "terms" / "maker.toml").write_text(row)
    url = "http://127.0.0.1:9/v1"
    made = recipe(url, teacher__model="maker-2", teacher__provider=None)

    def found():
        raise AssertionError("it was looked at")
        yield

    with Ledger.open(workspace) as ledger:
        with pytest.raises(GateRefused, match="maker-2") as refused:
            land(made, "desk", [(url, "maker-2")], found(), ledger)
        assert refused.value.exit_code == 3
        kinds = {leaf.kind for leaf in ledger.leaves()}
        assert "decision" in kinds
        assert not kinds & {"import", "transform"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"collect__samples": 2, "collect__temperature": 0.5}, "several answers"),
        ({"teacher__system": "be brief"}, "teacher.system"),
        ({"collect__top_logprobs": 5}, "top_logprobs"),
        ({"teacher__model": "n"}, "not the one behind"),
        ({"teacher__endpoint": "http://127.0.0.1:10/v1"}, "not the one behind"),
        ({}, "nothing that the cascade of desk deferred"),
    ],
)
def test_a_recipe_that_cannot_learn_from_it_is_refused_with_its_reason(workspace, recipe, changes, said):
    url = "http://127.0.0.1:9/v1"
    with Ledger.open(workspace) as ledger, pytest.raises(UsageError) as refused:
        land(recipe(url, **changes), "desk", [(url, "m")], ["it was no plain chat, and not kept"], ledger)
    assert said in str(refused.value.what) + str(refused.value.why)


def test_a_local_teacher_is_its_own_name_on_this_machine(workspace, recipe):
    made = recipe(None, teacher__model="embedded:desk", teacher__provider=None, teacher__terms=[])
    with Ledger.open(workspace) as ledger:
        for url, called in (("http://10.0.0.1:8/v1", "embedded:desk"), ("http://127.0.0.1:8/v1", "gpt-4o")):
            with pytest.raises(UsageError, match="not the one behind"):
                land(made, "desk", [(url, called)], [], ledger)
        url = "http://localhost:8001/v1"
        one = deferred(url, 1, called="embedded:desk")
        assert land(made, "desk", [(url, "embedded:desk")], [one], ledger)[1].taken == 1


def test_a_leaf_that_names_nothing_taken_is_refused(workspace, recipe):
    made = recipe("http://127.0.0.1:9/v1", prompts__landed=0)
    with Ledger.open(workspace) as ledger:
        ledger.append("transform", {"stage": "other"}, {"rows": b"[]"})
        with pytest.raises(UsageError, match="names nothing that was taken"):
            pipeline.plan(made, workspace, ledger)
