"""Who may come in: passwords tried, cookies, tokens of forms, and the headers of every answer."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from hmac import compare_digest
from hmac import digest as hmac_digest

from starlette.requests import Request
from starlette.responses import Response

SESSION = "stillhouse_console"
BROWSER = "stillhouse_browser"  # a browser from which somebody logged in before
BROWSER_SECONDS = 90 * 86_400
PATH = "/admin"
HEADERS: Mapping[str, str] = {
    "content-security-policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; "
        "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "cache-control": "no-store",
}
INSIDE = re.compile(r"/admin(?:/[A-Za-z0-9_-]+)*(?:\?[A-Za-z0-9_=&.:%+-]*)?")

TRIES = 5.0  # at once from one browser or address, and then
EVERY = 10.0  # seconds for each further one
ALL_TRIES, ALL_EVERY = 60.0, 1.0  # from all strangers together
HELD = 10_000  # addresses that are remembered


@dataclass(slots=True)
class Tries:
    """How often the secret may be tried: few times from one address and from all strangers together.

    A browser from which somebody has logged in before has an allowance of its own, so that strangers cannot
    keep the operator out.
    """

    left: OrderedDict[str, tuple[float, float]] = field(default_factory=OrderedDict)

    def take(self, who: str, known: bool, now: float) -> float:
        """0 where `who` may try, which takes one try from it; else after how many seconds it may."""
        wanted = [(who, TRIES, EVERY)] if known else [(who, TRIES, EVERY), ("", ALL_TRIES, ALL_EVERY)]
        left = [self._left(name, most, every, now) for name, most, every in wanted]
        wait = max((1 - have) * every for have, (_, _, every) in zip(left, wanted, strict=True))
        if wait > 0:
            return wait
        for (name, _, _), have in zip(wanted, left, strict=True):
            self.left[name] = (have - 1, now)
            self.left.move_to_end(name)
        while len(self.left) > HELD:
            self.left.popitem(last=False)
        return 0.0

    def _left(self, name: str, most: float, every: float, now: float) -> float:
        have, since = self.left.get(name, (most, now))
        return min(most, have + (now - since) / every)


def right(secret: str, given: str) -> bool:
    """Compared by digests, so that the time tells nothing of where they differ."""
    return compare_digest(_hash(secret), _hash(given))


def token_of(secret: str, session: str) -> str:
    """What each form of a session carries, and nobody makes without the admin secret."""
    return hmac_digest(secret.encode(), b"console form " + session.encode(), "sha256").hex()


def browser_cookie(secret: str, random: str) -> str:
    return f"{random}.{_browser_mark(secret, random)}"


def known_browser(secret: str, cookie: str) -> str | None:
    """The random part of the cookie, where it is one that was given out under this secret."""
    random, _, mark = cookie.partition(".")
    same = compare_digest(_hash(_browser_mark(secret, random)), _hash(mark))
    return random if same else None


def same_site(request: Request) -> bool:
    """Whether a form came from one of these pages, as far as the browser says."""
    return request.headers.get("sec-fetch-site", "same-origin") in ("same-origin", "none")


def behind_tls(request: Request) -> bool:
    """Whether the browser came by TLS. Who says so falsely makes only its own cookie useless."""
    return (
        request.url.scheme == "https"
        or request.headers.get("x-forwarded-proto", "") == "https"
        or request.headers.get("origin", "").startswith("https://")
    )


def set_cookie(
    request: Request, response: Response, name: str, value: str, seconds: int | None = None
) -> None:
    """`seconds` None: until the browser is closed; 0: delete it."""
    response.set_cookie(
        name,
        value,
        max_age=seconds,
        path=PATH,
        secure=behind_tls(request),
        httponly=True,
        samesite="strict",
    )


def inside(path: str) -> str:
    """Where to go after login: a page of the console, whatever was asked for."""
    return path if INSIDE.fullmatch(path) else PATH


def _browser_mark(secret: str, random: str) -> str:
    return hmac_digest(secret.encode(), b"console browser " + random.encode(), "sha256").hex()


def _hash(text: str) -> bytes:
    return sha256(text.encode("utf-8", "surrogatepass")).digest()
