"""Coming in and going out."""

from __future__ import annotations

import math
import secrets

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from stillhouse.gateway.admin import OPERATOR
from stillhouse.gateway.console.doors import (
    BROWSER,
    BROWSER_SECONDS,
    SESSION,
    browser_cookie,
    inside,
    known_browser,
    right,
    same_site,
    set_cookie,
)
from stillhouse.gateway.console.visit import BadForm, Console, Visit, bare, form_of
from stillhouse.gateway.store.sessions import Session

WRONG = "That is not the admin secret."
NO_NAME = (
    "Give your name in letters, digits, spaces and . _ @ + -, at most 64 of them: "
    "it is recorded with what you do."
)


async def login(console: Console, request: Request) -> Response:
    """The secret and a name make a session. How long it takes tells nothing of the secret."""
    if request.method != "POST":
        return bare("login.html", next=inside(request.query_params.get("next", "")), name="", fault="")
    try:
        form = await form_of(request)
    except BadForm:
        return bare("login.html", 400, next="/admin", name="", fault="That was no login.")
    goal, name = inside(form.get("next", "")), form.get("name", "").strip()

    def refused(status: int, fault: str) -> Response:
        # A secret typed into the wrong field is not shown again.
        shown = name if OPERATOR.fullmatch(name) and name != console.secret else ""
        return bare("login.html", status, next=goal, name=shown, fault=fault)

    if not same_site(request):
        console.log("console: login refused", why="sent from another site")
        return refused(403, "That form came from another site.")
    browser = known_browser(console.secret, request.cookies.get(BROWSER, ""))
    address = request.client.host if request.client else ""
    wait = console.tries.take(browser or address, browser is not None, console.now())
    if wait > 0:
        console.log("console: login refused", why="too many tries")
        answer = refused(429, f"Too many tries. Wait for {math.ceil(wait)} s.")
        answer.headers["retry-after"] = str(math.ceil(wait))
        return answer
    if not right(console.secret, form.get("secret", "")):
        console.log("console: login refused", why="wrong secret")
        return refused(401, WRONG)
    if not OPERATOR.fullmatch(name) or right(console.secret, name):
        return refused(422, NO_NAME)
    session = Session(secrets.token_urlsafe(32), name, console.now())
    await console.reading.ask(lambda: console.reading.sessions.begin(session))
    console.log("console: logged in", operator=name)
    done = RedirectResponse(goal, 303)
    set_cookie(request, done, SESSION, session.id)
    fresh = browser_cookie(console.secret, browser or secrets.token_urlsafe(12))
    set_cookie(request, done, BROWSER, fresh, BROWSER_SECONDS)
    return done


async def logout(visit: Visit) -> Response:
    console = visit.console
    await console.reading.ask(lambda: console.reading.sessions.end(visit.session.id))
    console.log("console: logged out", operator=visit.session.operator)
    done = RedirectResponse("/admin/login", 303)
    set_cookie(visit.request, done, SESSION, "", 0)
    return done
