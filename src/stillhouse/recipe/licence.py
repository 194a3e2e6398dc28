"""What a recipe calls a licence: an SPDX id, or `LicenseRef-` and a name of one's own."""

from __future__ import annotations

import difflib
import re

# Licences of data and texts, and of what is commonly taken along with them. Ids as in the SPDX licence list.
USUAL = (
    *(f"CC-{kind}-{version}" for version in ("4.0", "3.0", "2.5", "2.0", "1.0")
      for kind in ("BY", "BY-SA", "BY-NC", "BY-ND", "BY-NC-SA", "BY-NC-ND")),
    "CC0-1.0", "CC-PDDC", "PDDL-1.0", "ODC-By-1.0", "ODbL-1.0", "CDLA-Permissive-1.0", "CDLA-Permissive-2.0",
    "CDLA-Sharing-1.0", "Apache-2.0", "MIT", "MIT-0", "BSD-2-Clause", "BSD-3-Clause", "ISC", "Unlicense",
    "GFDL-1.2-only", "GFDL-1.2-or-later", "GFDL-1.3-only", "GFDL-1.3-or-later", "MPL-2.0",
    "GPL-2.0-only", "GPL-2.0-or-later", "GPL-3.0-only", "GPL-3.0-or-later", "AGPL-3.0-only",
    "AGPL-3.0-or-later", "LGPL-2.1-only", "LGPL-2.1-or-later", "LGPL-3.0-only", "LGPL-3.0-or-later",
)  # fmt: skip
# Of these an id has a version in it.
_VERSIONED = re.compile(r"(?:CC|ODBL|ODC|PDDL|CDLA|GFDL|[AL]?GPL)(?:-[A-Za-z]+)*", re.IGNORECASE)


def spdx_id(name: str) -> str:
    """The id, spelt as SPDX has it where it is a usual one.

    Raises ValueError, with the nearest usual id, for what cannot be an id, and for one without the version
    that its family has (`CC-BY-SA`). Other ids are taken as they are: the whole list is not looked up.
    """
    usual = {each.casefold(): each for each in USUAL}
    if name.casefold() in usual:
        return usual[name.casefold()]
    if re.fullmatch(r"LicenseRef-[A-Za-z0-9.-]+", name):
        return name
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.-]*", name) and not _VERSIONED.fullmatch(name):
        return name
    spelt = re.sub(r"[\s_]+", "-", name.strip()).casefold()
    near = difflib.get_close_matches(spelt, usual, n=1, cutoff=0.5)
    mend = (
        f"did you mean `{usual[near[0]]}`?" if near else "where SPDX has none, give `LicenseRef-` and a name"
    )
    raise ValueError(f"{name!r} is no SPDX id: {mend}")
