"""What a student owes to those it learned from: all of it added up, and whether one release can meet it all.

Pure. At plan time the conflicts are said before any money is spent; at release the files that obligations
ask for are written from the same settlement, and what is unmet fails it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, get_args

from stillhouse.errors import GateRefused
from stillhouse.recipe import Recipe, Teacher
from stillhouse.terms.facts import Mode, Obligation, ObligationKind

BASE = "base"  # the use of a decision about those who taught the model that the student begins with

# What no file can show: somebody must say that it was done.
PROMISES = ("notify", "check_output", "keep_signals")


@dataclass(frozen=True, slots=True)
class Owed:
    """An obligation, the key of the row whose text asks for it, and the teacher (or base) that brought it.
    `in_student`: the weights of whoever brought it are in the student."""

    row: str
    teacher: str
    obligation: Obligation
    in_student: bool = field(default=False, compare=False)

    @property
    def source(self) -> str:
        return f"{self.row} (by {self.teacher})"

    @property
    def copy(self) -> tuple[str, str]:
        """Of which licence a copy is owed, and by whom: two rows of one teacher are two texts."""
        return self.row, self.teacher


@dataclass(frozen=True, slots=True)
class Settlement:
    """What a release must hold so that every obligation is met.

    `prefix` begins the name ("" where nothing asks), `marks` are not in it, `licence` is the one that the
    student is under ("" where it is free to choose). `copies` are those, as (row, teacher), whose licence's
    text goes along, `policies` use policies that bind whoever gets the model. `promises` are obligations
    that only a person can meet, as (kind, what). `conflicts` say why no release can meet everything, `unmet`
    what this one lacks, and `unknown` what may be owed beside that, as nobody knows the terms.
    """

    prefix: str = ""
    marks: tuple[str, ...] = ()
    licence: str = ""
    credits: tuple[str, ...] = ()
    notices: tuple[str, ...] = ()
    copies: tuple[tuple[str, str], ...] = ()
    policies: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    labelled: bool = False
    promises: tuple[tuple[str, str], ...] = ()
    conflicts: tuple[str, ...] = ()
    unmet: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()


def settled(
    recipe: Recipe, decisions: Iterable[Mapping[str, Any]], copied: Collection[tuple[str, str]]
) -> Settlement:
    """What the release of a recipe owes by its decisions (leaf bodies) and its prompts' licence.

    `copied` are those of which the licence's text is at hand, as (row, teacher).
    """
    decided = list(decisions)
    owed = [*of_decisions(decided), *of_seeds(seeds(recipe), recipe.prompts.licence or "")]
    now = due(dict.fromkeys(owed), recipe.release.mode, redistributes(recipe))
    name, wanted = recipe.release.name or recipe.run.name, recipe.release
    found = settle(now, name, wanted.licence, wanted.confirmed, copied)
    return replace(found, unknown=tuple(line for body in decided for line in _untold(body)))


def _untold(body: Mapping[str, Any]) -> Iterator[str]:
    """What may be owed for the base beside what its decision says."""
    if body.get("use") != BASE:
        return
    for name in body.get("unread", ()):
        yield f"the terms of the base {name} are not known: read them before the student is released"
    if unknown := (body.get("upstream") or {}).get("unknown"):
        yield f"who taught {_brought_by(body)} is not known, nor what they ask: {unknown}"


def seeds(recipe: Recipe) -> str:
    """The prompts by their name, without the folder that they lie in here."""
    source = recipe.prompts.source
    return Path(source).name if Path(source).is_absolute() else source


def redistributes(recipe: Recipe) -> bool:
    """Whether a teacher's own weights are in the student: cut out of one, or begun from the same model, which
    is known by its folder, its hub id or `checkpoint`."""
    return recipe.student.init == "from_teacher" or any(
        begins_from(recipe, teacher) for teacher in (recipe.teacher, *recipe.teachers)
    )


def begins_from(recipe: Recipe, teacher: Teacher) -> bool:
    """Whether `student.init` names this teacher's model, without regard to case. Of folders the last part of
    the path counts, as it is all that the gate is told."""
    named = {_last_of_folder(name) for name in (teacher.model, teacher.checkpoint) if name}
    return _last_of_folder(recipe.student.init) in named


def _last_of_folder(model: str) -> str:
    path = Path(model).expanduser()
    return (path.name if path.is_absolute() else model.removesuffix("/")).casefold()


def must_be_possible(settlement: Settlement) -> None:
    """Raises GateRefused where no release can meet everything."""
    if settlement.conflicts:
        raise GateRefused(
            "these teachers cannot be joined in one release",
            "\n".join(settlement.conflicts),
            'leave a teacher out, or keep the student in the house: [release] mode = "internal"',
        )


def must_be_met(settlement: Settlement) -> None:
    """Raises GateRefused for what no release can meet, and for what this one lacks."""
    must_be_possible(settlement)
    if settlement.unmet:
        why = "\n".join(settlement.unmet)
        raise GateRefused("the release does not meet what it owes", why, "mend each in the recipe")


def of_decisions(decisions: Iterable[Mapping[str, Any]]) -> list[Owed]:
    """What decisions (leaf bodies) say is owed, each thing once. What is owed to those who taught the model
    that the student begins with is owed for weights that are in it."""
    owed = [
        Owed(each["row"], _brought_by(body), _obligation(each), in_student=body.get("use") == BASE)
        for body in decisions
        for each in body.get("obligations") or ()
    ]
    return list(dict.fromkeys(owed))


def _brought_by(body: Mapping[str, Any]) -> str:
    model: str = body["teacher"]["model"]
    return the_base(model) if body.get("use") == BASE else model


def the_base(model: str) -> str:
    """How the model that the student begins with is called among those that bring obligations."""
    return f"the base {model}"


def due(owed: Iterable[Owed], mode: Mode, redistributes: bool) -> tuple[Owed, ...]:
    """Those that a student given out in this way owes; `redistributes`: a teacher's weights are in it."""
    return tuple(
        one
        for one in owed
        if mode in one.obligation.modes
        and (redistributes or one.in_student or not one.obligation.redistributes)
    )


