"""Check a release from its files alone: signatures, hashes, every training row, decisions, what is owed.

Each check is one line. A release whose maker also holds its key shows that nothing was changed later only
against a key that was pinned before and a checkpoint that someone else kept; without such a checkpoint the
answer is `unanchored: internally consistent only`. No check can show that everything was logged.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow.parquet as pq

from stillhouse.audit.permits import not_covered
from stillhouse.audit.trail import Teacher, Trail, follow, name_of, not_trained_on
from stillhouse.errors import LedgerError, StillhouseError, UsageError, storage
from stillhouse.ledger import Check, Checkpoint, Verification, oms, read_checkpoint
from stillhouse.ledger.checkpoint import signer_of
from stillhouse.ledger.disclosure import LEAVES, check_upper_tiles, leaf_hashes, root_at
from stillhouse.ledger.keys import public_of_pem
from stillhouse.ledger.manifest import NAME, Manifest, brought, names, read_manifest, sha256_of
from stillhouse.ledger.verify import Outside
from stillhouse.models import weights_digest
from stillhouse.terms.facts import Obligation
from stillhouse.terms.lineage import BEGUN, as_base, known_of
from stillhouse.terms.obligations import BASE, due, file_name, of_decisions, of_seeds, settle
from stillhouse.terms.ruling import TRAINS

PROOFS = "provenance"
_NAMED = 3  # faults that a line names

# Of a decision: what `teachers.json` calls it, and what the leaf does.
_OF_A_DECISION = {
    "terms": "terms",
    "readOn": "read_on",
    "basis": "basis",
    "policy": "policy",
    "registrySha256": "registry_sha256",
    "authorisation": "authorisation",
}
# What older decisions leave out of an obligation.
_UNSAID = {
    "row": "",
    "texts": [],
    "modes": list(Obligation("note").modes),
    "redistributes": False,
    "where": "",
}


@dataclass(slots=True)
class _Bundle:
    """What the checks find out one after the other; None for what could not be read."""

    folder: Path
    public: bytes | None = None
    manifest: Manifest | None = None
    files: dict[str, str] = field(default_factory=dict)
    checkpoint: Checkpoint | None = None
    hashes: bytes | None = None
    trail: Trail | None = None

    @property
    def proofs(self) -> Path:
        return self.folder / PROOFS


def verify(folder: Path, pinned: bytes | None = None, against: bytes | None = None) -> Verification:
    """Check a release. `pinned` is the public key (32 bytes) that its maker gave before, `against` a
    checkpoint (the bytes of its note) that someone else kept.

    Raises UsageError where there is no such folder, StorageError when it cannot be read at all.
    """
    if not folder.is_dir():
        raise UsageError(
            f"there is no release in {folder}",
            "it is no folder",
            "give the one that `stillhouse release` wrote",
        )
    with storage("read the release", folder):
        next(folder.iterdir(), None)
    bundle = _Bundle(folder)
    checks = [
        _checked("files", _files, bundle),
        _checked("checkpoint", _checkpoint, bundle),
        _checked("log", _log, bundle),
        _checked("leaves", _leaves, bundle),
        _checked("signature", lambda bundle: _signature(bundle, pinned), bundle),
        _checked("model.sig", _model_signature, bundle),
        _checked("release", _release, bundle),
        _checked("weights", _weights, bundle),
        _checked("rows", _rows, bundle),
        _checked("teachers", _teachers, bundle),
        _checked("decisions", _decisions, bundle),
        _checked("obligations", _obligations, bundle),
        _checked("evaluation", _evaluation, bundle),
    ]
    anchors: tuple[Outside, ...] = ()
    if against is not None:
        checks.append(_checked("anchor", lambda bundle: _anchor(bundle, against), bundle))
        anchors = (Outside("anchor", read_checkpoint(against)),) if checks[-1].ok else ()
    signed = bundle.checkpoint
    size, root = (signed.size, signed.root) if signed else (0, b"")
    return Verification(tuple(checks), size, root, anchors)


def _checked(name: str, check: Callable[[_Bundle], str], bundle: _Bundle) -> Check:
    try:
        return Check(name, True, check(bundle))
    except _Missing as error:
        return Check(name, False, f"not checked: {error}")
    except StillhouseError as error:
        return Check(name, False, f"{error.what}: {error.why}" if error.why else error.what)
    except FileNotFoundError as error:
        missing = Path(error.filename).relative_to(bundle.folder).as_posix()
        return Check(name, False, f"{missing} is missing")
    except Exception as error:  # files of a stranger break readers in ways that no list of errors holds
        return Check(
            name, False, f"a file is not in the form that it must have ({type(error).__name__}: {error})"
        )


class _Missing(Exception):
    """An earlier check failed, and this one stands on it."""


def _need(value: Any, what: str) -> Any:
    if value is None:
        raise _Missing(f"{what} could not be read")
    return value


def _files(bundle: _Bundle) -> str:
    there = names(bundle.folder)
    if NAME not in there:
        raise _fault("there is no MANIFEST")
    bundle.manifest = manifest = read_manifest((bundle.folder / NAME).read_bytes())
    beside = [name for name in there if brought(name) and name not in manifest.files]
    ours = [name for name in there if name not in beside]
    bundle.files = {name: sha256_of(bundle.folder / name) for name in ours}
    faults = [f"{name} is missing" for name in manifest.files if name not in bundle.files]
    added = bundle.files.keys() - manifest.files.keys() - {NAME, oms.NAME}  # which have checks of their own
    faults += [f"{name} is not in the manifest" for name in added]
    faults += [
        f"{name} was changed"
        for name, digest in bundle.files.items()
        if manifest.files.get(name, digest) != digest
    ]
    _none(faults)
    line = f"{len(manifest.files)} files of {manifest.release}, each with the SHA-256 of the manifest"
    if beside:
        line += f"; not part of the release, and not read: {', '.join(sorted({*map(brought, beside)}))}"
    return line


def _checkpoint(bundle: _Bundle) -> str:
    bundle.public = public = public_of_pem((bundle.proofs / "public-key.pem").read_bytes())
    note = (bundle.proofs / "checkpoint").read_bytes()
    checkpoint = read_checkpoint(note)
    if signer_of(note, [public]) is None:
        raise _fault("provenance/checkpoint is not signed by the key beside it")
    manifest = _need(bundle.manifest, "the manifest")
    if checkpoint.origin != manifest.origin:
        raise _fault(f"the checkpoint is of {checkpoint.origin}, the manifest of {manifest.origin}")
    bundle.checkpoint = checkpoint
    return f"{checkpoint.size} leaves of {checkpoint.origin}, signed"


def _log(bundle: _Bundle) -> str:
    checkpoint = _need(bundle.checkpoint, "the checkpoint")
    hashes = leaf_hashes(bundle.proofs, checkpoint.size)
    if root_at(hashes, checkpoint.size) != checkpoint.root:
        raise _fault("the hashes in provenance/tile do not make the root of the checkpoint")
    check_upper_tiles(bundle.proofs, hashes, checkpoint.size)
    bundle.hashes = hashes
    return f"{checkpoint.size} hashes make the signed root"


def _leaves(bundle: _Bundle) -> str:
    hashes = _need(bundle.hashes, "the log")
    bundle.trail = trail = follow(bundle.proofs, hashes)
    _none(trail.faults)
    return f"{len(trail.seen)} leaves are shown, each in the log at its place"


def _signature(bundle: _Bundle, pinned: bytes | None) -> str:
    manifest, public = _need(bundle.manifest, "the manifest"), _need(bundle.public, "the key")
    if signer_of(manifest.note, [public]) is None:
        raise _fault("MANIFEST is not signed by the key of the checkpoint")
    name = f"{public.hex()[:8]}..."
    if pinned is None:
        return f"by {name}, the key that lies in the release itself: pin it with --key"
    if pinned == public:
        return f"by {name}, the pinned key"
    turns = _need(bundle.trail, "the leaves").rotations
    held = pinned
    for old, new in turns:
        held = new if old == held else held
    if held != public:
        raise _fault(
            f"it is signed by {name}, not by the pinned key {pinned.hex()[:8]}..., which signed no successor"
        )
    return f"by {name}, to which the pinned key was changed under its own signature"


def _model_signature(bundle: _Bundle) -> str:
    """Its key needs no word of its own: the release holds it, and the manifest's signer signed for that."""
    _need(bundle.manifest, "the manifest")
    found = {name for name in (oms.NAME, oms.PUBLIC) if name in bundle.files}
    if not found:
        return "not present"
    if lacking := {oms.NAME, oms.PUBLIC} - found:
        raise _fault(f"{lacking.pop()} is missing, and {found.pop()} is there")
    signed = oms.signed_files(
        (bundle.folder / oms.NAME).read_bytes(), (bundle.folder / oms.PUBLIC).read_bytes()
    )
    there = oms.covered(bundle.files)
    differ = {name for name, _ in signed.items() ^ there.items()}
    _none([f"{name} is not as {oms.NAME} says" for name in differ])
    return f"{len(signed)} files, signed by the P-256 key in {oms.PUBLIC}"


