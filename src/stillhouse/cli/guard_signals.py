"""`stillhouse guard signals`: signals of distillation, shared with others. See docs/guard-signals.md."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stillhouse.cli.options import GUARD, Config, Json

if TYPE_CHECKING:
    from stillhouse.guard.signals.shelf import Taken
    from stillhouse.ledger import Ledger
    from stillhouse.workspace import Workspace

signals_app = typer.Typer(rich_markup_mode=None, help="Signals of distillation, shared with other providers.")

Id = Annotated[str, typer.Argument(metavar="ID", help="As `list` shows it.")]
Recipient = Annotated[str, typer.Argument(metavar="RECIPIENT", help="The other provider: its domain.")]
Sender = Annotated[str, typer.Argument(metavar="SENDER", help="The other provider: its domain.")]
Texts = Annotated[Path, typer.Argument(metavar="TEXTS", help="Text, or JSONL of strings or {text}.")]
Marks = Annotated[list[str] | None, typer.Option("--mark", help="A tool that was seen; as often as needed.")]


@signals_app.command("add")
def add(
    label: Annotated[list[str], typer.Option("--label", help="What it is, as docs/guard-signals.md lists.")],
    template: Annotated[Path | None, typer.Option(metavar="TEXTS", help="The texts of its template.")] = None,
    prompts: Annotated[Path | None, typer.Option(metavar="TEXTS", help="Prompts of its source.")] = None,
    behaviour: Annotated[Path | None, typer.Option(metavar="JSON", help="Numbers from 0 to 1.")] = None,
    mark: Marks = None,
    confidence: Annotated[int, typer.Option(help="How sure it is, of 100.")] = 50,
    days: Annotated[int, typer.Option(help="How long it holds.")] = 90,
    config: Config = GUARD,
    as_json: Json = False,
) -> None:
    """Make a signal of texts that the operator has. Nobody is sent it yet, and the texts are not kept."""
    import json
    import secrets

    from stillhouse.cli import show
    from stillhouse.errors import UsageError
    from stillhouse.guard.signals import Signal, shelf, sketch_of
    from stillhouse.guard.signals.form import MOST_DAYS

    now = _now()
    numbers = None
    if behaviour is not None:
        said = _bytes(behaviour)
        try:
            numbers = json.loads(said)
        except ValueError:
            raise UsageError(f"{behaviour} cannot be read", "it is no JSON", "write {name: number}") from None
    if not 0 < days <= MOST_DAYS:
        raise UsageError("no such time", f"{days} days", f"give 1 to {MOST_DAYS}")
    made = Signal(
        secrets.token_hex(4),
        now,
        now + timedelta(days=days),
        confidence,
        tuple(label),
        None if template is None else sketch_of(_texts(template)),
        None if prompts is None else sketch_of(_texts(prompts)),
        numbers,
        tuple(mark or ()),
    )
    shelf.add(_workspace(config), made)
    said_next = f"stillhouse guard signals export RECIPIENT FILE {made.id} --legal-basis FILE"
    show.result({"id": made.id}, f"signal     {made.id}\nnext       {said_next}", as_json)


@signals_app.command("list")
def list_(config: Config = GUARD, as_json: Json = False) -> None:
    """The own signals, who was sent how many, and what others sent that holds."""
    from stillhouse.cli import show
    from stillhouse.guard.signals import shelf

    workspace, now = _workspace(config), _now()
    own = shelf.own(workspace)
    sent = {name: len(shelf.sent_to(workspace, name)) for name in shelf.recipients(workspace)}
    held = {
        name: sum(not one.revoked and one.valid_until > now for one in shelf.received(workspace, peer))
        for name, peer in shelf.peers(workspace).items()
    }
    lines = [
        f"{one.id}  until {one.valid_until:%Y-%m-%d}  confidence {one.confidence}  {' '.join(one.labels)}"
        for one in own
    ]
    lines += [f"sent to {name}: {count}" for name, count in sent.items()]
    lines += [f"from {name}: {count} that hold" for name, count in held.items()]
    said = {"own": [one.id for one in own], "sent": sent, "received": held}
    show.result(said, "\n".join(lines) or "none", as_json)


@signals_app.command("pair")
def pair(
    recipient: Recipient,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where to write the invitation.")],
    house: Annotated[str, typer.Option("--house", metavar="NAME", help="This provider: its domain.")],
    config: Config = GUARD,
    as_json: Json = False,
) -> None:
    """Write the invitation of a recipient: this house's public key, and the secrets between the two."""
    from stillhouse.cli import show
    from stillhouse.errors import storage
    from stillhouse.guard.signals import shelf

    peer = shelf.invite(_workspace(config), house, recipient)
    with storage("write", file):
        file.touch(mode=0o600)
        file.write_bytes(shelf.write_peer(peer))
    said = f"invitation {file}\nnext       hand it to {recipient} by a way that nobody else can read"
    show.result({"invitation": str(file)}, said, as_json)