def settle(
    owed: Sequence[Owed],
    name: str,
    licence: str | None,
    confirmed: Collection[str] = (),
    copied: Collection[tuple[str, str]] = (),
) -> Settlement:
    """What a release of this name and licence must hold, and what it lacks.

    `owed` is what is due. `confirmed` are the kinds that the operator says are done, `copied` those
    of which the licence's text is at hand, as (row, teacher).
    """
    of = {kind: [one for one in owed if one.obligation.kind == kind] for kind in get_args(ObligationKind)}
    conflicts: list[str] = []
    unmet: list[str] = []
    marks = _texts(of["no_mark"])
    prefix = _prefix(of["name_prefix"], name, marks, conflicts)
    inherited = _inherited(of["inherits"], licence or "", conflicts)
    for one in of["no_mark"]:
        for mark in one.obligation.texts:
            if mark.casefold() in prefix.casefold():
                conflicts.append(
                    f"the name must begin with {prefix!r}, and {one.source} does not allow {mark!r} in it"
                )
            elif mark.casefold() in name.casefold():
                unmet.append(f"{one.source} does not allow {mark!r} in the name {name!r}")
    if prefix and not name.startswith(prefix):
        unmet.append(
            f"the name {name!r} must begin with {prefix!r}: "
            f"set release.name, such as {_begun_with(prefix, name)!r}"
        )
    if inherited and not same_licence(licence or "", inherited):
        stated = f"release.licence is {licence!r}" if licence else "release.licence is not set"
        unmet.append(f"the student is under {inherited!r} itself, and {stated}: set {spdx_of(inherited)!r}")
    for one in of["licence_copy"]:
        if one.copy not in copied:
            unmet.append(
                f"{one.source} asks for a copy of its licence, and no text of it is at hand: name the file "
                "in `licence` of that teacher, or for a base begin from its folder with the LICENSE in it"
            )
    promises = [(kind, one) for kind in PROMISES for one in of[kind]]
    for kind, one in promises:
        if kind not in confirmed:
            unmet.append(
                f"{one.source} asks to {_ASKS[kind]}: when it is done, add {kind!r} to release.confirmed"
            )
    return Settlement(
        prefix=prefix,
        marks=marks,
        licence=inherited,
        credits=_one_of_each(of["credit"]),
        notices=_texts(of["notice"]),
        copies=tuple(dict.fromkeys(one.copy for one in of["licence_copy"])),
        policies=_texts(of["use_policy"]),
        notes=_texts(of["note"]),
        labelled=bool(of["label_ai"]),
        promises=tuple((kind, " or ".join(one.obligation.texts) or one.source) for kind, one in promises),
        conflicts=tuple(dict.fromkeys(conflicts)),
        unmet=tuple(dict.fromkeys(unmet)),
    )


def of_seeds(source: str, licence: str) -> tuple[Owed, ...]:
    """What prompts under a licence bring: an answer to a text is no way out of the text's own terms.

    A share-alike licence reaches the student, attribution asks for a line; others bring nothing here (the
    gate judges NC and ND, which are about the use).
    """
    name = licence.upper().replace(" ", "-")
    owed = []
    if any(name.startswith(family) for family in _SHARE_ALIKE):
        owed.append(Obligation("inherits", (licence,)))
    if name.startswith("CC-BY"):
        owed.append(Obligation("note", (f"Prompts from {source}, under {licence}.",)))
    return tuple(Owed(f"prompts under {licence}", source, one) for one in owed)