def _release(bundle: _Bundle) -> str:
    trail, manifest = _need(bundle.trail, "the leaves"), _need(bundle.manifest, "the manifest")
    body = _need(trail.release, "the release's leaf").body
    if body["name"] != manifest.release:
        raise _fault(f"the log's release is {body['name']!r}, the manifest's {manifest.release!r}")
    faults = [f"{name} is missing" for name in body["files"] if name not in bundle.files]
    faults += [
        f"{name} is not what was logged"
        for name, digest in body["files"].items()
        if bundle.files.get(name, digest) != digest
    ]
    faults += [
        f"{name} is not in the log" for name in bundle.files if name not in body["files"] and not _after(name)
    ]
    _none(faults)
    return f"leaf {trail.release.index} names the SHA-256 of {len(body['files'])} files"


def _after(name: str) -> bool:
    """Whether a file can only be written after the release's leaf: its proofs, and the signatures."""
    late = (f"{PROOFS}/checkpoint", f"{PROOFS}/public-key.pem", f"{PROOFS}/{LEAVES}", oms.NAME, NAME)
    return name in late or name.startswith(f"{PROOFS}/tile/")


def _weights(bundle: _Bundle) -> str:
    trail = _need(bundle.trail, "the leaves")
    trained = _need(trail.trained, "the training's leaf")
    digest = weights_digest(bundle.folder)
    if trained.body["weights"] != digest:
        raise _fault(
            f"leaf {trained.index} trained {trained.body['weights'][:12]}..., here lies {digest[:12]}..."
        )
    return f"leaf {trained.index} trained these weights, from the rows of leaf {trained.body['transform']}"