@signals_app.command("accept")
def accept(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The other's invitation.")],
    config: Config = GUARD,
    as_json: Json = False,
) -> None:
    """Keep another provider's invitation, without which nothing of it is taken in."""
    from stillhouse.cli import show
    from stillhouse.guard.signals import shelf

    peer = shelf.read_peer(_bytes(file))
    shelf.accept(_workspace(config), peer)
    said = {"sender": peer.sender, "recipient": peer.recipient}
    show.result(said, f"{peer.sender} can be heard, as {peer.recipient}", as_json)


@signals_app.command("export")
def export(
    recipient: Recipient,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where to write the STIX bundle.")],
    ids: Annotated[list[str], typer.Argument(metavar="ID...", help="The own signals to send.")],
    legal_basis: Annotated[Path, typer.Option(metavar="TEXT", help="On what it rests: recorded, not sent.")],
    config: Config = GUARD,
    as_json: Json = False,
) -> None:
    """Sign copies of own signals for one recipient, and record it. From then on the feed has them as well."""
    import json

    from stillhouse.cli import show
    from stillhouse.guard.signals import shelf
    from stillhouse.workspace import write_atomic

    basis = _bytes(legal_basis).decode(errors="replace")
    with _ledger(config) as (workspace, ledger):
        bundle = shelf.export(workspace, ledger, recipient, ids, basis, _now())
    write_atomic(file, json.dumps(bundle, indent=1).encode() + b"\n")
    said = f"bundle     {file}\nsignals    {len(ids)}, for {recipient} alone"
    show.result({"bundle": str(file), "signals": len(ids)}, said, as_json)


@signals_app.command("import")
def import_(
    sender: Sender,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A STIX bundle that it signed for us.")],
    config: Config = GUARD,
    as_json: Json = False,
) -> None:
    """Take in what another provider sent: all of it or, where anything is wrong, none."""
    from stillhouse.guard.signals import form, shelf

    objects = form.objects_in(_bytes(file))
    with _ledger(config) as (workspace, ledger):
        _say_taken(shelf.take(workspace, ledger, _peer(workspace, sender), objects, _now()), sender, as_json)


@signals_app.command("poll")
def poll(
    sender: Sender,
    url: Annotated[str, typer.Argument(metavar="URL", help="The API root of its feed.")],
    config: Config = GUARD,
    as_json: Json = False,
) -> None:
    """Take in what another provider's feed (TAXII 2.1) has that is new."""
    from stillhouse.gateway import signal_poll
    from stillhouse.guard.signals import shelf
    from stillhouse.guard.signals.shelf import Taken

    with _ledger(config) as (workspace, ledger):
        peer = _peer(workspace, sender)
        objects, until = signal_poll.fetch(peer, url, shelf.since(workspace, sender))
        taken = Taken(0, 0, 0, None)
        if objects:
            taken = shelf.take(workspace, ledger, peer, objects, _now())
            shelf.fetched(workspace, sender, until)
    _say_taken(taken, sender, as_json)


@signals_app.command("revoke")
def revoke(
    id: Id,
    reason: Annotated[str, typer.Option(help="Why: recorded, not sent.")],
    config: Config = GUARD,
    as_json: Json = False,
) -> None:
    """Take an own signal back from everybody who was sent it."""
    from stillhouse.cli import show
    from stillhouse.guard.signals import shelf

    with _ledger(config) as (workspace, ledger):
        leaves = shelf.revoke(workspace, ledger, id, reason, _now())
    names = [name for name in leaves if name]
    said = f"revoked    {id}\nfeeds      {' '.join(names) or 'nobody had it'}"
    show.result({"revoked": id, "recipients": names}, said, as_json)


@signals_app.command("trace")
def trace(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What leaked: any JSON with sketches in it.")],
    config: Config = GUARD,
    as_json: Json = False,
) -> None:
    """Say whose copies leaked, also where ids and names were taken out."""
    import json
    from dataclasses import asdict

    from stillhouse.cli import show
    from stillhouse.errors import UsageError
    from stillhouse.guard.signals import form, shelf

    data = _bytes(file)
    try:
        if len(data) > form.MOST_FILE:
            raise ValueError
        leaked = json.loads(data)
    except (ValueError, RecursionError):
        raise UsageError(f"{file} cannot be traced", "it is no JSON, or too long", "cut out a part") from None
    found = shelf.trace(_workspace(config), leaked)
    lines = [
        f"{one.recipient}: {one.equal} of {one.of} slots of its copy of signal {one.signal}"
        + (", and its id" if one.named else "")
        for one in found
    ]
    said = {"copies": [asdict(one) for one in found]}
    show.result(said, "\n".join(lines) or "no recipient's copy is in it", as_json)


