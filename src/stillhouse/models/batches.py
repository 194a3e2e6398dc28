"""Batch jobs of an OpenAI-compatible server: its files and batches, and the lines of their results.

As with `Endpoint`, one call is one request, nothing is retried, and a failed one is data. A line of an input
file is {"custom_id", "method", "url", "body"}. A line of a result is {"custom_id", "response", "error"}, in
any order and in one of two files, answers and errors; a response is {"status_code", "request_id", "body"}.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from json import JSONDecoder
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import aiohttp
import orjson

from stillhouse.models.endpoint import (
    FATAL,
    Endpoint,
    Failure,
    FailureKind,
    Reply,
    error_of,
    kind_of,
    parse_chat,
    redact,
)

URL = "/v1/chat/completions"  # in every line and batch, whatever the base URL
WINDOW = "24h"  # the only one that there is
PAGE = 100
TRANSFER_SECONDS = 3600.0  # for a file of 200 MB

ENDINGS = frozenset({"completed", "failed", "expired", "cancelled"})


@dataclass(frozen=True, slots=True)
class Job:
    """A batch as the provider describes it: `status` is one of ENDINGS when it is over, `files` are the names
    of its results, and `error` is what is wrong with the batch as a whole, (code, message)."""

    name: str
    status: str
    metadata: Mapping[str, str]
    total: int = 0
    completed: int = 0
    failed: int = 0
    files: tuple[str, ...] = ()
    error: tuple[str, str] = ("", "")

    @property
    def over(self) -> bool:
        return self.status in ENDINGS


async def upload(endpoint: Endpoint, path: Path) -> str | Failure:
    """Send an input file; the provider's name for it."""
    form = aiohttp.FormData()
    form.add_field("purpose", "batch")
    with path.open("rb") as file:
        form.add_field("file", file, filename=path.name, content_type="application/jsonl")
        made = await _json(endpoint, "POST", "/files", form, TRANSFER_SECONDS)
    if isinstance(made, Failure):
        return made
    name = made.get("id")
    return name if isinstance(name, str) and name else _no("file")


async def create(endpoint: Endpoint, file: str, metadata: Mapping[str, str], timeout: float) -> Job | Failure:  # noqa: ASYNC109
    """Ask for a batch over an uploaded file. After a failure it may exist all the same: see `listed`."""
    asked = {"input_file_id": file, "endpoint": URL, "completion_window": WINDOW, "metadata": dict(metadata)}
    return _job(await _json(endpoint, "POST", "/batches", orjson.dumps(asked), timeout))


async def retrieve(endpoint: Endpoint, name: str, timeout: float) -> Job | Failure:  # noqa: ASYNC109
    return _job(await _json(endpoint, "GET", f"/batches/{quote(name, safe='')}", None, timeout))


async def cancel(endpoint: Endpoint, name: str, timeout: float) -> Job | Failure:  # noqa: ASYNC109
    """Ask for an end. The batch is over some minutes later, with what was done until then."""
    return _job(await _json(endpoint, "POST", f"/batches/{quote(name, safe='')}/cancel", b"{}", timeout))


async def listed(endpoint: Endpoint, timeout: float, first_page: bool = False) -> list[Job] | Failure:  # noqa: ASYNC109
    """Every batch of the account, page by page; or only the first page."""
    found: list[Job] = []
    after: dict[str, str] = {}
    while True:
        page = await _json(endpoint, "GET", f"/batches?{urlencode({'limit': PAGE} | after)}", None, timeout)
        if isinstance(page, Failure):
            return page
        rows = page.get("data")
        if not isinstance(rows, list):
            return _no("list of batches")
        for row in rows:
            job = _job(row if isinstance(row, dict) else {})
            if isinstance(job, Failure):
                return job
            found.append(job)
        if first_page or not rows or page.get("has_more") is not True:
            return found
        after = {"after": found[-1].name}


async def download(endpoint: Endpoint, file: str, into: Path) -> Failure | None:
    """Write a file's content to disk as it comes, and whole unless a Failure is returned."""
    path = f"/files/{quote(file, safe='')}/content"
    got = await endpoint.exchange("GET", path, None, TRANSFER_SECONDS, into)
    return got if isinstance(got, Failure) else None


def input_line(custom_id: str, body: bytes) -> bytes:
    """The line of an input file that asks for this body (JSON)."""
    return b'{"custom_id":"%s","method":"POST","url":"%s","body":%s}\n' % (
        custom_id.encode(),
        URL.encode(),
        body,
    )