def _rows(bundle: _Bundle) -> str:
    trail = _need(bundle.trail, "the leaves")
    body = _need(trail.release, "the release's leaf").body
    trained = _need(trail.trained, "the training's leaf")
    faults, seen = not_trained_on(trail, trail.release, trained), 0
    named: set[int] = set()
    for row in _table(bundle.proofs / "rows.parquet"):
        seen += 1
        leaf = trail.rows.get(row["leaf"])
        if leaf is None:
            faults.append(f"the row {row['row']} names leaf {row['leaf']}, which is no row that is shown")
            continue
        named.add(row["leaf"])
        teachers, decisions = zip(*(trail.exchanges[index] for index in leaf), strict=True)
        stated = (tuple(row["exchanges"]), row["teacher"], tuple(row["decisions"]))
        if (leaf, teachers[0][0], decisions) != stated:
            faults.append(f"the row {row['row']} is not what leaf {row['leaf']} and its exchanges say")
    if not seen == len(named) == len(trail.rows) == body["rows"]:
        faults.append(
            f"{seen} rows name {len(named)} leaves, {len(trail.rows)} row leaves are shown, "
            f"and {body['rows']} were released"
        )
    _none(faults)
    return f"{seen} training rows, each a leaf that names its exchanges, all before the training"


def _teachers(bundle: _Bundle) -> str:
    trail = _need(bundle.trail, "the leaves")
    stated = {
        (entry["model"], entry["revision"] or ""): entry
        for entry in json.loads((bundle.proofs / "teachers.json").read_bytes())
    }
    faults = [
        f"{model} is in only one of teachers.json and the log"
        for model, _ in stated.keys() ^ trail.given.keys()
    ]
    for name in stated.keys() & trail.given.keys():
        faults += [f"{name[0]}: teachers.json {fault}" for fault in _of_teacher(stated[name], name, trail)]
    faults += _of_base(bundle, trail)
    _none(faults)
    shares = (f"{name[0]} {one.rows / max(1, len(trail.rows)):.1%}" for name, one in trail.given.items())
    return ", ".join(shares) + " of the rows"


