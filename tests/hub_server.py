"""A real HTTP server that plays a model hub: what `huggingface_hub` 2.4.0 asks to make a repository, to
commit to it and to fetch it again. Weights come by LFS, or by Xet into the local store that hf_xet has."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web
from provider import serving

LFS = (".safetensors", ".parquet", ".gz", ".bin", ".arrow")
PAGE = 7  # files of a tree in one answer
ATTRIBUTES = b"".join(b"*%b filter=lfs diff=lfs merge=lfs -text\n" % each.encode() for each in LFS)


@dataclass(frozen=True)
class Blob:
    """`sha256` is set for files in LFS, whose bytes lie apart."""

    size: int
    oid: str  # of git
    sha256: str = ""
    data: bytes = b""


Tree = dict[str, Blob]


@dataclass
class Repository:
    private: bool
    commits: dict[str, Tree] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, tree: Tree) -> str:
        listed = json.dumps([len(self.commits), sorted((name, blob.oid) for name, blob in tree.items())])
        oid = hashlib.sha1(listed.encode()).hexdigest()
        self.commits[oid], self.branches[branch] = tree, oid
        return oid


@dataclass
class Hub:
    """`token` is the one that may write, `reads_only` one that may not. In a step that is named in `cut` the
    connection breaks, once for each time that it is named: while the body comes, or with " answered" after
    the name when all was done."""

    token: str = "hf_right"
    reads_only: str = "hf_reads"
    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    stored: dict[str, bytes] = field(default_factory=dict)  # LFS, by SHA-256
    asked: list[str] = field(default_factory=list)
    agents: set[str] = field(default_factory=set)  # who came with a token
    cut: list[str] = field(default_factory=list)
    ignores: tuple[str, ...] = ()
    repeats: bool = False  # the token, to whom it is wrong
    meanwhile: Callable[[], object] | None = None  # what others do before a commit is taken
    xet: Path | None = None

    def tree(self, name: str, branch: str = "main") -> Tree:
        repository = self.repositories[name]
        return repository.commits[repository.branches[branch]]


def blob(data: bytes) -> Blob:
    return Blob(len(data), hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest(), "", data)


def pointer(sha256: str, size: int) -> Blob:
    text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n"
    return Blob(size, blob(text.encode()).oid, sha256)


def _hung_up(request: web.Request) -> web.Response:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


def refusal(status: int, message: str, code: str = "") -> web.Response:
    headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {})}
    return web.json_response({"error": message}, status=status, headers=headers)


class Routes:
    def __init__(self, hub: Hub) -> None:
        self.hub = hub

    @web.middleware
    async def guarded(self, request: web.Request, handler: Any) -> web.StreamResponse:
        hub, step = self.hub, request.match_info.route.name or request.path
        hub.asked.append(f"{request.method} {step}")
        if step in hub.cut:
            hub.cut.remove(step)
            await request.content.readany()
            return _hung_up(request)
        bearer = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if bearer:
            hub.agents.add(request.headers["User-Agent"])
        if step != "store" and bearer and bearer not in (hub.token, hub.reads_only):
            wrong = f": the wrong token is {bearer}" if hub.repeats else ""
            return refusal(401, f"Invalid credentials in Authorization header{wrong}")
        writes = step in ("create", "branch", "preupload", "batch", "commit", "xet-write")
        if writes and bearer != hub.token:
            return refusal(403, "You don't have the rights to write there")
        answer: web.StreamResponse = await handler(request)
        if f"{step} answered" in hub.cut:
            hub.cut.remove(f"{step} answered")
            return _hung_up(request)
        return answer

    def found(self, request: web.Request) -> tuple[Repository, str]:
        """The repository, and the commit that the route names."""
        repository = self.hub.repositories.get("{org}/{name}".format(**request.match_info))
        if repository is None or (repository.private and "Authorization" not in request.headers):
            raise _Refused(refusal(404, "Repository not found", "RepoNotFound"))
        revision = request.match_info.get("revision", "main")
        commit = repository.branches.get(revision, revision)
        if commit not in repository.commits:
            raise _Refused(refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound"))
        return repository, commit

    async def create(self, request: web.Request) -> web.Response:
        asked = await request.json()
        name = f"{asked['organization']}/{asked['name']}"
        if name in self.hub.repositories:
            return refusal(409, "You already created this model repo")
        made = Repository(asked.get("visibility") == "private")
        made.commit("main", {".gitattributes": blob(ATTRIBUTES)})
        self.hub.repositories[name] = made
        return web.json_response({"url": f"{self.hub.url}/{name}"})

    async def info(self, request: web.Request) -> web.Response:
        repository, commit = self.found(request)
        name = "{org}/{name}".format(**request.match_info)
        return web.json_response({"id": name, "sha": commit, "private": repository.private, "siblings": []})

    async def branch(self, request: web.Request) -> web.Response:
        repository, _ = self.found(request)
        repository.branches[request.match_info["branch"]] = repository.branches["main"]
        return web.json_response({})

    async def tree(self, request: web.Request) -> web.Response:
        repository, commit = self.found(request)
        entries: list[dict[str, Any]] = []
        for path, each in sorted(repository.commits[commit].items()):
            entry: dict[str, Any] = {"type": "file", "path": path, "size": each.size, "oid": each.oid}
            if each.sha256:
                entry["lfs"] = {"oid": each.sha256, "size": each.size, "pointerSize": 130}
            entries.append(entry)
        start = int(request.query.get("cursor", 0))
        after = request.url.update_query(cursor=start + PAGE)
        headers = {"Link": f'<{after}>; rel="next"'} if start + PAGE < len(entries) else {}
        return web.json_response(entries[start : start + PAGE], headers=headers)

    async def validate(self, request: web.Request) -> web.Response:
        if not (await request.json())["content"].startswith("---\n"):
            return web.json_response({"errors": [{"message": "there is no metadata"}]}, status=400)
        return web.json_response({"errors": [], "warnings": []})

    async def preupload(self, request: web.Request) -> web.Response:
        repository, commit = self.found(request)
        there, files = repository.commits[commit], []
        for each in (await request.json())["files"]:
            path = each["path"]
            said = {
                "path": path,
                "uploadMode": "lfs" if path.endswith(LFS) else "regular",
                "shouldIgnore": path.endswith(self.hub.ignores) if self.hub.ignores else False,
            }
            if path in there:
                said["oid"] = there[path].sha256 or there[path].oid
            files.append(said)
        return web.json_response({"files": files})

    async def batch(self, request: web.Request) -> web.Response:
        objects = []
        for each in (await request.json())["objects"]:
            upload = {"href": f"{self.hub.url}/store/{each['oid']}"}
            known = each["oid"] in self.hub.stored
            objects.append(each if known else {**each, "actions": {"upload": upload}})
        return web.json_response({"transfer": "basic", "objects": objects})

    async def store(self, request: web.Request) -> web.Response:
        data = await request.read()
        if hashlib.sha256(data).hexdigest() != request.match_info["oid"]:
            return refusal(400, "these bytes have another SHA-256")
        self.hub.stored[request.match_info["oid"]] = data
        return web.Response()

    async def xet_token(self, request: web.Request) -> web.Response:
        self.found(request)
        url, expires = f"local://{self.hub.xet}", 2**40
        headers = {
            "X-Xet-Cas-Url": url,
            "X-Xet-Access-Token": "xet",
            "X-Xet-Token-Expiration": str(expires),
        }
        return web.json_response({"casUrl": url, "accessToken": "xet", "exp": expires}, headers=headers)

    async def commit(self, request: web.Request) -> web.Response:
        if self.hub.meanwhile is not None:
            self.hub.meanwhile()
        repository, head = self.found(request)
        lines = [json.loads(line) for line in (await request.read()).splitlines()]
        tree = dict(repository.commits[head])
        for line in lines:
            value = line["value"]
            match line["key"]:
                case "header":
                    if value.get("parentCommit", head) != head:
                        return refusal(412, "A commit has happened since. Please refresh and try again.")
                case "file":
                    tree[value["path"]] = blob(base64.b64decode(value["content"]))
                case "lfsFile":
                    if self.hub.xet is None and value["oid"] not in self.hub.stored:
                        return refusal(400, f"LFS object {value['oid']} was not uploaded")
                    tree[value["path"]] = pointer(value["oid"], value["size"])
                case "deletedFile":
                    del tree[value["path"]]
        oid = repository.commit(request.match_info["revision"], tree)
        url = "{url}/{org}/{name}/commit/{oid}".format(url=self.hub.url, oid=oid, **request.match_info)
        return web.json_response({"commitOid": oid, "commitUrl": url, "success": True})

    async def resolve(self, request: web.Request) -> web.Response:
        repository, commit = self.found(request)
        each = repository.commits[commit].get(request.match_info["path"])
        if each is None:
            return refusal(404, "Entry not found", "EntryNotFound")
        data = self.hub.stored[each.sha256] if each.sha256 else each.data
        headers = {"X-Repo-Commit": commit, "ETag": f'"{each.sha256 or each.oid}"'}
        return web.Response(body=data, headers=headers)


class _Refused(Exception):
    """What is answered in place of what a route would answer."""

    def __init__(self, answer: web.Response) -> None:
        super().__init__(answer.status)
        self.answer = answer


@web.middleware
async def refusing(request: web.Request, handler: Any) -> web.StreamResponse:
    try:
        return await handler(request)
    except _Refused as refused:
        return refused.answer


@contextmanager
def hubs() -> Iterator[Hub]:
    """A hub that answers until the block ends."""
    hub = Hub()
    routes = Routes(hub)
    app = web.Application(middlewares=[routes.guarded, refusing], client_max_size=1 << 30)
    api = "/api/models/{org}/{name}"
    for method, path, handler, step in (
        ("POST", "/api/repos/create", routes.create, "create"),
        ("POST", "/api/validate-yaml", routes.validate, "validate"),
        ("GET", api, routes.info, "info"),
        ("GET", api + "/revision/{revision}", routes.info, "revision"),
        ("POST", api + "/branch/{branch}", routes.branch, "branch"),
        ("GET", api + "/tree/{revision}", routes.tree, "tree"),
        ("POST", api + "/preupload/{revision}", routes.preupload, "preupload"),
        ("GET", api + "/xet-write-token/{revision}", routes.xet_token, "xet-write"),
        ("GET", api + "/xet-read-token/{revision}", routes.xet_token, "xet-read"),
        ("POST", "/{org}/{name}.git/info/lfs/objects/batch", routes.batch, "batch"),
        ("PUT", "/store/{oid}", routes.store, "store"),
        ("POST", api + "/commit/{revision}", routes.commit, "commit"),
        ("GET", "/{org}/{name}/resolve/{revision}/{path:.+}", routes.resolve, "resolve"),
    ):
        app.router.add_route(method, path, handler, name=step)
        if method == "GET":
            app.router.add_route("HEAD", path, handler, name=step)
    with serving() as start:
        hub.url = start(app).removesuffix("/v1")
        yield hub
