"""Written permissions, against a real ledger, a real server and real processes."""

import asyncio
import base64
import signal
import subprocess
import sys
import time
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from maker import row_toml
from permitted_asker import questions
from provider import answer, echo

from stillhouse.ask import Limits, Sampling, Teacher, ask
from stillhouse.errors import GateRefused, LedgerError, UsageError
from stillhouse.ledger import Ledger, batches, rotate_signing_key
from stillhouse.ledger.keys import read_public_key, signed_by
from stillhouse.ledger.permissions import decide_by, revoke, standings
from stillhouse.recipe import parse_recipe
from stillhouse.terms import admit, authorising, consider
from stillhouse.terms.permissions import Permission, Scope, statement, to_sign
from stillhouse.terms.registry import shipped

ASKER = Path(__file__).parents[1] / "permitted_asker.py"
TEXT = b"Maker permits us to train Small on Output.\n"
PERMISSION = """
grantor = "Maker Inc."
grantee = "us"
signatory = "J. Doe, general counsel"
approver = "R. Ames"
document = "contract.txt"
valid_from = 2026-01-01
valid_to = 2026-12-31

[scope]
models = ["maker-*"]
uses = ["train_target", "evaluation"]
volume = 20
competing = true
students = ["small*"]
"""
NOW = datetime(2026, 11, 21, 9, 30, tzinfo=UTC)
BANS = row_toml(trains_others="no", trains_competing="no", verdict="refuse", clause="No models.")


@pytest.fixture
def clock():
    """A clock that tests set."""
    return [NOW]


@pytest.fixture
def ledger(workspace, clock):
    with Ledger.open(workspace, clock=lambda: clock[0]) as ledger:
        yield ledger


@pytest.fixture
def read(tmp_path):
    def make(**lines):
        (tmp_path / "contract.txt").write_bytes(TEXT)
        text = PERMISSION
        for key, value in lines.items():
            kept = [f"{key} = {value}" if line.startswith(f"{key} =") else line for line in text.split("\n")]
            text = "\n".join(line for line in kept if line != f"{key} = ")
        (tmp_path / "permission.toml").write_text(text)
        return authorising.read_permission(tmp_path / "permission.toml")

    return make


def recipe(name="small-1", model="maker-2", **more):
    return parse_recipe(
        {
            "run": {"name": name},
            "teacher": {"model": model, "endpoint": "https://api.maker.example/v1"},
            "prompts": {"source": "embedded:desk"},
            "student": {"init": "embedded:base"},
            **more,
        }
    )


def bans(ledger):
    ledger.workspace.terms.mkdir()
    (ledger.workspace.terms / "maker.toml").write_text(BANS)


def under(ledger, leaf):
    """A decision that rests on the permission in `leaf`."""
    return decide_by(ledger, {"what": "a test", "authorisation": leaf}, [leaf])


def asker(ledger, url, run, decision, count, *more):
    arguments = [str(ledger.workspace.root), url, run, str(decision), str(count), *map(str, more)]
    return subprocess.Popen([sys.executable, ASKER, *arguments], stdout=subprocess.PIPE, text=True)


def put(ledger, url, run, decision, count, concurrency=4):
    teacher = Teacher("m", "somewhere", "", lambda: url)
    limits = Limits(concurrency, 30.0, 0)
    return ask(questions(run, count), teacher, Sampling(0.0, 1.0, 8), limits, ledger, run, decision)


# What is recorded


def test_a_permission_is_a_signed_leaf_and_its_text_can_be_erased(ledger, read):
    leaf = ledger.leaf(authorising.record(*read(), ledger))
    assert leaf.kind == "authorisation"
    assert leaf.body["what"] == "permission"
    said = leaf.body["permission"]
    assert (said["grantor"], said["scope"]["volume"]) == ("Maker Inc.", 20)
    (signed,) = leaf.body["signatures"]
    public = read_public_key(ledger.workspace)
    assert base64.b64decode(signed["key"]) == public
    assert signed_by(public, base64.b64decode(signed["sig"]), to_sign(said))
    assert to_sign(said).startswith(b"DSSEv1 42 application/vnd.stillhouse.permission+json ")
    assert ledger.contents(leaf.index) == {"document": TEXT}
    ledger.erase(leaf.index, "contract ended")
    assert ledger.verify().ok
    (permission,) = authorising.recorded(ledger)
    assert (permission.leaf, permission.used, permission.revoked, permission.fault) == (
        leaf.index,
        0,
        None,
        "",
    )
    with pytest.raises(UsageError, match="recorded already"):
        authorising.record(*read(), ledger)


