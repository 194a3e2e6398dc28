"""release: the student's folder, its documents from recorded facts, and the proofs of where it came from."""

from __future__ import annotations

import base64
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from pathlib import Path

from stillhouse.errors import GateRefused, storage
from stillhouse.ledger import Ledger, disclosure, manifest, oms
from stillhouse.ledger.keys import read_model_signing_key, read_signing_key
from stillhouse.ledger.quarantine import quarantined
from stillhouse.recipe import Recipe
from stillhouse.release import owed
from stillhouse.release.documents import ROWS, documents
from stillhouse.release.gather import gather, result_of
from stillhouse.release.provenance import learned_under, leaves_to_show, newest
from stillhouse.release.rows import write_rows
from stillhouse.terms.obligations import must_be_met, redistributes, seeds, settled
from stillhouse.terms.operator import read_publisher
from stillhouse.workspace import RunFolder, pems

PROOFS = "provenance"


@dataclass(frozen=True, slots=True)
class Released:
    folder: str
    leaf: int
    size: int  # of the log, under the checkpoint
    root: str  # base64, RFC 6962
    files: dict[str, str]  # name -> SHA-256


def release(
    run: RunFolder,
    recipe: Recipe,
    ledger: Ledger,
    decided: Sequence[int],
    now: datetime,
    licences: Mapping[tuple[str, str], bytes] | None = None,
) -> Released:
    """Write `release/`: the student as a transformers folder, its documents, the proofs, and two signatures.

    `decided` are the decisions of now that each teacher's answers may be trained on, `licences` the texts at
    hand by row and teacher. The release leaf holds the SHA-256 of every file that is there before it;
    checkpoint, leaves and hashes come after, then the signed manifest, which covers them all, and last
    `model.sig`, which covers the manifest too. The folder is replaced as a whole; a process that dies leaves
    no half of one, and what was released before lies there, or beside it as `release.old`.

    Raises GateRefused where an obligation is not met, or answers that were learned from were recalled since
    they were curated.
    """
    facts = gather(run, recipe, ledger, read_publisher(ledger.workspace), now, decided)
    grounds = {one.leaf for teacher in facts.teachers for one in teacher.decisions}
    none_recalled(run, ledger)
    bodies = [ledger.leaf(index).body for index in decided]
    settlement = settled(recipe, bodies, licences or {})
    must_be_met(settlement)
    weights = result_of(run, "train")["weights"]
    trained, evaluated = (newest(ledger, kind, run, weights) for kind in ("train_run", "evaluation"))
    # The curation that was trained on: one of later that kept the same rows wrote their leaves again.
    transform = trained.body["transform"]
    temporary, key = run.release.with_name("release.new"), read_signing_key(ledger.workspace)
    model_key = read_model_signing_key(ledger.workspace)
    with storage("write the release", run.release):
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.copytree(run.student, temporary)
        shutil.copy(run.evaluation, temporary / "evaluation.json")
        (temporary / PROOFS).mkdir()
        rows = write_rows(run, ledger, transform, temporary / ROWS)
        _write(temporary, documents(facts, rows, key))
        _write(temporary, owed.files(settlement, recipe.release.licence, licences or {}))
        _write(temporary, {oms.PUBLIC: pems(model_key)[1]})
    files = manifest.digests(temporary)
    leaf = ledger.append(
        "release",
        {
            "run": run.root.name,
            "name": facts.name,
            "licence": recipe.release.licence,
            "mode": recipe.release.mode,
            "confirmed": list(recipe.release.confirmed),
            "redistributes": redistributes(recipe),
            "prompts": {"source": seeds(recipe), "licence": recipe.prompts.licence},
            "rows": rows.count,
            "decisions": list(decided),
            "transform": transform,
            "train_run": trained.index,
            "evaluation": evaluated.index,
            "files": files,
        },
    )
    checkpoint = ledger.checkpoint()
    named = {*grounds, *decided, transform, trained.index, evaluated.index, leaf}
    named |= {trained.body.get("base")} - {None}
    shown = leaves_to_show(run, ledger, temporary / ROWS, named)
    disclosure.disclose(ledger, temporary / PROOFS, shown, checkpoint)
    sealed = manifest.seal(temporary, ledger.origin, facts.name, key)
    covered = {**sealed.files, manifest.NAME: sha256(sealed.note).hexdigest()}
    oms.sign_model(temporary, run.release.name, covered, model_key)
    with storage("write the release", run.release):
        _put_in_place(temporary, run.release)
    root = base64.b64encode(checkpoint.root).decode()
    return Released(str(run.release), leaf, checkpoint.size, root, files)


def none_recalled(run: RunFolder, ledger: Ledger) -> None:
    """Raises GateRefused where the student learned from answers that are recalled."""
    held = quarantined(ledger)
    trained_on = result_of(run, "train").get("decisions", ()) if held else ()
    gone = sorted(held & {*learned_under(run, ledger), *trained_on}) if held else []
    if gone:
        raise GateRefused(
            f"answers under the decisions {gone} were recalled",
            "this student was trained on some of them",
            "`stillhouse run RECIPE` trains one without them; or lift it: `stillhouse ledger recall --lift`",
        )


def _put_in_place(new: Path, place: Path) -> None:
    """What was there goes when the new one lies in its place, and not before."""
    aside = place.with_name(f"{place.name}.old")
    if place.exists():
        shutil.rmtree(aside, ignore_errors=True)
        place.rename(aside)
    new.rename(place)
    shutil.rmtree(aside, ignore_errors=True)


def _write(folder: Path, files: Mapping[str, bytes]) -> None:
    for place, data in files.items():
        path = folder / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
