"""What the gate is asked for a recipe: the model, how it is come by, the use, the student, the operator."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from stillhouse.errors import UsageError
from stillhouse.recipe import WORDS, Recipe, Teacher
from stillhouse.terms import licences, registry
from stillhouse.terms.facts import Access, Asked, Feature, Row, Student, Use
from stillhouse.terms.lineage import TEACHERS, folder_of, read_lineage
from stillhouse.terms.obligations import begins_from, file_name, the_base
from stillhouse.terms.operator import read_operator
from stillhouse.workspace import Workspace

LARGEST = 16 * 2**20  # bytes of a document or licence
_OTHER_SENSES = ("vision_config", "audio_config")


def asked_of(recipe: Recipe, teacher: Teacher, use: Use, workspace: Workspace) -> Asked:
    """Everything that the gate decides by for one teacher of a recipe. Raises UsageError for an operator's
    file or a licence that cannot be read."""
    digest, spdx = _licence(teacher)
    served = teacher.model if teacher.endpoint else _published(teacher.model)
    return Asked(
        model=teacher.checkpoint or served,
        revision=teacher.revision,
        access=access_of(teacher),
        endpoint=without_secrets(teacher.endpoint or ""),
        use=use,
        student=Student(
            name=recipe.release.name or recipe.run.name,
            base=_base(recipe),
            task=recipe.student.task,
            mode=recipe.release.mode,
            competes=recipe.release.competes,
        ),
        operator=read_operator(workspace),
        features=_features(teacher, workspace),
        provider_pinned=teacher.upstream is not None,
        prompt_logging=teacher.prompt_logging,
        paid=teacher.paid,
        multimodal=teacher.multimodal or _has_other_senses(teacher),
        licence_sha256=digest,
        licence_spdx=spdx,
        also=(served,) if teacher.checkpoint not in (None, served) else (),
        built_on=_built_on(teacher),
        architectures=_architectures(teacher),
    )


def access_of(teacher: Teacher) -> Access:
    """How a teacher is come by where its recipe does not say. What is imported has nobody else's word for who
    gave it, so no shipped name vouches for it."""
    if teacher.access is not None:
        return teacher.access
    if teacher.imported:
        return "import"
    if teacher.endpoint is not None:
        return "api"
    return "shipped" if teacher.model.startswith("embedded:") else "weights"


def name_of(teacher: Teacher) -> str:
    """What records call a teacher, exchanges and decisions alike: of one that is served here the last part of
    its path or hub id, as where a folder lies is no business of a record's."""
    here = teacher.endpoint is None and not teacher.imported and not teacher.model.startswith("embedded:")
    return Path(teacher.model).expanduser().name if here else teacher.model


def without_secrets(url: str) -> str:
    """The server alone: no user, password or query."""
    if not url:
        return ""
    parts = urlsplit(url)
    host = parts.hostname or ""
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{f'[{host}]' if ':' in host else host}{port}{parts.path}"


def read_bounded(path: Path, what: str) -> bytes:
    """A file's bytes; none where it is missing. UsageError where it is unreadable or too long."""
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST + 1)
    except (FileNotFoundError, NotADirectoryError):
        return b""
    except OSError as error:
        raise UsageError(
            f"cannot read {what} {path}", str(error), "give a readable file with its text"
        ) from None
    if len(data) > LARGEST:
        raise UsageError(
            f"{what} {path} is too long", f"more than {LARGEST // 2**20} MiB", "give the text alone"
        )
    return data


def _published(model: str) -> str:
    """A name for rows to match: of a folder only its own name, as where it lies says nothing, but in a
    cache of the hub, where a folder above tells whose it is."""
    path = Path(model)
    for part in path.parts:
        if (cached := part.split("--"))[0] == "models" and len(cached) > 2:
            return f"{cached[1]}/{'--'.join(cached[2:])}"
    return path.name if path.is_absolute() or model.startswith((".", "~")) else model


def _built_on(teacher: Teacher) -> str:
    name = "" if teacher.endpoint or teacher.imported else _config(teacher).get("_name_or_path", "")
    return _published(name) if isinstance(name, str) and name.strip() else ""


def _architectures(teacher: Teacher) -> tuple[str, ...]:
    """What kind of model a folder's configuration says it is, by type and by class."""
    config = {} if teacher.endpoint or teacher.imported else _config(teacher)
    inner, classes = config.get("text_config"), config.get("architectures")
    said = [config.get("model_type"), inner.get("model_type") if isinstance(inner, dict) else None]
    said += classes if isinstance(classes, list) else []
    return tuple(sorted({each for each in said if isinstance(each, str) and each}))


def _features(teacher: Teacher, workspace: Workspace) -> tuple[str, ...]:
    """What the endpoint adds. Raises UsageError for a word that no row has: it would forbid nothing."""
    if not teacher.features:
        return ()
    rows = registry.load(workspace.terms).rows()
    conditions = (one for row in rows for one in row.conditions if isinstance(one, Feature))
    known = sorted({name for condition in conditions for name in condition.features})
    for name in teacher.features:
        if name.casefold() not in known:
            near = difflib.get_close_matches(name.casefold(), known, n=1, cutoff=0.4)
            raise UsageError(
                f"no terms speak of the feature {name!r}",
                f"{teacher.model} is said to have it, and no row would forbid anything by that word",
                f"did you mean `{near[0]}`?" if near else f"known are {', '.join(known)}",
            )
    return tuple(sorted({name.casefold() for name in teacher.features}))


def _base(recipe: Recipe) -> str:
    init = recipe.student.init
    if init == "from_teacher":
        return recipe.teacher.checkpoint or _published(recipe.teacher.model)
    return "" if init == "config" else _published(init)


