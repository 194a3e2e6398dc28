"""What the student owes, met in files: LICENSE, NOTICE, ATTRIBUTION.md and LICENSES/."""

from __future__ import annotations

from collections.abc import Mapping

from stillhouse.terms.obligations import Settlement, file_name, is_spdx

FILES = ("LICENSE", "NOTICE", "ATTRIBUTION.md", "LICENSES")  # what goes with the weights, where they go


def files(
    settlement: Settlement, licence: str | None, texts: Mapping[tuple[str, str], bytes]
) -> dict[str, bytes]:
    """Each file's place in the bundle and its bytes; `texts` are licences by row and teacher."""
    found = {"LICENSE": _licence(licence).encode()}
    if settlement.notices:
        found["NOTICE"] = ("\n\n".join(settlement.notices) + "\n").encode()
    lines = [*settlement.credits, *settlement.notes]
    lines += [f"Use is bound by: {policy}" for policy in settlement.policies]
    if settlement.labelled:
        lines.append("What this model writes is written by a machine: say so where it is published.")
    if lines:
        found["ATTRIBUTION.md"] = "".join(f"- {line}\n" for line in lines).encode()
    for copy in settlement.copies:
        found[f"LICENSES/{file_name(copy)}.txt"] = texts[copy]
    return found


def _licence(licence: str | None) -> str:
    if licence is None:
        return "No licence was declared for these weights: ask whoever released them before you use them.\n"
    tag = f"SPDX-License-Identifier: {licence}\n\n" if is_spdx(licence) else ""
    return f"{tag}The weights in this folder are under {licence}.\n"