def test_a_record_holds_after_the_key_was_replaced_and_not_with_a_key_of_others(ledger, read):
    authorising.record(*read(), ledger)
    before = read_public_key(ledger.workspace)
    rotate_signing_key(ledger.workspace, ledger)
    assert authorising.recorded(ledger)[0].fault == ""
    ledger.workspace.earlier_verifying_key(before).unlink()
    assert "never had" in authorising.recorded(ledger)[0].fault


def test_a_grantor_may_sign_too(ledger, read):
    theirs = Ed25519PrivateKey.generate()
    pem = theirs.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    permission, text = read()
    with pytest.raises(UsageError, match="does not hold"):
        authorising.record(permission, text, ledger, (pem, theirs.sign(b"something else")))
    with pytest.raises(UsageError, match="grantor's key"):
        authorising.record(permission, text, ledger, (b"nonsense", b""))
    signature = theirs.sign(to_sign(statement(permission)))
    leaf = authorising.record(permission, text, ledger, (pem, signature))
    assert [each["by"] for each in ledger.leaf(leaf).body["signatures"]] == ["workspace", "grantor"]
    assert authorising.recorded(ledger)[0].fault == ""


@pytest.mark.parametrize(
    ("lines", "what"),
    [
        ({"grantor": '""'}, "`grantor` is missing"),
        ({"signatory": ""}, "`signatory` is missing"),
        ({"document": '"none.txt"'}, "missing or empty"),
        ({"valid_from": '"soon"'}, "`valid_from` is not usable"),
        ({"valid_to": "2025-01-01"}, "ends before it begins"),
        ({"volume": "0"}, "`volume` is not usable"),
        ({"uses": '["everything"]'}, "`uses` is not usable"),
        ({"models": "[]"}, "`models` is not usable"),
        ({"competing": '"yes"'}, "`competing` is not usable"),
        ({"students": '["s"]\nstudent = ["s"]'}, "unknown key `student`"),
    ],
)
def test_a_file_is_read_strictly(read, lines, what):
    with pytest.raises(UsageError, match=what):
        read(**lines)


# What it permits


def test_it_lifts_a_refusal_for_what_it_names_and_the_decision_names_it(ledger, read):
    bans(ledger)
    with pytest.raises(GateRefused):
        admit(recipe(), recipe().teacher, "train_target", ledger, NOW)
    leaf = authorising.record(*read(), ledger)
    decision = admit(recipe(), recipe().teacher, "train_target", ledger, NOW)
    body = ledger.leaf(decision).body
    assert (body["verdict"], body["basis"], body["authorisation"]) == ("allow", "authorisation", leaf)
    assert admit(recipe(), recipe().teacher, "train_target", ledger, NOW) == decision
    for other in (recipe(name="large"), recipe(model="maker-image", release={"name": "x"})):
        with pytest.raises(GateRefused) as caught:
            admit(other, other.teacher, "train_target", ledger, NOW)
        assert "is not in force" in caught.value.mend
    with pytest.raises(GateRefused, match="prompt_seed"):
        admit(recipe(), recipe().teacher, "prompt_seed", ledger, NOW)


@pytest.mark.parametrize(
    ("when", "why"),
    [(datetime(2025, 12, 31, tzinfo=UTC), "before"), (datetime(2027, 1, 1, tzinfo=UTC), "ended")],
)
def test_it_is_in_force_from_its_first_day_to_its_last(ledger, read, when, why):
    bans(ledger)
    authorising.record(*read(), ledger)
    for day in (date(2026, 1, 1), date(2026, 12, 31)):
        at = datetime(day.year, day.month, day.day, 23, 59, tzinfo=UTC)
        assert consider(recipe(), recipe().teacher, "train_target", ledger, at).allowed
    with pytest.raises(GateRefused) as caught:
        admit(recipe(), recipe().teacher, "train_target", ledger, when)
    assert why in caught.value.mend


