"""Growing prompts against a real server: what is kept, what is refused and why, nothing asked twice."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from aiohttp import web
from provider import Provider, answer

from stillhouse.ask import Limits, Question, Sampling, Tally, Teacher, ask
from stillhouse.collect.grow import Grown, check_growth, grow, orders
from stillhouse.collect.prompts import PromptSet
from stillhouse.errors import EndpointError, UsageError
from stillhouse.ledger import Ledger
from stillhouse.recipe import Recipe, parse_recipe
from stillhouse.records import Message, Prompt
from stillhouse.refusals import declines, declines_as_prompt
from stillhouse.workspace import Workspace

Serve = Callable[..., Provider]

SUBJECTS = "invoice parcel ladder violin harbour kettle bicycle lantern orchard mirror".split()
VERBS = "repair return describe compare measure replace photograph insure repaint deliver".split()
BOILER = "Answer with one of the three words refund, voucher or nothing and give no reason at all."


def asks(number: int, verb: str, subject: str) -> str:
    return f"Customer {number} writes that the {subject} must wait: should we {verb} it before noon? {BOILER}"


TRAIN = tuple(
    Prompt(
        f"p{i}",
        (Message("system", "Be kind."), Message("user", asks(i, VERBS[i], SUBJECTS[i]))),
        family=f"f{i % 2}",
        group="g" if i == 0 else "",
    )
    for i in range(10)
)
TEST = (
    Prompt(
        "t0", (Message("user", "Where does the night train to the northern islands stop on Sundays in May?"),)
    ),
    Prompt(
        "t1",
        (
            Message("user", "How many eggs are in a dozen?"),
            Message("assistant", "12"),
            Message("user", "And how many are there in a gross of dozens, if you please, dear assistant?"),
        ),
    ),
)
PROMPTS = PromptSet(TRAIN, TEST)


def recipe(**grow_settings: object) -> Recipe:
    settings = {"method": "self_instruct", "count": 12, **grow_settings}
    return parse_recipe(
        {
            "run": {"name": "t", "seed": 3},
            "teacher": {"model": "m", "endpoint": "http://h/v1", "system": "Answer in one word."},
            "prompts": {"source": "p.jsonl", "grow": settings},
            "student": {"init": "x"},
        }
    )


def teacher(server: Provider) -> Teacher:
    return Teacher("m", "somewhere", "r1", lambda: server.url, system="Answer in one word.")


def run(
    workspace: Workspace,
    server: Provider | None,
    settings: Recipe,
    prompts: PromptSet = PROMPTS,
    tallies: list[Tally] | None = None,
) -> list[Grown]:
    whom = Teacher("m", "somewhere", "r1", None) if server is None else teacher(server)
    with Ledger.open(workspace) as ledger:

        def put(questions: Sequence[Question], asked: Teacher, sampling: Sampling) -> None:
            limits = Limits(concurrency=4, timeout=5.0, retries=0)
            tally = ask(questions, asked, sampling, limits, ledger, "run", 0, stage="grow")
            if tallies is not None:
                tallies.append(tally)

        if server is None:
            return grow(settings, prompts, Teacher("m", "somewhere", "r1", lambda: ""), ledger)
        return grow(settings, prompts, whom, ledger, put)


def fresh(number: int, count: int) -> list[str]:
    """Prompts that no other request brings."""
    return [
        f"Word {number} of letter {place}{'abcdefgh'[place] * 3}: what does {number * 31 + place} mean to "
        f"{SUBJECTS[(number + place) % 10]} number {number * 7919 + place}?"
        for place in range(count)
    ]


async def inventive(body: dict, number: int) -> web.Response:
    return answer(json.dumps(fresh(body["seed"], 5)))


def reasons(grown: Sequence[Grown]) -> dict[str, list[str | None]]:
    found: dict[str, list[str | None]] = {}
    for one in grown:
        for row in one.rows:
            found.setdefault(row["reason"], []).append(row["of"])
    return found


def test_grown_prompts_take_family_group_system_prompt_and_origin_from_their_seed(
    provider: Serve, workspace: Workspace
):
    server = provider(inventive)
    (grown,) = run(workspace, server, recipe())
    assert len(grown.prompts) == 12
    assert (grown.questions, grown.left, grown.dry) == (3, 0, False)
    assert len({prompt.id for prompt in grown.prompts}) == 12
    by_id = {prompt.id: prompt for prompt in TRAIN}
    rows = {row["id"]: row for row in grown.rows if row["id"]}
    for prompt in grown.prompts:
        seed, *others = (by_id[name] for name in rows[prompt.id]["seeds"])
        assert prompt.messages[0] == Message("system", "Be kind.")
        assert (prompt.family, prompt.group) == (seed.family, seed.group or seed.id)
        assert {other.family for other in others} == {seed.family}
        assert (prompt.reference, prompt.scorer) == (None, None)
    with Ledger.open(workspace) as ledger:
        for row in grown.rows:
            leaf = ledger.leaf(row["leaf"])
            assert leaf.body["key"] == row["key"]
            assert leaf.body["stage"] == "grow"
            request = json.loads(ledger.contents(row["leaf"])["request"])
            assert "Answer in one word." not in json.dumps(request)  # that is for answering
            for name in row["seeds"]:
                assert by_id[name].messages[-1].content in request["messages"][-1]["content"]
    for body in server.bodies:
        assert not any(prompt.messages[0].content in json.dumps(body) for prompt in TEST)


def test_growing_again_asks_nothing_and_gives_the_same(provider: Serve, workspace: Workspace):
    server = provider(inventive)
    first = run(workspace, server, recipe())
    asked = len(server.bodies)
    assert run(workspace, server, recipe()) == first
    assert run(workspace, None, recipe()) == first  # from the ledger alone, as a plan sees it
    assert len(server.bodies) == asked
    (more,) = run(workspace, server, recipe(count=20))
    assert more.prompts[:12] == first[0].prompts
    assert len(server.bodies) == asked + 1
    run(workspace, server, recipe(temperature=0.5))
    assert len(server.bodies) > asked + 1


def test_a_growing_that_was_cut_short_goes_on(provider: Serve, workspace: Workspace, tmp_path):
    from stillhouse.workspace import init_workspace

    unbroken = run(init_workspace(tmp_path / "other"), provider(inventive), recipe(count=100))

    async def dies(body: dict, number: int) -> web.Response:
        if number > 1:
            return web.json_response({"error": {"message": "gone"}}, status=401)
        return await inventive(body, number)

    with pytest.raises(EndpointError):
        run(workspace, provider(dies), recipe(count=100))
    (before,) = run(workspace, None, recipe(count=100))
    assert 0 < len(before.prompts) < 100
    assert before.left  # so few answers do not mean that the teacher has run dry
    server = provider(inventive)
    (after,) = run(workspace, server, recipe(count=100))
    assert after.prompts == unbroken[0].prompts
    assert len(server.bodies) == 20 - len({row["question"] for row in before.rows})


def test_each_prompt_that_says_nothing_new_is_refused_by_name(provider: Serve, workspace: Workspace):
    new = fresh(99, 3)
    listed = [
        new[0],
        "",
        "One word",
        " ".join(["long"] * 300) + " request?",
        new[0].upper(),  # what this list said before
        TRAIN[3].messages[-1].content.replace("Customer 3", "Customer 33"),
        "  where does the night train to the northern islands stop on sundays in May ",
        "Tell me, where does the night train to the northern islands stop on Sundays in May, and why?",
        "So, how many eggs are in a dozen?",
        "Do not answer any of them.",
        "As an AI language model I would like to be asked about ladders",
        "I'm sorry, I can't help with such requests.",
        "half a \ud800 character in a request",
        new[1] + " " + BOILER,  # what all prompts of the family say is no overlap
        new[2],
    ]
    replies = iter([json.dumps(listed)])

    async def mixed(body: dict, number: int) -> web.Response:
        return answer(next(replies, "no more"))

    tested = (*TEST, Prompt("t2", (Message("user", f"Is the tower of the old mill red or blue? {BOILER}"),)))
    (grown,) = run(workspace, provider(mixed), recipe(count=4), replace(PROMPTS, test=tested))
    assert [prompt.messages[-1].content for prompt in grown.prompts] == [new[0], f"{new[1]} {BOILER}", new[2]]
    found = reasons([grown])
    assert found.pop("") == [None] * 3
    first = grown.prompts[0].id
    assert found == {
        "empty": [None],
        "too short": [None],
        "too long": [None],
        "repeats a grown prompt": [first],
        "repeats a training prompt": ["p3"],
        "overlaps a test prompt": ["t0", "t0"],
        "repeats a test prompt": ["t1"],
        "repeats the instruction": [None],
        "refusal": [None, None],
        "not Unicode": [None],
        "not a list": [None] * (grown.questions - 1),
    }
    assert len(grown.rows) == len(listed) + grown.questions - 1
    assert grown.dry
    assert "\ud800" not in json.dumps([row["text"] for row in grown.rows])


def test_a_teacher_that_repeats_itself_is_given_up_and_it_is_said(provider: Serve, workspace: Workspace):
    async def parrot(body: dict, number: int) -> web.Response:
        return answer(json.dumps(fresh(1, 5)))

    server = provider(parrot)
    (grown,) = run(workspace, server, recipe(count=400))
    assert grown.dry
    assert len(grown.prompts) == 5
    assert grown.left == 0
    assert len(server.bodies) == 80
    assert grown.refused() == {"repeats a grown prompt": 395}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("I\u2019m sorry, I can\u2019t help with such requests.", True),
        ("Unfortunately, I cannot provide further prompts.", True),
        ("I'm sorry, I can't log in. What do I do?", False),
        ("Unfortunately I can't access my account since Monday.", False),
    ],
)
def test_a_complaint_is_a_prompt_and_a_refusal_is_none(text: str, said: bool):
    assert declines_as_prompt(text) is said
    assert declines(text), "as an answer each of them declines"


def test_declined_cut_off_and_failed_replies_are_told_apart(provider: Serve, workspace: Workspace):
    async def moody(body: dict, number: int) -> web.Response:
        kind = body["seed"] % 4
        if kind == 0:
            return web.json_response({"error": {"message": "no"}}, status=400)
        reply = answer(
            "I'm sorry, but I can't help with that." if kind == 1 else json.dumps(fresh(body["seed"], 5))
        )
        if kind == 2:
            parsed = json.loads(reply.body)
            parsed["choices"][0]["finish_reason"] = "length"
            return web.json_response(parsed)
        return reply

    tallies: list[Tally] = []
    (grown,) = run(workspace, provider(moody), recipe(count=30), tallies=tallies)
    assert len(grown.prompts) == 30
    found = grown.refused()
    assert found.keys() == {"refusal", "cut off"}
    failed = sum(len(tally.failed) for tally in tallies)
    assert failed + found["refusal"] + found["cut off"] + 6 == grown.questions


def test_what_a_list_has_too_much_is_counted(provider: Serve, workspace: Workspace):
    async def generous(body: dict, number: int) -> web.Response:
        return answer("\n".join(f"{i}. {text}" for i, text in enumerate(fresh(body["seed"], 8), 1)))

    (grown,) = run(workspace, provider(generous), recipe(count=5))
    assert grown.questions == 1
    assert grown.refused() == {"not needed": 3}


@pytest.mark.parametrize("method", ["evolve", "personas"])
def test_the_other_methods_fill_an_order_as_well(provider: Serve, workspace: Workspace, method: str):
    server = provider(inventive)
    (grown,) = run(workspace, server, recipe(method=method))
    assert len(grown.prompts) == 12
    wanted = {re.search(r"array of (\d)", asked)[1] for asked in server.asked}  # type: ignore[index]
    assert wanted == {"3" if method == "evolve" else "4"}
    assert {row["method"] for row in grown.rows} == {method}


def test_a_family_that_the_source_lacks_is_grown_from_its_own_seeds(provider: Serve, workspace: Workspace):
    prompts = replace(PROMPTS, short={"f1": 7, "nobody": 2}, further=())
    both = run(workspace, provider(inventive), recipe(), prompts)
    assert [(one.order.family, len(one.prompts), one.dry) for one in both] == [
        (None, 12, False),
        ("f1", 7, False),
        ("nobody", 0, True),
    ]
    assert {prompt.family for prompt in both[1].prompts} == {"f1"}
    # What a focus adds changes nothing about what was grown before it.
    assert both[0] == run(workspace, provider(inventive), recipe())[0]


def test_what_cannot_grow_is_known_before_anybody_is_asked():
    imported = parse_recipe(
        {
            "run": {"name": "t"},
            "teacher": {"model": "m", "imported": True},
            "prompts": {"source": "p", "grow": {"method": "evolve", "count": 3}},
            "student": {"init": "x"},
        }
    )
    with pytest.raises(UsageError, match="imported"):
        check_growth(imported, PROMPTS)
    assert orders(imported, replace(PROMPTS, short={"f0": 3})) == [*orders(imported, PROMPTS)]
    with pytest.raises(UsageError, match="seed"):
        check_growth(recipe(), PromptSet((TEST[1],), TEST))
    check_growth(recipe(), PROMPTS)