def _of_teacher(stated: dict[str, Any], name: Teacher, trail: Trail) -> Iterator[str]:
    """What is wrong with what `teachers.json` says of one who taught. Older releases say less."""
    for what, value in trail.given[name].as_stated().items():
        if stated[what] != value:
            yield f"says {what} {stated[what]!r}, the leaves {value!r}"
    decided = {each["leaf"]: trail.decisions[each["leaf"]].body for each in stated["decisions"]}
    same = all(
        each["verdict"] == decided[each["leaf"]]["verdict"]
        and all(
            (each[word] or None) == (decided[each["leaf"]].get(field) or None)
            for word, field in _OF_A_DECISION.items()
            if word in each
        )
        for each in stated["decisions"]
    )
    bodies = [decided[leaf] for leaf in sorted(decided)]
    whose = {name_of(body["teacher"]["model"]) for body in bodies}
    if not same or whose != {name[0]} or not trail.given[name].decisions <= decided.keys():
        yield "does not have the decisions of the leaves"
    if stated.get("upstream") not in [body.get("upstream") for body in bodies]:
        yield "names other teachers of it than the decisions"
    if stated.get("known") not in (None, *(known_of(body.get("asked")) for body in bodies)):
        yield "knows it by other facts than the decisions"
    asked = [body["teacher"] for body in bodies]
    reached = {(each.get("access"), urlsplit(each.get("endpoint") or "").hostname) for each in asked}
    if (stated["access"], stated["host"]) not in reached:
        yield "says that it was asked in another way than was decided"
    owed = [one for body in bodies for one in body.get("obligations") or ()]
    if _differ(stated.get("obligations") or [], owed):
        yield "says that other things are owed than the decisions"
    if "use" in stated:
        yield "says that it is a base"


def _differ(stated: list[dict[str, Any]], decided: list[dict[str, Any]]) -> bool:
    """Whether other obligations are stated than were decided. Older releases do not say of which row they
    are, and older decisions leave out what they say nothing of."""
    names = {"kind", "texts", "modes"}.union(*stated)

    def told(each: dict[str, Any]) -> str:
        whole = {**_UNSAID, **each}
        return json.dumps({name: whole.get(name) for name in sorted(names)})

    return {*map(told, stated)} != {*map(told, decided)}


def _of_base(bundle: _Bundle, trail: Trail) -> Iterator[str]:
    """What is wrong with `base.json`. Releases from before it was told have none, and their decisions about a
    base name no run; those from before it told what the base is known by leave that out."""
    decided = _need(trail.release, "the release's leaf").body["decisions"]
    bodies = [(index, trail.decisions[index].body) for index in decided]
    told = [as_base(index, body) for index, body in bodies if body["use"] == BASE]
    begun = _need(trail.trained, "the training's leaf").body.get("base")
    if begun is not None and not told:
        yield f"the training began as leaf {begun} says, and the release has no decision about that"
    if BEGUN in bundle.files:
        stated = json.loads((bundle.folder / BEGUN).read_bytes())
        if "known" not in stated:
            told = [{name: value for name, value in each.items() if name != "known"} for each in told]
        if stated not in told:
            yield "base.json is not what the decision about the base says"
    elif any("run" in body for _, body in bodies if body["use"] == BASE):
        yield "base.json is missing, and there is a decision about the base"


def _decisions(bundle: _Bundle) -> str:
    trail = _need(bundle.trail, "the leaves")
    keys = {_need(bundle.public, "the key"), *trail.lost, *(old for old, _ in trail.rotations)}
    _none([*trail.wrongs, *not_covered(trail, keys)])
    line = (
        f"{len(trail.exchanges)} exchanges after {trail.decided} decisions that allowed them,"
        f" {trail.permitted} under a recorded permission in force"
    )
    if trail.graced:
        line += f", {trail.graced} of them with a day of grace, for they say only when they were answered"
    for index in sorted(trail.undisclosed):
        line += f"; {trail.used[index]} under a permission that is not disclosed (leaf {index})"
    return line


