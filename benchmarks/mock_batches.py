"""The mock provider's files and batches: OpenAI's Batch API, kept on disk so that it outlives a kill.

A batch is its row (`batches/ID.json`, replaced whole at each change) and its input file. Which of its lines
were worked on, and billed, stands in the journal alone, so no line is billed twice; what it answers depends
on the line only, so the output is written when the batch ends, in an order that is not the input's.
"""

from __future__ import annotations

import asyncio
import os
import random
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

import orjson
from mock_provider import (
    Journal,
    Settings,
    Work,
    completion,
    drawn,
    error_body,
    request_id,
    work_of,
)

MOST_LINES = 50_000
MOST_BYTES = 200 << 20
MOST_METADATA = 16  # pairs; a key has at most 64 characters, a value 512
TICK = 0.02  # seconds between two steps of a batch
ENDED = ("completed", "failed", "expired", "cancelled")
URL = "/v1/chat/completions"

Answer = tuple[int, bytes, str, str]  # status, body, further headers, content type
Row = dict[str, Any]


class Line(NamedTuple):
    """A line of an input file that is a request."""

    number: int
    custom_id: str
    body: Row


class Refused(Exception):
    """A request that is answered with an error: status and message."""


class Batches:
    """`handle` answers the routes; a task for each batch that has not ended brings it forward."""

    def __init__(
        self,
        settings: Settings,
        pool: str,
        journal: Journal,
        bill: Callable[[Work, float], float],
        folder: Path,
    ) -> None:
        self.settings, self.pool, self.journal, self.bill = settings, pool, journal, bill
        self.files, self.batches = folder / "files", folder / "batches"
        self.files.mkdir(exist_ok=True)
        self.batches.mkdir(exist_ok=True)
        self.tasks: dict[str, asyncio.Task[None]] = {}
        for row in self._all(self.batches):
            if row["status"] not in ENDED:
                self._start(row["id"])

    def handle(self, method: str, path: str, content_type: str, body: bytes) -> Answer | None:
        """None where the work is done and the reply is lost."""
        parts = urlsplit(path)
        query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        try:
            done = self._route(method, parts.path.removeprefix("/v1/").split("/"), query, content_type, body)
        except Refused as refusal:
            status, message = refusal.args
            return status, error_body(message, "invalid_request_error"), "", "application/json"
        if isinstance(done, bytes):
            return 200, done, "", "application/octet-stream"
        lost = drawn(self.settings.seed, "lost", done["id"])[0] if method == "POST" and "id" in done else 1.0
        return (
            None if lost < self.settings.lost_replies else (200, orjson.dumps(done), "", "application/json")
        )

    def _route(self, method: str, path: list[str], query: Row, kind: str, body: bytes) -> Row | bytes:
        match method, path:
            case "POST", ["files"]:
                return self._upload(kind, body)
            case "GET", ["files"]:
                return _page(self._all(self.files), query)
            case "GET", ["files", name]:
                return self._load(self.files, name)
            case "GET", ["files", name, "content"]:
                self._load(self.files, name)
                return (self.files / f"{name}.jsonl").read_bytes()
            case "DELETE", ["files", name]:
                self._load(self.files, name)
                (self.files / f"{name}.json").unlink()
                return {"id": name, "object": "file", "deleted": True}
            case "POST", ["batches"]:
                return self._create(body)
            case "GET", ["batches"]:
                return _page(self._all(self.batches), query)
            case "GET", ["batches", name]:
                return self._load(self.batches, name)
            case "POST", ["batches", name, "cancel"]:
                return self._cancel(name)
        raise Refused(404, f"no route {method} /v1/{'/'.join(path)}")

    # Files

    def _upload(self, kind: str, body: bytes) -> Row:
        parts = form_parts(kind, body)
        data = parts.get("file")
        if data is None or "purpose" not in parts:
            raise Refused(400, "a file needs `file` and `purpose`")
        if len(data) > MOST_BYTES:
            raise Refused(413, f"a batch file has at most {MOST_BYTES} bytes, this one {len(data)}")
        return self._add_file(data, parts["purpose"].decode())

    def _add_file(self, data: bytes, purpose: str, name: str | None = None) -> Row:
        name = name or f"file-{self._number(self.files):08d}"
        row = {
            "id": name,
            "object": "file",
            "bytes": len(data),
            "created_at": int(time.time()),
            "filename": f"{name}.jsonl",
            "purpose": purpose,
            "status": "processed",
        }
        _replace(self.files / f"{name}.jsonl", data)
        _replace(self.files / f"{name}.json", orjson.dumps(row))
        return row

    # Batches

    def _create(self, raw: bytes) -> Row:
        try:
            asked = orjson.loads(raw)
            source, endpoint, window = (asked[k] for k in ("input_file_id", "endpoint", "completion_window"))
        except (ValueError, KeyError, TypeError) as error:
            raise Refused(
                400, f"a batch needs input_file_id, endpoint and completion_window: {error}"
            ) from None
        if endpoint != URL or window != "24h":
            raise Refused(400, f"this provider has only {URL} and 24h")
        metadata = asked.get("metadata") or {}
        if len(metadata) > MOST_METADATA or any(
            len(k) > 64 or not isinstance(v, str) or len(v) > 512 for k, v in metadata.items()
        ):
            raise Refused(400, f"metadata has at most {MOST_METADATA} pairs of 64 and 512 characters")
        self._load(self.files, source)
        now = time.time()
        row = {
            "id": f"batch_{self._number(self.batches):08d}",
            "object": "batch",
            "endpoint": endpoint,
            "errors": None,
            "input_file_id": source,
            "completion_window": window,
            "status": "validating",
            "output_file_id": None,
            "error_file_id": None,
            "created_at": int(now),
            "created_exactly": now,
            "expires_at": int(now + self.settings.batch_window),
            "request_counts": {"total": 0, "completed": 0, "failed": 0},
            "metadata": metadata or None,
        }
        self._save(row)
        self._start(str(row["id"]))
        return row

    def _cancel(self, name: str) -> Row:
        row = self._load(self.batches, name)
        if row["status"] in ENDED:
            raise Refused(409, f"the batch is {row['status']} already")
        return self._save(row, "cancelling")

    def _start(self, name: str) -> None:
        self.tasks[name] = asyncio.get_running_loop().create_task(self._bring_forward(name))

    async def _bring_forward(self, name: str) -> None:
        """From whatever its row says to the end."""
        row = self._load(self.batches, name)
        lines, errors = read_lines((self.files / f"{row['input_file_id']}.jsonl").read_bytes())
        await asyncio.sleep(self.settings.batch_seconds / 10)
        if errors:
            self._save(row | {"errors": {"object": "list", "data": errors}}, "failed")
            return
        row = self._load(self.batches, name)
        row["request_counts"]["total"] = len(lines)
        self._save(row, "in_progress" if row["status"] == "validating" else None)
        each = 0.8 * self.settings.batch_seconds / len(lines)
        begun, place = time.monotonic(), 0
        while place < len(lines):
            row = self._load(self.batches, name)
            expired = time.time() > row["created_exactly"] + self.settings.batch_window
            if expired or row["status"] == "cancelling":
                break
            until = len(lines) if each == 0 else min(len(lines), int((time.monotonic() - begun) / each))
            for line in lines[place:until]:
                self._work(name, line)
            place = max(place, until)
            await asyncio.sleep(TICK)
        cancelled = self._load(self.batches, name)["status"] == "cancelling"
        ending = "cancelled" if cancelled else "completed" if place == len(lines) else "expired"
        if not cancelled:
            self._save(self._load(self.batches, name), "finalizing")
            await asyncio.sleep(self.settings.batch_seconds / 10)
        self._end(name, lines, ending)

    def _fails(self, line: Line) -> bool:
        return drawn(self.settings.seed, "batch", request_id(line.body))[0] < self.settings.batch_errors

    def _work(self, name: str, line: Line) -> None:
        """Do and bill a line, unless the journal says that it was done."""
        if (name, line.number) in self.journal.lines:
            return
        request = request_id(line.body)
        work = work_of(self.settings, self.pool, line.body, request)
        dollars = 0.0 if self._fails(line) else self.bill(work, self.settings.batch_price)
        claims = (work.prompt_tokens, work.completion_tokens)
        self.journal.arrived(request, line.body, "batch", work, claims, dollars, (name, line.number))

    def _end(self, name: str, lines: list[Line], ending: str) -> None:
        """Write what was answered and what was not, each in an order of its own, and close the batch."""
        good, bad = [], []
        for line in lines:
            request = request_id(line.body)
            answer: Row = {"id": f"{name}_{line.number}", "custom_id": line.custom_id, "error": None}
            if (name, line.number) not in self.journal.lines:
                code = "batch_expired" if ending == "expired" else "batch_cancelled"
                message = "the batch ended before this request was worked on"
                bad.append(answer | {"response": None, "error": {"code": code, "message": message}})
            elif self._fails(line):
                body = orjson.loads(error_body("the server had an error", "server_error"))
                reply = {"status_code": 500, "request_id": request, "body": body}
                bad.append(answer | {"response": reply})
            else:
                work = work_of(self.settings, self.pool, line.body, request)
                claims = (work.prompt_tokens, work.completion_tokens)
                body = completion(request, work, str(line.body.get("model")), claims)
                good.append(answer | {"response": {"status_code": 200, "request_id": request, "body": body}})
        row = self._load(self.batches, name)
        for key, rows in (("output_file_id", good), ("error_file_id", bad)):
            random.Random(f"{self.settings.seed}{name}{key}").shuffle(rows)
            if rows:
                data = b"".join(orjson.dumps(one) + b"\n" for one in rows)
                row[key] = self._add_file(data, "batch_output", f"{name}-{key.split('_')[0]}")["id"]
        row["request_counts"] = {
            "total": len(lines),
            "completed": len(good),
            "failed": sum(one["response"] is not None for one in bad),
        }
        self._save(row, ending)

    # On disk

    def _load(self, folder: Path, name: str) -> Row:
        path = folder / f"{name}.json"
        if not re.fullmatch(r"[\w-]+", name) or not path.exists():
            raise Refused(404, f"no {folder.name.removesuffix('s')} {name}")
        return dict(orjson.loads(path.read_bytes()))

    def _save(self, row: Row, status: str | None = None) -> Row:
        if status is not None:
            row = row | {"status": status, f"{status}_at": int(time.time())}
        _replace(self.batches / f"{row['id']}.json", orjson.dumps(row))
        return row

    def _all(self, folder: Path) -> list[Row]:
        """Newest first."""
        return [orjson.loads(path.read_bytes()) for path in sorted(folder.glob("*.json"), reverse=True)]

    def _number(self, folder: Path) -> int:
        return 1 + max((int(n) for p in folder.glob("*.json") if (n := p.stem[-8:]).isdigit()), default=0)