def test_a_revoked_one_ends_and_the_log_says_why(ledger, read):
    bans(ledger)
    leaf = authorising.record(*read(), ledger)
    correction = ledger.leaf(revoke(ledger, leaf, "the contract was ended"))
    assert correction.kind == "correction"
    assert correction.body == {
        "what": "permission revoked",
        "authorisation": leaf,
        "reason": "the contract was ended",
    }
    with pytest.raises(GateRefused) as caught:
        admit(recipe(), recipe().teacher, "train_target", ledger, NOW)
    assert f"revoked (leaf {correction.index})" in caught.value.mend
    for again in (leaf, correction.index):
        with pytest.raises(LedgerError):
            revoke(ledger, again, "twice")


# On every call


def test_not_one_request_leaves_beyond_the_volume(ledger, read, provider):
    server, leaf = provider(), authorising.record(*read(), ledger)
    decision = under(ledger, leaf)
    with pytest.raises(GateRefused, match="does not cover another exchange") as caught:
        put(ledger, server.url, "r", decision, 30)
    assert caught.value.exit_code == 3
    assert "used up: 20 of 20 exchanges" in caught.value.why
    assert len(server.bodies) == 20
    assert ledger.attempts("r").answered == 20  # all that was sent is kept
    assert put(ledger, server.url, "r", decision, 20).reused == 20  # and used, without another request
    assert put(ledger, server.url, "other", 0, 5).answered == 5  # a decision without a permission is free


def test_a_new_permission_goes_on_where_one_is_used_up(ledger, read, provider):
    bans(ledger)
    first = authorising.record(*read(volume="2"), ledger)
    server, what = provider(), recipe()
    decision = admit(what, what.teacher, "train_target", ledger, NOW)
    with pytest.raises(GateRefused, match=f"leaf {first}"):
        put(ledger, server.url, "r", decision, 3)
    assert admit(what, what.teacher, "train_target", ledger, NOW) == decision  # for what was had
    second = authorising.record(*read(volume="3"), ledger)
    later = admit(what, what.teacher, "train_target", ledger, NOW)
    assert ledger.leaf(later).body["authorisation"] == second
    assert put(ledger, server.url, "r", later, 3).answered == 1
    assert [each.used for each in standings(ledger).values()] == [2, 1]


def test_two_processes_share_one_volume_exactly(ledger, read, provider):
    server, leaf = provider(), authorising.record(*read(volume="50"), ledger)
    decision = under(ledger, leaf)
    both = [asker(ledger, server.url, run, decision, 40, 8) for run in ("a", "b")]
    said = [process.communicate(timeout=60)[0] for process in both]
    codes = sorted(process.returncode for process in both)
    assert 3 in codes
    assert any("used up" in each for each in said)
    assert len(server.bodies) == 50
    assert ledger.attempts().answered == 50
    assert standings(ledger)[leaf].used == 50


def test_a_kill_leaves_no_request_uncounted(ledger, read, provider):
    killed = asyncio.Event()
    loops = set()

    async def stall(body, number):
        loops.add(asyncio.get_running_loop())
        if number > 6:
            await killed.wait()
        return answer("yes")

    server, leaf = provider(stall), authorising.record(*read(), ledger)
    decision = under(ledger, leaf)
    process = asker(ledger, server.url, "r", decision, 15, 5)
    deadline = time.monotonic() + 30
    while server.in_flight < 5 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait(10)
    loops.pop().call_soon_threadsafe(killed.set)
    used = standings(ledger)[leaf].used
    assert used == ledger.attempts().total >= len(server.bodies) >= 11
    server.handler = echo
    with pytest.raises(GateRefused):
        put(ledger, server.url, "r", decision, 30)
    attempts = ledger.attempts()
    assert attempts.total == standings(ledger)[leaf].used == 20
    assert attempts.answered + attempts.unknown == 20
    assert len(server.bodies) <= 20