def _obligations(bundle: _Bundle) -> str:
    """What is owed is reckoned anew from the decisions, and looked for in the files."""
    trail = _need(bundle.trail, "the leaves")
    body = _need(trail.release, "the release's leaf").body
    under = {decision for _, decision in trail.exchanges.values()}
    learned = {index for index in under if trail.decisions[index].body["use"] in TRAINS}
    learned |= {_need(trail.trained, "the training's leaf").body.get("base")} - {None}
    decisions = [trail.decisions[index].body for index in sorted({*body["decisions"], *learned})]
    owed = [*of_decisions(decisions), *of_seeds(body["prompts"]["source"], body["prompts"]["licence"] or "")]
    now = due(owed, body["mode"], body["redistributes"])
    copied = [one.copy for one in now if _text(bundle, f"LICENSES/{file_name(one.copy)}.txt").strip()]
    settlement = settle(now, body["name"], body["licence"], body["confirmed"], copied)
    attributed = _text(bundle, "ATTRIBUTION.md")
    faults = [*settlement.conflicts, *settlement.unmet]
    faults += [f"NOTICE lacks {line!r}" for line in settlement.notices if line not in _text(bundle, "NOTICE")]
    faults += [
        f"ATTRIBUTION.md lacks {line!r}"
        for line in (*settlement.credits, *settlement.notes, *settlement.policies)
        if line not in attributed
    ]
    if settlement.labelled and "written by a machine" not in attributed:
        faults.append("ATTRIBUTION.md does not say that what the model writes is written by a machine")
    _none(faults)
    return f"{len(now)} are owed by the decisions, and met" if now else "none is owed by the decisions"


def _text(bundle: _Bundle, name: str) -> str:
    path = bundle.folder / name
    return path.read_text(errors="replace") if path.is_file() else ""


def _evaluation(bundle: _Bundle) -> str:
    trail = _need(bundle.trail, "the leaves")
    leaf = _need(trail.evaluated, "the evaluation's leaf")
    trained = _need(trail.trained, "the training's leaf")
    evaluation = json.loads((bundle.folder / "evaluation.json").read_bytes())
    if leaf.body["weights"] != trained.body["weights"]:
        raise _fault("the evaluation in the log is of other weights")
    ruled = leaf.body.get("verdict") or {}  # older leaves have none
    stated = {name: (evaluation.get("verdict") or {}).get(name) for name in ruled}
    if leaf.body["retention"] != evaluation["retention"] or stated != ruled:
        raise _fault("evaluation.json does not have the figures of the log")
    return f"leaf {leaf.index} has the figures of evaluation.json for these weights"


def _anchor(bundle: _Bundle, note: bytes) -> str:
    outside, checkpoint = read_checkpoint(note), _need(bundle.checkpoint, "the checkpoint")
    hashes, public = _need(bundle.hashes, "the log"), _need(bundle.public, "the key")
    keys = [public, *(old for old, _ in _need(bundle.trail, "the leaves").rotations)]
    if signer_of(note, keys) is None:
        raise _fault("the kept checkpoint is not signed by a key of this log")
    if outside.origin != checkpoint.origin:
        raise _fault(f"the kept checkpoint is of {outside.origin}, the release of {checkpoint.origin}")
    if outside.size > checkpoint.size:
        raise _fault(
            f"the kept checkpoint has {outside.size} leaves, the release's only {checkpoint.size}: "
            "give one from before the release, or a newer release"
        )
    if root_at(hashes, outside.size) != outside.root:
        raise _fault(
            f"the first {outside.size} leaves are not those of the kept checkpoint: the log was rebuilt"
        )
    return f"the kept checkpoint of {outside.size} leaves is a part of this log's history"


def _table(path: Path) -> Iterator[dict[str, Any]]:
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches():
            yield from batch.to_pylist()


def _none(faults: list[str]) -> None:
    if faults:
        more = f" (and {len(faults) - _NAMED} more)" if len(faults) > _NAMED else ""
        raise _fault("; ".join(sorted(faults)[:_NAMED]) + more)


def _fault(what: str) -> LedgerError:
    return LedgerError(what)
