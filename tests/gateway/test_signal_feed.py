"""The feed of signals over a real socket, and two houses by the command line.

Only recipients are answered, each of its own copies, page by page.
"""

import base64
import json
import os
import signal as signals
import subprocess
import sys
from contextlib import contextmanager
from datetime import timedelta
from http.client import HTTPConnection
from urllib.parse import quote, urlsplit

import pytest
import signal_houses
from signal_houses import BASIS, NOW, sent, signal, text

from stillhouse.errors import EndpointError, UsageError
from stillhouse.gateway import signal_feed, signal_poll
from stillhouse.guard.signals import form, shelf, sketch_of

TAXII = "application/taxii+json;version=2.1"


@pytest.fixture
def two(tmp_path):
    with signal_houses.houses(tmp_path) as made:
        yield made


@contextmanager
def served(workspace):
    """The feed in a process of its own; gives the URL of the API root."""
    code = (
        "import sys; from pathlib import Path; from stillhouse.gateway import signal_feed as f;"
        "from stillhouse.workspace import Workspace;"
        "f.serve(Workspace(Path(sys.argv[1])), '127.0.0.1', 0, lambda url: print(url, flush=True))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, workspace.root], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
    finally:
        process.send_signal(signals.SIGTERM)
        process.wait(10)


def get(root, path, peer=None, **headers):
    at = urlsplit(root)
    connection = HTTPConnection(at.hostname, at.port, timeout=20)
    if peer is not None:
        login = base64.b64encode(f"{peer.recipient}:{peer.feed_key}".encode()).decode()
        headers = {"Authorization": f"Basic {login}", "Accept": TAXII, **headers}
    connection.request("GET", path if path.startswith("/") else at.path + path, headers=headers)
    response = connection.getresponse()
    body = json.loads(response.read())
    connection.close()
    assert response.headers["content-type"] == TAXII
    return response.status, body, response.headers


def test_a_recipient_reads_its_own_copies_and_nobody_elses(two):
    other = shelf.invite(two.a, "a.example", "c.example")
    copies = sent(two, signal(), signal("two", 2))
    shelf.export(two.a, two.ledger_a, "c.example", ["one"], BASIS, NOW)
    with served(two.a) as root:
        status, about, _ = get(root, "/taxii2/", two.peer)
        assert (status, about["api_roots"]) == (200, [root])
        assert get(root, "", two.peer)[1]["versions"] == [TAXII]
        (mine,) = get(root, "collections/", two.peer)[1]["collections"]
        (theirs,) = get(root, "collections/", other)[1]["collections"]
        assert (mine["can_read"], mine["can_write"]) == (True, False)
        path = f"collections/{mine['id']}/objects/"
        status, found, headers = get(root, path, two.peer)
        assert sorted(one["id"] for one in found["objects"]) == sorted(one["id"] for one in copies)
        assert found["more"] is False
        assert headers["x-taxii-date-added-last"] == "2026-11-22T10:00:00.000Z"
        _, manifest, _ = get(root, f"collections/{mine['id']}/manifest/", two.peer)
        assert {one["media_type"] for one in manifest["objects"]} == {form.PAYLOAD}
        _, one, _ = get(root, f"{path}{copies[0]['id']}/", two.peer)
        assert one["objects"] == [copies[0]]
        later = quote(headers["x-taxii-date-added-last"])
        assert "objects" not in get(root, f"{path}?added_after={later}", two.peer)[1]
        _, first, _ = get(root, f"{path}?limit=1", two.peer)
        assert first["more"] is True
        _, rest, _ = get(root, f"{path}?limit=1&next={quote(first['next'])}", two.peer)
        assert rest["more"] is False
        assert first["objects"] + rest["objects"] == found["objects"]

        wrong = shelf.Peer("a.example", "b.example", two.peer.public, two.peer.salt, other.feed_key)
        for stranger in (None, wrong):
            status, error, headers = get(root, path, stranger)
            assert (status, error["http_status"]) == (401, "401")
            assert headers["www-authenticate"].startswith("Basic")
        assert get(root, f"collections/{theirs['id']}/objects/", two.peer)[0] == 404
        assert get(root, f"{path}x-distillation-signal--0/", two.peer)[0] == 404
        assert get(root, path, two.peer, Accept="text/html")[0] == 406
        assert get(root, f"{path}?limit=none", two.peer)[0] == 400
        assert get(root, f"{path}?added_after=soon", two.peer)[0] == 400


def test_polling_takes_what_is_new_and_what_was_revoked(two):
    copies = sent(two, signal(), signal("two", 2))
    with served(two.a) as root:
        objects, until = signal_poll.fetch(two.peer, root)
        assert shelf.take(two.b, two.ledger_b, two.peer, objects, NOW).new == 2
        assert signal_poll.fetch(two.peer, root, until) == ([], until)
        shelf.revoke(two.a, two.ledger_a, "one", "wrong", NOW)
        objects, later = signal_poll.fetch(two.peer, root, until)
        assert [one["id"] for one in objects] == [copies[0]["id"]]
        assert shelf.take(two.b, two.ledger_b, two.peer, objects, NOW).revoked == 1
        assert later > until
        wrong = shelf.Peer("a.example", "b.example", two.peer.public, two.peer.salt, "0" * 64)
        with pytest.raises(EndpointError) as caught:
            signal_poll.fetch(wrong, root)
        assert caught.value.why == "it does not know our key"
    with pytest.raises(EndpointError, match="cannot reach"):
        signal_poll.fetch(two.peer, root)
    with pytest.raises(UsageError, match="cannot fetch"):
        signal_poll.fetch(two.peer, "http://a.example/signals/")


def test_a_private_question_is_answered_over_the_feed(two):
    sent(two, signal())
    with served(two.a) as root:
        held, of = signal_poll.ask(two.peer, root, sketch_of([text(1)]))
        assert held == of > 40
        assert signal_poll.ask(two.peer, root, sketch_of([text(7)]))[0] == 0


def test_pages_leave_out_what_expired_but_not_what_was_revoked():
    def entry(n, until, revoked=False):
        moment = form.stamp(NOW + timedelta(days=until))
        return {
            "added": f"2026-11-22T10:00:00.00{n}Z",
            "object": {"id": str(n), "revoked": revoked, "valid_until": moment},
        }

    held = [entry(1, 1), entry(2, -1), entry(3, -1, revoked=True), entry(4, 1)]
    first = signal_feed.page(held, NOW, added_after="", after="", limit=2)
    assert [each["object"]["id"] for each in first.entries] == ["1", "3"]
    rest = signal_feed.page(held, NOW, added_after="", after=first.next, limit=2)
    assert [each["object"]["id"] for each in rest.entries] == ["4"]
    assert rest.next is None


def test_two_houses_share_signals_by_the_command_line(tmp_path):
    def house(name, *words, fails=False):
        ran = subprocess.run(
            [sys.executable, "-m", "stillhouse.cli", "guard", "signals", *map(str, words)],
            cwd=tmp_path / name,
            capture_output=True,
            text=True,
            env={**os.environ, "NO_COLOR": "1"},
            check=False,
        )
        assert (ran.returncode != 0) == fails, ran.stderr
        return ran.stderr if fails else json.loads(ran.stdout) if "--json" in words else ran.stdout

    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "guard.toml").write_text(
            '[store]\nfolder = "."\n[[models]]\nname = "m"\nmax_output_tokens = 10\n'
            '[[models.upstreams]]\nurl = "http://127.0.0.1:9/v1"\nmodel = "m"\n'
            '[tiers.default]\nmodels = ["*"]\n'
        )
    (tmp_path / "template.txt").write_text(text(1))
    (tmp_path / "basis.txt").write_text(BASIS)
    (tmp_path / "seen.jsonl").write_text(
        json.dumps({"text": text(1)}) + "\n" + json.dumps(text(5, 100)) + "\n"
    )
    house("a", "pair", "b.example", "../invitation.json", "--house", "a.example")
    assert (tmp_path / "invitation.json").stat().st_mode & 0o077 == 0
    house("b", "accept", "../invitation.json")
    id = house("a", "add", "--label", "template", "--template", "../template.txt", "--json")["id"]
    house("a", "export", "b.example", "../out.json", id, "--legal-basis", "../basis.txt")
    assert house("b", "import", "a.example", "../out.json", "--json")["new"] == 1
    assert "from a.example, which it holds with confidence 50" in house("b", "match", "../seen.jsonl")
    assert id in house("a", "trace", "../out.json")
    assert house("b", "list", "--json") == {"own": [], "sent": {}, "received": {"a.example": 1}}
    house("a", "revoke", id, "--reason", "declared")
    with served(shelf.Workspace(tmp_path / "a" / ".stillhouse")) as root:
        assert house("b", "poll", "a.example", root, "--json")["revoked"] == 1
    assert house("b", "match", "../seen.jsonl") == "none\n"
    said = house("b", "import", "a.example", "../out.json", fails=True)
    assert "was revoked" in said
    assert "never comes back" in said