def test_it_ends_between_two_requests(ledger, read, provider, clock):
    server, decision = provider(), under(ledger, authorising.record(*read(volume="100"), ledger))
    clock[0] = datetime(2026, 12, 31, 23, 59, 59, tzinfo=UTC)
    assert put(ledger, server.url, "r", decision, 3).answered == 3
    clock[0] += timedelta(seconds=1)
    with pytest.raises(GateRefused) as caught:
        put(ledger, server.url, "r", decision, 4)
    assert "ended before 2027-01-01" in caught.value.why
    assert len(server.bodies) == 3
    clock[0] = datetime(2025, 12, 31, 23, 59, 59, tzinfo=UTC)
    with pytest.raises(GateRefused, match="does not cover"):
        put(ledger, server.url, "r", decision, 4)


def test_a_revocation_stops_a_process_that_is_asking(ledger, read, provider):
    leaf = authorising.record(*read(volume="1000"), ledger)

    async def revoked_midway(body, number):
        if number == 5:
            await asyncio.to_thread(revoke, ledger, leaf, "enough")
        return answer("yes")

    server, decision = provider(revoked_midway), under(ledger, leaf)
    process = asker(ledger, server.url, "r", decision, 200, 2)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 3
    assert "it was revoked" in said
    assert 5 <= len(server.bodies) < 12
    assert ledger.attempts("r").answered == len(server.bodies)


def test_what_no_model_worked_on_does_not_count(ledger, read, provider):
    decision = under(ledger, leaf := authorising.record(*read(), ledger))
    attempt = ledger.begin(
        key="ab" * 32, run="r", prompt_id="p", teacher="m", sample_index=0, decision=decision
    ).result()
    assert standings(ledger)[leaf].used == 1
    ledger.fail(attempt, "unreachable", billed=False).result()
    assert standings(ledger)[leaf].used == 0
    attempt = ledger.begin(
        key="ab" * 32, run="r", prompt_id="p", teacher="m", sample_index=0, decision=decision
    ).result()
    ledger.fail(attempt, "server", billed=True).result()
    assert standings(ledger)[leaf].used == 1


def test_each_of_two_permissions_counts_and_both_must_cover(ledger, read, provider):
    leaves = [authorising.record(*read(volume=volume), ledger) for volume in ("9", "5")]
    server, decision = provider(), decide_by(ledger, {"what": "a test"}, leaves)
    with pytest.raises(GateRefused, match=f"leaf {leaves[1]}"):
        put(ledger, server.url, "r", decision, 9)
    assert len(server.bodies) == 5
    assert [each.used for each in standings(ledger).values()] == [5, 5]


def test_a_batch_is_covered_whole_or_not_begun(ledger, read):
    decision = under(ledger, leaf := authorising.record(*read(volume="3"), ledger))

    def begin(count):
        lines = [batches.NewLine(f"{n:064x}", f"p{n}", 0, None) for n in range(count)]
        return batches.begin_batch(
            ledger,
            run="r",
            teacher=("e", "m", ""),
            decision=decision,
            price=None,
            shard="ab" * 32,
            lines=lines,
        )

    with pytest.raises(GateRefused, match="does not cover"):
        begin(4)
    assert ledger.attempts("r").total == 0
    batch = begin(3)
    assert standings(ledger)[leaf].used == 3
    batches.end_batch(ledger, batch, "failed", never_worked="bad_request")
    assert standings(ledger)[leaf].used == 0


@pytest.mark.parametrize(
    ("grantor", "vendor", "speaks"),
    [
        ("OpenAI, L.L.C.", "OpenAI", True),
        ("Fakeopenai", "OpenAI", False),
        ("Metamorph GmbH", "Meta", False),
        ("Meta Platforms, Inc.", "Meta", True),
        ("Zhipu AI", "Z.ai / Zhipu", True),
        ("Some other Others Inc", "NVIDIA / others", False),
        ("NVIDIA Corporation", "NVIDIA / others", True),
    ],
)
def test_only_whoever_is_named_so_in_whole_words_speaks_for_a_text(grantor, vendor, speaks):
    row = replace(shipped().rows()[0], vendor=vendor)
    granted = Permission(
        "p",
        grantor,
        "us",
        "s",
        "d",
        "e",
        Scope(("*",), ("train_target",)),
        date(2026, 1, 1),
        None,
        True,
        "a",
        False,
    )
    assert granted.speaks_for(row) is speaks