_SHARE_ALIKE = ("CC-BY-SA", "CC-BY-NC-SA", "ODBL", "GFDL", "GPL", "AGPL", "LGPL")
_ASKS = {
    "notify": "tell the licensor",
    "check_output": "have output checked before it is published",
    "keep_signals": "keep the marks of provenance in the answers",
}


def file_name(copy: tuple[str, str]) -> str:
    """Of a licence in a release, by row and teacher; a part of a hash tells apart what reads alike."""
    words = "-".join(copy)
    readable = "".join(letter if letter.isalnum() or letter in "-._" else "-" for letter in words)
    return f"{readable[:120]}-{sha256(json.dumps(copy).encode()).hexdigest()[:8]}"


def _obligation(record: Mapping[str, Any]) -> Obligation:
    values = {name: record[name] for name in ("kind", "redistributes", "where")}
    return Obligation(**values, texts=tuple(record["texts"]), modes=tuple(record["modes"]))


def _prefix(owed: Sequence[Owed], name: str, marks: Sequence[str], conflicts: list[str]) -> str:
    """A text that begins with one of each obligation's texts: one that the name has already, else one without
    a mark that is not allowed, else the first. Where there is none, that is a conflict."""
    texts = _texts(owed)
    fit = [text for text in texts if all(text.startswith(one.obligation.texts) for one in owed)]
    if texts and not fit:
        who = " and ".join(f"{_choice(one)} ({one.source})" for one in owed)
        conflicts.append(f"the name cannot begin with all of {who}: leave one of the teachers out")
        return ""
    free = [text for text in fit if not any(mark.casefold() in text.casefold() for mark in marks)]
    return next((text for text in free or fit if name.startswith(text)), (free or fit or [""])[0])


def _begun_with(prefix: str, name: str) -> str:
    """The name with the prefix before it, in place of as much of the prefix as it begins with already."""
    letters = [letter for letter in prefix.casefold() if letter.isalnum()]
    rest = name
    for at, letter in enumerate(name):
        if not letter.isalnum():
            continue
        if not letters or letters.pop(0) != letter.casefold():
            break
        if not name[at + 1 : at + 2].isalnum():
            rest = name[at + 1 :].lstrip("-_. ")
    return f"{prefix}-{rest}" if rest else prefix


def _inherited(owed: Sequence[Owed], stated: str, conflicts: list[str]) -> str:
    """The licence that each obligation would take, the stated one where it is among them."""
    texts = _texts(owed)
    fit = [
        text
        for text in texts
        if all(any(same_licence(text, other) for other in one.obligation.texts) for one in owed)
    ]
    if texts and not fit:
        who = " and ".join(f"{_choice(one)} by {one.source}" for one in owed)
        conflicts.append(
            f"the student would be under several licences at once, {who}: leave all but one of them out"
        )
        return ""
    return next((text for text in fit if same_licence(text, stated)), (fit or [""])[0])


def same_licence(one: str, other: str) -> bool:
    """Whether two spellings name one licence: `LicenseRef-Gemma-Terms-of-Use` is the Gemma Terms of Use."""
    return _plain(one) == _plain(other)


def is_spdx(licence: str) -> bool:
    """Whether it has the form of an SPDX expression; whether SPDX lists its ids is not looked up."""
    words = licence.replace("(", " ").replace(")", " ").split()
    ids, joins = words[::2], words[1::2]
    return (
        len(words) % 2 == 1
        and all(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.-]*\+?", word) for word in ids)
        and all(word in ("AND", "OR", "WITH") for word in joins)
    )


def spdx_of(name: str) -> str:
    """A licence's name as an SPDX expression can have it."""
    return name if is_spdx(name) else "LicenseRef-" + re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-")


def _plain(licence: str) -> str:
    words = re.sub(r"[^a-z0-9+]+", "-", licence.casefold()).strip("-")
    return words.removeprefix("licenseref-")


def _choice(one: Owed) -> str:
    return " or ".join(repr(text) for text in one.obligation.texts)


def _texts(owed: Sequence[Owed]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(text for one in owed for text in one.obligation.texts))


def _one_of_each(owed: Sequence[Owed]) -> tuple[str, ...]:
    """One wording for each obligation; what one asks for serves another that has a choice."""
    chosen = dict.fromkeys(one.obligation.texts[0] for one in owed if len(one.obligation.texts) == 1)
    for one in owed:
        texts = one.obligation.texts
        if texts and not any(text in chosen for text in texts):
            chosen[texts[0]] = None
    return tuple(chosen)
