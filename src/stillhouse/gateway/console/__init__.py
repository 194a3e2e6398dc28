"""The operator's pages under /admin: made on the server, and whole without a script.

Whatever a page shows is escaped and made visible by `shown.finished`; no page but the login is answered
without a session, and no form is taken without its session's token.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from hmac import compare_digest
from importlib.resources import files
from urllib.parse import urlencode

from starlette.requests import ClientDisconnect, Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from stillhouse.errors import StillhouseError, UsageError
from stillhouse.gateway.admin import ID
from stillhouse.gateway.console import acts, cascades, clusters, entry, pages, standings
from stillhouse.gateway.console.doors import HEADERS, SESSION, inside, same_site
from stillhouse.gateway.console.visit import (
    BadForm,
    Console,
    Reading,
    Visit,
    bare,
    form_of,
    problem,
    status_of,
)
from stillhouse.guard.reading import weakness

__all__ = ["Console", "Reading", "console_routes"]

Handler = Callable[[Visit], Awaitable[Response]]
STATIC = {
    "console.css": "text/css; charset=utf-8",
    "console.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
READ: dict[str, Handler] = {
    "/admin": pages.overview,
    "/admin/live": pages.live,
    "/admin/accounts": pages.accounts,
    "/admin/organisations": pages.organisations,
    "/admin/events": pages.events,
    "/admin/events/{id}": pages.event,
    "/admin/changes": pages.changes,
    "/admin/models": pages.models,
    "/admin/cascades": cascades.cascades,
    "/admin/standings": standings.standings,
    "/admin/standings/{id}": standings.standing,
    "/admin/clusters": clusters.clusters,
    "/admin/clusters/{id}": clusters.cluster,
    "/admin/keys/{id}": pages.key,
}


def console_routes(console: Console) -> list[Route]:
    """The pages. Raises UsageError for a weak admin secret."""
    if why := weakness(console.secret):
        raise UsageError("the admin secret is weak", why, "set it to the output of: openssl rand -base64 32")

    def route(path: str, handler: Handler, *methods: str) -> Route:
        return Route(path, partial(_answer, console, handler), methods=methods or ["GET"])

    folder = files("stillhouse.gateway.console") / "static"
    static = {name: (folder / name).read_bytes() for name in STATIC}

    async def asset(request: Request) -> Response:
        """Open to everybody: the login page is made with it."""
        name = request.path_params["name"]
        if name not in static:
            return _sealed(Response("There is nothing here.", 404, media_type="text/plain"))
        return _sealed(Response(static[name], media_type=STATIC[name]))

    return [
        Route("/admin/static/{name}", asset),
        Route("/admin/login", partial(_login, console), methods=["GET", "POST"]),
        route("/admin/logout", entry.logout, "POST"),
        *(route(path, handler) for path, handler in READ.items()),
        *(route(f"/admin/{kind}s/new", acts.add, "GET", "POST") for kind in acts.NEW),
        *(route(f"/admin/{kind}s/{{id}}/{{verb}}", acts.act, "GET", "POST") for kind in acts.VERBS),
        route("/admin/standings/{id}/decide", standings.decide, "POST"),
        route("/admin/clusters/{id}/decide", clusters.decide, "POST"),
        route("/admin/accounts/{id}", pages.account),
        route("/admin/organisations/{id}", pages.organisation),
    ]


async def _login(console: Console, request: Request) -> Response:
    try:
        return _sealed(await entry.login(console, request))
    except ClientDisconnect:
        return _sealed(Response(status_code=499))
    except StillhouseError as error:
        fault = f"Nobody can log in now: {error.what}."
        return _sealed(bare("login.html", status_of(error), next="/admin", name="", fault=fault))


async def _answer(console: Console, handler: Handler, request: Request) -> Response:
    """What a handler answers to somebody who is logged in, and to nobody else."""
    try:
        return _sealed(await _answered(console, handler, request))
    except ClientDisconnect:
        return _sealed(Response(status_code=499))
    except StillhouseError as error:
        # Without a session nothing of the stores is told.
        return _sealed(
            bare("problem.html", status_of(error), what="The stores cannot be read now.", why="", mend="")
        )


async def _answered(console: Console, handler: Handler, request: Request) -> Response:
    at, id = console.now(), request.cookies.get(SESSION, "")
    sessions, by_hand = console.reading.sessions, handler is not pages.live
    session = await console.reading.ask(lambda: sessions.find(id, at, by_hand)) if id else None
    if session is None:
        return _outside(request, by_hand)
    form: dict[str, str] = {}
    visit = Visit(console, console.gateway(), request, session, at, form)
    if request.method == "POST":
        try:
            form |= await form_of(request)
        except BadForm:
            return problem(visit, 400, "That was no form of these pages.")
        if not compare_digest(visit.token.encode(), form.get("token", "").encode()) or not same_site(request):
            console.log("console: form refused", operator=session.operator, path=request.url.path)
            return problem(
                visit,
                403,
                "That form is not of this session.",
                "It may be from before you logged in.",
                "Go back, load the page anew and send it again.",
            )
    if ID.fullmatch(request.path_params.get("id", "")) is None:
        return problem(visit, 404, "There is no such id.")
    try:
        return await handler(visit)
    except StillhouseError as error:
        return problem(visit, status_of(error), error.what, error.why, error.mend)


def _outside(request: Request, by_hand: bool) -> Response:
    if not by_hand or request.method == "POST":
        return bare("login.html", 401, next="/admin", name="", fault="You are not logged in.")
    asked = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    goal = inside(asked)
    return RedirectResponse(
        "/admin/login" if goal == "/admin" else f"/admin/login?{urlencode({'next': goal})}", 303
    )


def _sealed(response: Response) -> Response:
    response.headers.update(HEADERS)
    return response