def _licence(teacher: Teacher) -> tuple[str, str]:
    """Digest and SPDX id of the text that came with the weights; empty where there is none."""
    if teacher.licence is not None:
        text = read_bounded(Path(teacher.licence), "the licence").decode("utf-8", "replace")
        if not text.strip():
            raise UsageError(
                f"no licence at {teacher.licence}",
                "the file is missing or empty",
                "name the file that came with the weights, or leave `licence` out",
            )
        return licences.digest(text), licences.recognise(text)
    found = None
    if access_of(teacher) == "weights" and teacher.endpoint is None and not teacher.imported:
        found = licences.read_licence(Path(teacher.model).expanduser())
    return ("", "") if found is None else found[:2]


def base_named(recipe: Recipe) -> str:
    return the_base(_base(recipe))


def base_of(recipe: Recipe) -> Teacher | None:
    """The model that the student begins with, with what is said of it where it teaches as well; None where it
    is none of somebody else's, or a part of its teacher, whose own decision then speaks for it."""
    init = recipe.student.init
    if init in WORDS or init.startswith("embedded:"):
        return None
    said = next((one for one in (recipe.teacher, *recipe.teachers) if begins_from(recipe, one)), None)
    if said is None:
        return Teacher(model=init)
    return Teacher(model=init, checkpoint=said.checkpoint, licence=said.licence, multimodal=said.multimodal)


def licence_texts(recipe: Recipe, workspace: Workspace) -> dict[tuple[str, str], bytes]:
    """Texts at hand of the licences that a copy may be owed of, by the key of the row and the teacher.

    The file that the recipe names or a folder's own, if it is not known to be another licence than the row's;
    a declared document only where it is known to be the row's. A release passes on the copies in it; its own
    LICENSE names a licence and is the text of none.
    """
    rows = registry.load(workspace.terms).rows()
    base = base_named(recipe)
    sources: list[tuple[str, bytes, list[bytes]]] = [(base, _own(recipe.student.init), [])]
    found = {(row, base): text for row, text in _passed_on(recipe.student.init, rows)}
    found |= {(row, base): text for row, text in _owed_then(recipe.student.init, workspace) if text}
    for teacher in (recipe.teacher, *recipe.teachers):
        own = b"" if teacher.licence is None else read_bounded(Path(teacher.licence), "the licence")
        if not own.strip() and access_of(teacher) == "weights" and not (teacher.endpoint or teacher.imported):
            own = _own(teacher.model)
        if not (teacher.endpoint or teacher.imported):
            found |= {(row, name_of(teacher)): text for row, text in _passed_on(teacher.model, rows)}
            keys = {row.key for row in rows}
            then = [
                (row, text or (b"" if row in keys else own))
                for row, text in _owed_then(teacher.model, workspace)
            ]
            found |= {(row, name_of(teacher)): text for row, text in then if text.strip()}
        declared = [read_bounded(Path(each.document), "the terms") for each in teacher.terms]
        sources.append((name_of(teacher), own, declared))
    for name, own, declared in sources:
        theirs, known = _is_of(own, rows)
        read = {key: text for text in declared for key in _is_of(text, rows)[0]}
        for row in rows:
            if row.key in read:
                found[row.key, name] = read[row.key]
            if own.strip() and (row.key in theirs or not known):
                found[row.key, name] = own
    same = {name_of(one) for one in (recipe.teacher, *recipe.teachers) if begins_from(recipe, one)}
    return {(row, base): text for (row, name), text in found.items() if name in same} | found


def _own(model: str) -> bytes:
    """The licence in a model's folder; empty where it is no folder, a release, or has none."""
    folder = folder_of(model)
    own = None if (folder / TEACHERS).is_file() else licences.read_licence(folder)
    return b"" if own is None else read_bounded(folder / own[2], "the licence")


def _passed_on(model: str, rows: Sequence[Row]) -> Iterator[tuple[str, bytes]]:
    """The copies of licences in a release, each with the key of the row that its name begins with."""
    for path in sorted((folder_of(model) / "LICENSES").glob("*.txt")):
        keys = [row.key for row in rows if path.name.startswith(f"{row.key}-")]
        if keys and path.is_file():
            yield max(keys, key=len), read_bounded(path, "the licence")


def _owed_then(model: str, workspace: Workspace) -> Iterator[tuple[str, bytes]]:
    """The licences of which a release's record says that a copy is owed, by the row of then, which no table
    here need have; each with its copy in the release, empty where that is not there."""
    lineage = read_lineage(folder_of(model), workspace)
    for past in () if lineage is None else lineage.teachers:
        for owed in past.owed:
            if owed.obligation.kind == "licence_copy" and owed.row:
                names = (file_name((owed.row, name)) for name in (past.model, the_base(past.model)))
                paths = (folder_of(model) / "LICENSES" / f"{name}.txt" for name in names)
                yield (
                    owed.row,
                    next((read_bounded(path, "the licence") for path in paths if path.is_file()), b""),
                )


def _is_of(data: bytes, rows: Sequence[Row]) -> tuple[set[str], bool]:
    """Keys of the rows whose licence a text is, and whether it is known which licence it is."""
    text = data.decode("utf-8-sig", "replace")
    digest, spdx = licences.digest(text), licences.recognise(text)
    keys = {row.key for row in rows if digest in row.licence.sha256 or (spdx and spdx == row.licence.spdx)}
    return keys, bool(keys or spdx)


def _has_other_senses(teacher: Teacher) -> bool:
    return any(name in _config(teacher) for name in _OTHER_SENSES)


def _config(teacher: Teacher) -> Mapping[str, Any]:
    """A folder's config.json; empty where there is none that can be read."""
    try:
        config: Any = json.loads((Path(teacher.model).expanduser() / "config.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}