def read_lines(data: bytes) -> tuple[list[Line], list[Row]]:
    """The requests of an input file, and what is wrong with it, as OpenAI reports it."""
    lines: list[Line] = []
    errors: list[Row] = []
    seen: set[str] = set()

    def wrong(code: str, message: str, number: int | None = None) -> None:
        errors.append({"code": code, "message": message, "param": None, "line": number})

    for number, text in enumerate(data.splitlines(), 1):
        try:
            row = orjson.loads(text)
            line = Line(number, str(row["custom_id"]), row["body"])
            valid = row["method"] == "POST" and row["url"] == URL and bool(line.body["messages"])
        except (ValueError, KeyError, TypeError) as error:
            wrong("invalid_json_line", f"no request: {error}", number)
            continue
        if not valid:
            wrong("invalid_request", f"only POST {URL} with messages", number)
        elif line.custom_id in seen:
            wrong("duplicate_custom_id", f"{line.custom_id} stands twice", number)
        else:
            seen.add(line.custom_id)
            lines.append(line)
    if not lines and not errors:
        wrong("empty_file", "the file has no line")
    if len(lines) > MOST_LINES:
        wrong("too_many_requests", f"a batch has at most {MOST_LINES} requests, this one {len(lines)}")
    return lines, errors


def form_parts(content_type: str, body: bytes) -> dict[str, bytes]:
    """The fields of a multipart/form-data body (RFC 7578) by name."""
    boundary = re.search(r'boundary="?([^";]+)', content_type)
    if boundary is None:
        raise Refused(400, "a file is sent as multipart/form-data")
    parts = {}
    for part in body.split(b"--" + boundary[1].encode())[1:-1]:
        head, _, data = part.partition(b"\r\n\r\n")
        name = re.search(rb'name="([^"]*)"', head)
        if name is not None:
            parts[name[1].decode()] = data[:-2]
    return parts


def _page(rows: list[Row], query: Mapping[str, str]) -> Row:
    """At most `limit` rows after the one whose id is `after`."""
    limit = min(100, int(query.get("limit", 20)))
    ids = [row["id"] for row in rows]
    start = ids.index(query["after"]) + 1 if query.get("after") in ids else 0
    page = rows[start : start + limit]
    return {
        "object": "list",
        "data": page,
        "first_id": page[0]["id"] if page else None,
        "last_id": page[-1]["id"] if page else None,
        "has_more": start + limit < len(rows),
    }


def _replace(path: Path, data: bytes) -> None:
    """Write a file whole or not at all, and durably."""
    new = path.with_suffix(".new")
    with new.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