@signals_app.command("match")
def match(
    texts: Texts,
    mark: Marks = None,
    ask: Annotated[str, typer.Option(metavar="SENDER=URL", help="Ask this feed privately instead.")] = "",
    config: Config = GUARD,
    as_json: Json = False,
) -> None:
    """Say which signals of others these texts match. Nothing follows from it by itself."""
    from dataclasses import asdict

    from stillhouse.cli import show
    from stillhouse.guard.signals import matches, shelf, sketch_of

    workspace, sketch = _workspace(config), sketch_of(_texts(texts))
    if ask:
        from stillhouse.gateway import signal_poll

        sender, _, url = ask.partition("=")
        held, of = signal_poll.ask(_peer(workspace, sender), url, sketch)
        said = f"{sender} holds {held} of {of} pairs of slots; it learnt the number {of}, and no more"
        show.result({"sender": sender, "held": held, "of": of}, said, as_json)
        return
    peers = shelf.peers(workspace)
    signals = [one for peer in peers.values() for one in shelf.received(workspace, peer)]
    salts = {name: peer.salt for name, peer in peers.items()}
    found = matches(signals, sketch, salts=salts, now=_now(), marks=mark or ())
    plain = [{**asdict(one), "valid_until": f"{one.valid_until:%Y-%m-%d}"} for one in found]
    show.result({"matches": plain}, "\n".join(one.words() for one in found) or "none", as_json)


@signals_app.command("serve")
def serve(
    host: Annotated[str, typer.Option(help="Others than this machine need a server before it for TLS.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(help="0 for any that is free.")] = 8710,
    config: Config = GUARD,
) -> None:
    """Serve each recipient its copies (TAXII 2.1) until SIGTERM."""
    from stillhouse.gateway import signal_feed

    signal_feed.serve(_workspace(config), host, port, lambda url: typer.echo(f"serving at {url}", err=True))


def _say_taken(taken: Taken, sender: str, as_json: bool) -> None:
    from dataclasses import asdict

    from stillhouse.cli import show

    said = f"from {sender}: {taken.new} new, {taken.revoked} revoked, {taken.known} known already"
    show.result(asdict(taken), said, as_json)


def _now() -> datetime:
    return datetime.now(UTC)


def _workspace(config: Path) -> Workspace:
    from stillhouse.guard.reading import read_config
    from stillhouse.workspace import init_workspace

    return init_workspace(Path(read_config(config).store.folder))


@contextmanager
def _ledger(config: Path) -> Iterator[tuple[Workspace, Ledger]]:
    from stillhouse.ledger import Ledger

    workspace = _workspace(config)
    with Ledger.open(workspace) as ledger:
        yield workspace, ledger


def _peer(workspace: Workspace, sender: str) -> Any:
    from stillhouse.errors import UsageError
    from stillhouse.guard.signals import shelf

    peers = shelf.peers(workspace)
    if sender not in peers:
        raise UsageError(
            f"no invitation from {sender!r}",
            f"there are {', '.join(peers) or 'none yet'}",
            "see `stillhouse guard signals accept`",
        )
    return peers[sender]


def _bytes(file: Path) -> bytes:
    from stillhouse.errors import UsageError, storage

    with storage("read", file):
        try:
            return file.read_bytes()
        except (FileNotFoundError, IsADirectoryError):
            raise UsageError(f"no file {file}", "it is not there", "name another") from None


def _texts(file: Path) -> list[str]:
    """A whole text, or the lines of JSONL. Raises UsageError for lines that hold none."""
    import orjson

    from stillhouse.errors import UsageError

    data = _bytes(file)
    if file.suffix != ".jsonl":
        return [data.decode(errors="replace")]
    texts = []
    for n, line in enumerate(data.splitlines(), 1):
        try:
            said = orjson.loads(line)
        except orjson.JSONDecodeError:
            said = None
        text = said.get("text") if isinstance(said, dict) else said
        if not isinstance(text, str):
            raise UsageError(f"{file}:{n} holds no text", "a line is a string or {text}", "mend the line")
        texts.append(text)
    return texts