def result_of(line: bytes) -> tuple[str, Reply | Failure]:
    """The custom id of a line of a result, and its answer or why there is none.

    `Reply.raw` is the body's own bytes within the line. Raises ValueError, with the reason, for a line that
    is no result.
    """
    row = orjson.loads(line)
    custom_id = row.get("custom_id") if isinstance(row, dict) else None
    if not isinstance(custom_id, str):
        raise ValueError("a line without custom_id")
    response, error = row.get("response"), row.get("error")
    if not isinstance(response, dict):
        code, message = error_of(orjson.dumps({"error": error}))
        return custom_id, _never_answered(code, message)
    status, request = response.get("status_code"), response.get("request_id")
    if not isinstance(status, int) or "body" not in response:
        raise ValueError("a response without status_code and body")
    raw = _body(line)
    headers = {"x-request-id": request} if isinstance(request, str) else {}
    if status != 200:
        code, message = error_of(raw)
        kind = kind_of(status, code, message)
        return custom_id, _failure(kind, f"HTTP {status}: {message}", status, status >= 500, headers)
    try:
        return custom_id, Reply(200, raw, headers, parse_chat(raw))
    except ValueError as problem:
        return custom_id, _failure("malformed", str(problem), 200, True, headers)


def _never_answered(code: str, message: str) -> Failure:
    """A line that the provider did not come to costs nothing; what another one did is not known."""
    if code.endswith("expired"):
        return _failure("expired", message, None, False)
    if code.endswith(("cancelled", "canceled")):
        return _failure("cancelled", message, None, False)
    kind = kind_of(int(code), code, message) if code.isdigit() else kind_of(500, code, message)
    return _failure(kind, message or code or "no response and no error", None, True)


def _failure(
    kind: FailureKind,
    detail: str,
    status: int | None,
    sent: bool,
    headers: Mapping[str, str] | None = None,
) -> Failure:
    return Failure(kind, redact(detail, "")[:500], status, None, sent, kind in FATAL, headers or {})


_DECODER = JSONDecoder()


def _body(line: bytes) -> bytes:
    """The bytes of `response.body` as they stand in the line."""
    text = line.decode()
    try:
        start, _ = _member(text, _begin(text, 0), "response")
        start, end = _member(text, start, "body")
    except RecursionError:
        raise ValueError("the body is nested too deeply") from None
    return text[start:end].encode()


def _member(text: str, at: int, name: str) -> tuple[int, int]:
    """Where the value of a member begins and ends, of the object that begins at `at`; the last one of that
    name, as parsers take it."""
    found = 0, 0
    at = _begin(text, at + 1)
    while text[at] == '"':
        key, at = _DECODER.raw_decode(text, at)
        start = _begin(text, _begin(text, at) + 1)  # behind the colon
        _, end = _DECODER.raw_decode(text, start)
        if key == name:
            found = start, end
        at = _begin(text, end)
        if text[at] != ",":
            break
        at = _begin(text, at + 1)
    return found


def _begin(text: str, at: int) -> int:
    """The first place from `at` on that is not white space."""
    while text[at] in " \t\r\n":
        at += 1
    return at


async def _json(
    endpoint: Endpoint,
    method: str,
    path: str,
    data: bytes | aiohttp.FormData | None,
    timeout: float,  # noqa: ASYNC109
) -> dict[str, Any] | Failure:
    answer = await endpoint.exchange(method, path, data, timeout)
    if isinstance(answer, Failure):
        return answer
    try:
        body = orjson.loads(answer[0])
    except ValueError:
        body = None
    return body if isinstance(body, dict) else _no("object")


def _job(row: dict[str, Any] | Failure) -> Job | Failure:
    if isinstance(row, Failure):
        return row
    name, status = row.get("id"), row.get("status")
    if not isinstance(name, str) or not isinstance(status, str):
        return _no("batch")
    counts, metadata = row.get("request_counts"), row.get("metadata")
    counts = counts if isinstance(counts, dict) else {}
    files = (row.get("output_file_id"), row.get("error_file_id"))
    return Job(
        name=name,
        status=status,
        metadata=metadata if isinstance(metadata, dict) else {},
        total=_count(counts.get("total")),
        completed=_count(counts.get("completed")),
        failed=_count(counts.get("failed")),
        files=tuple(file for file in files if isinstance(file, str) and file),
        error=_error(row.get("errors")),
    )


def _error(errors: Any) -> tuple[str, str]:
    """The first of the errors that a batch as a whole has."""
    rows = errors.get("data") if isinstance(errors, dict) else errors
    first = rows[0] if isinstance(rows, list) and rows else None
    return error_of(orjson.dumps({"error": first})) if isinstance(first, dict) else ("", "")


def _count(value: Any) -> int:
    return value if isinstance(value, int) and value >= 0 else 0


def _no(what: str) -> Failure:
    """A 200 whose body is something else; what it asked for may have been done."""
    return Failure("malformed", f"the answer is no {what} as OpenAI's", 200, sent=True)
