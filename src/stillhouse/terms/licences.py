"""Which licence a text is: told only where every word is that licence's."""

from __future__ import annotations

import re
from hashlib import sha256
from pathlib import Path

from stillhouse.errors import storage

LARGEST = 2**20  # bytes of a file that is taken for a licence

_COPYRIGHT = re.compile(r"^[\s#/*;>-]*(?:Copyright\b|COPYRIGHT\b|\([cC]\)|©|All\s+[Rr]ights\s+[Rr]eserved)")
# A line with one of these says more than whose the work is, and stays.
_SAYS_MORE = re.compile(
    r"\b(?:(?-i:may|will)|must|shall|not|no|non|only|except|unless|if|subject|provided|condition\w*|restrict\w*"
    r"|prohibit\w*|commercial\w*|licen[cs]e\w*|permi\w*|grant\w*|outputs?|train\w*|use[ds]?)\b",
    re.IGNORECASE,
)
_TITLE = re.compile(
    r"^(?:the )?(?:mit license(?: mit)?|expat license"
    r"|(?:bsd (?:2|3) clause|(?:2|3) clause bsd|new bsd|simplified bsd|bsd) license"
    r"|bsd (?:2|3) clause (?:new or revised|simplified) license) "
)
_HOLDER = re.compile(r"\bneither the names? of (?:\w+ ){1,20}?nor the names of (?:its|their|the|other) ")
_BY_WHOM = re.compile(r"\bthis software is provided by (?:\w+ ){1,12}?as is and ")
_LIABLE = re.compile(r"\bin no event shall (?:\w+ ){1,12}?be liable for any direct ")
_FILE = re.compile(r"(?:model[-_.])?(?:licen[cs]e|copying)(?:[-_.].*)?", re.IGNORECASE)

# SHA-256 of `_body` of texts that were read: those in the licences of installed packages (Apache-2.0, MIT and
# BSD, the first with and without its appendix), and the plain texts of Creative Commons.
KNOWN = {
    "e87dea5078ce2faaea46d3475af18d30a5c0ac0f09425b60b3e0c6569f72f8d2": "Apache-2.0",
    "f45538b138cf9aea39fa205de037a0bede8305e68281650e7ab809a8b3ebb2f0": "Apache-2.0",
    "37599287c15c2f2ec060c3c3b55bdf69e3bc7a8aeeb9cd57e18800088789538a": "Apache-2.0",
    "a695632dae7eddc45ee7cf02f33abe7ba758abf5517fe52ca2b8f9e375c0cf2e": "Apache-2.0",
    "af5280fe5290abff6c81496b2430fa3ae4506a40df2cd4b45e8d5729e5615ac1": "BSD-2-Clause",
    "cb73dcd9637076ab7be4e429967783087c5b3f1b376918533697a5142839a8d9": "BSD-2-Clause",
    "56019f5f5c0d604e8bf4a9a27846d8e414fce4864a7b43ac848ee4452b97957f": "BSD-3-Clause",
    "1db6dd384613154fa62fd0477f795222008b7063196d6ceb94d390f9df7abb4c": "BSD-3-Clause",
    "0cf21bdfd1964a97a8615e128534845826afbc887edc95aa5c925cbf64386b5c": "MIT",
    "2db062dd40e7bec05f856fa75834d18d15b06014d537775860dd1f054a5f0389": "CC-BY-4.0",
    "9e38f72e0c730ccbfaaff92425f464fa9ec0421034e118ae93ad898751a250c2": "CC-BY-NC-4.0",
    "4dd2d8faa991a43111f73718974d1a9133ba1453cd76d174da75d163e35fa974": "CC-BY-SA-4.0",
    "96bdc7f63190fb4bd1ae584b890300ed7517d858b34c945642a3b9b2f1612a5f": "CC0-1.0",
}


def normalised(text: str) -> str:
    """The words of a text, in lower case, each parted by one space; lines that name no more than the holder
    of the copyright are left out, as they differ with each copy."""
    lines = (
        line
        for line in text.removeprefix("\ufeff").splitlines()
        if not (_COPYRIGHT.match(line) and len(line) <= 200 and not _SAYS_MORE.search(line))
    )
    return " ".join(re.findall(r"[^\W_]+", "\n".join(lines).lower().replace("https://", "http://")))


def digest(text: str) -> str:
    """SHA-256 (hex) of the normalised text."""
    return sha256(normalised(text).encode()).hexdigest()


def recognise(text: str) -> str:
    """The SPDX id of a licence's text, empty where any word of it is another."""
    return KNOWN.get(sha256(_body(text).encode()).hexdigest(), "")


def read_licence(folder: Path) -> tuple[str, str, str] | None:
    """Of a model's folder: the digest of its licence's normalised text, its SPDX id and the file's name.

    A file that speaks of the model (LICENSE-MODEL) goes before a plain LICENSE. Where two files differ it is
    not sure which holds, and the id is empty. None where there is no such file.
    """
    if not folder.is_dir():
        return None
    with storage("read", folder):
        paths = [path for path in folder.iterdir() if _FILE.fullmatch(path.name) and path.is_file()]
    found = []
    for path in sorted(paths, key=lambda path: ("model" not in path.name.lower(), path.name.lower())):
        with storage("read", path), path.open("rb") as file:
            data = file.read(LARGEST + 1)
        if data.strip() and len(data) <= LARGEST:
            found.append((path.name, data.decode("utf-8-sig", errors="replace")))
    if not found:
        return None
    name, text = found[0]
    alike = len({digest(other) for _, other in found}) == 1
    return digest(text), recognise(text) if alike or "model" in name.lower() else "", name


def _body(text: str) -> str:
    """The normalised text without title and without the names that a BSD licence has inside."""
    words = _TITLE.sub("", normalised(text) + " ")
    words = _HOLDER.sub("neither the name of the holder nor the names of its ", words)
    words = _BY_WHOM.sub("this software is provided by the holder as is and ", words)
    return _LIABLE.sub("in no event shall the holder be liable for any direct ", words).strip()
