"""Fetch what a feed of signals has (TAXII 2.1), and ask it privately.

Follows no redirect, so that the key goes to nobody else.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from ipaddress import ip_address
from typing import Any
from urllib.parse import quote, urlsplit

import orjson

from stillhouse.errors import EndpointError, UsageError
from stillhouse.guard.signals import form, private
from stillhouse.guard.signals.shelf import Peer

SECONDS = 30.0
_TAXII = "application/taxii+json;version=2.1"


def fetch(peer: Peer, root: str, since: str = "") -> tuple[list[Any], str]:
    """Objects added after `since` (all where empty), unchecked, at most `form.MOST_SIGNALS`; and the `since`
    of the next time. `root` is the URL of the API root. Raises EndpointError."""
    listed = _ask(peer, root, "collections/")[0].get("collections")
    listed = listed if isinstance(listed, list) else []
    readable = [one for one in listed if isinstance(one, Mapping) and one.get("can_read")]
    if not readable:
        raise EndpointError("this feed has nothing for us", f"{root} lists no collection", "ask its owner")
    path = f"collections/{quote(str(readable[0].get('id')), safe='')}/objects/"
    found: list[Any] = []
    after, last = "", since
    while len(found) < form.MOST_SIGNALS:
        said, until = _ask(peer, root, f"{path}?limit=100&added_after={quote(since)}&next={quote(after)}")
        objects = said.get("objects", [])
        if not isinstance(objects, list) or len(objects) > 100:
            raise EndpointError("this feed cannot be read", "it is no TAXII 2.1", f"look at {root}")
        found += objects
        last = max(last, until)
        after = str(said.get("next", ""))
        if not said.get("more") or not objects or not after:
            break
    return found, last


def ask(peer: Peer, root: str, sketch: Sequence[int]) -> tuple[int, int]:
    """How many bands of a sketch the other house holds, of how many; it learns only the latter. Raises
    EndpointError, and UsageError for an answer that is none."""
    items = private.bands(sketch)
    if not items:
        raise UsageError("nothing to ask for", "the text is too short for a sketch", "give more of it")
    scalars = [private.new_key() for _ in items]
    blinded = [private.blind(item, scalar) for item, scalar in zip(items, scalars, strict=True)]
    question = {"elements": [base64.b64encode(each).decode() for each in blinded]}
    held, _ = _ask(peer, root, "private/")
    answer, _ = _ask(peer, root, "private/evaluate/", question)
    try:
        known = private.read_filter(base64.b64decode(held["bits"], validate=True), int(held["hashes"]))
        answers = [base64.b64decode(each, validate=True) for each in answer["elements"]]
        found = [private.finish(*each) for each in zip(items, scalars, answers, strict=True)]
    except (KeyError, TypeError, ValueError):
        raise EndpointError("no such answer", f"{root} answered something else", "ask its owner") from None
    return sum(output in known for output in found), len(items)


def _ask(peer: Peer, root: str, path: str, body: Any = None) -> tuple[dict[str, Any], str]:
    """The answer, and when the last of its objects was added."""
    at = urlsplit(root if root.endswith("/") else root + "/")
    if not at.hostname or (at.scheme != "https" and not (at.scheme == "http" and _is_here(at.hostname))):
        raise UsageError(f"cannot fetch from {root}", "it is no https URL", "give the URL of the API root")
    login = base64.b64encode(f"{peer.recipient}:{peer.feed_key}".encode()).decode()
    headers = {"Authorization": f"Basic {login}", "Accept": _TAXII, "Content-Type": _TAXII}
    kind = HTTPSConnection if at.scheme == "https" else HTTPConnection
    connection = kind(at.hostname, at.port, timeout=SECONDS)
    try:
        data = None if body is None else orjson.dumps(body)
        connection.request("GET" if body is None else "POST", at.path + path, data, headers)
        response = connection.getresponse()
        said = response.read(form.MOST_FILE + 1)
    except (OSError, HTTPException) as error:
        raise EndpointError(
            f"cannot reach {root}", str(error) or type(error).__name__, "try again"
        ) from error
    finally:
        connection.close()
    if response.status != 200:
        why = {401: "it does not know our key", 429: "we asked too much today"}.get(response.status, "")
        raise EndpointError(f"{root} answered {response.status}", why, "ask its owner, or try again later")
    try:
        found = orjson.loads(said) if len(said) <= form.MOST_FILE else None
    except orjson.JSONDecodeError:
        found = None
    if not isinstance(found, dict):
        raise EndpointError("this feed cannot be read", "it is no TAXII 2.1", f"look at {root}")
    return found, response.getheader("X-TAXII-Date-Added-Last", "")


def _is_here(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
