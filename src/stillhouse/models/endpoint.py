"""The client for any OpenAI-compatible server, used by `ask` only. A failed request is data, no exception.

One request, one result: nothing is retried here and no redirect is followed, because the caller writes down
each attempt. One identity is shown (`User-Agent: stillhouse/...`). Proxy settings and `.netrc` in the
environment are not read (`trust_env` is off): they would send a key to a host that the recipe does not name.
"""

from __future__ import annotations

import asyncio
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from email.utils import parsedate_to_datetime
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import urlsplit

import aiohttp
import orjson

from stillhouse.errors import EndpointError, UsageError, storage
from stillhouse.records import Completion, FinishReason, Usage

FailureKind = Literal[
    "unreachable",
    "timeout",
    "auth",
    "not_found",
    "bad_request",
    "rate_limited",
    "quota",
    "server",
    "malformed",
    "cut",
    "too_large",
    "expired",
    "cancelled",
    "lost",  # whoever sent it died; told by `ask`, never by this client
]

MAX_REPLY_BYTES = 64 << 20
_CONNECT_SECONDS = 30.0
_DETAIL_CHARACTERS = 500
_KEPT_HEADERS = frozenset({"x-request-id", "request-id", "retry-after", "retry-after-ms", "date"})
_RATES = ("x-ratelimit-", "anthropic-ratelimit-")
_QUOTA_CODES = frozenset({"insufficient_quota", "quota_exceeded", "insufficient_credits"})
FATAL = frozenset({"auth", "not_found", "quota"})
_JSON = {"Content-Type": "application/json"}
_FINISH: dict[object, FinishReason] = {
    "stop": "stop",
    "length": "length",
    "content_filter": "content_filter",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
}
_SCORED = re.compile(rb'"prompt_logprobs"\s*:\s*\[')
_LOOKS_SECRET = re.compile(r"\b(?:sk|pk|rk)[-_][\w*-]{6,}|(?<=[Bb]earer )\S+")


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer with status 200 whose shape is right: the bytes as they came, and what they say.

    `headers` holds, in lower case, the request id, the rate limits and Retry-After.
    """

    status: int
    raw: bytes
    headers: Mapping[str, str]
    completions: tuple[Completion, ...]


@dataclass(frozen=True, slots=True)
class Failure:
    """A request without a usable answer.

    `sent`: a model may have worked on it, so it may have been billed. `fatal`: asking again, or asking
    something else, will fail in the same way until a person changes something. `retry_after`: seconds that
    the server asks to wait, None when it does not say.
    """

    kind: FailureKind
    detail: str
    status: int | None = None
    retry_after: float | None = None
    sent: bool = False
    fatal: bool = False
    headers: Mapping[str, str] = field(default_factory=dict)


class Endpoint:
    """An OpenAI-compatible server at `base_url` (which ends in `/v1` as a rule); use it by `async with`.

    The key is read once, from the environment variable `key_env`, and appears in no repr, log or error.
    Raises UsageError for a base URL that is none or holds a password, and for a variable that is not set.
    """

    def __init__(self, base_url: str, key_env: str | None = None) -> None:
        self.base_url = _checked_url(base_url)
        self._key = _read_key(key_env) if key_env else ""
        self._session: aiohttp.ClientSession | None = None

    def __repr__(self) -> str:
        return f"Endpoint({self.base_url!r})"

    async def __aenter__(self) -> Self:
        headers = {"User-Agent": identity()}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=30),  # the caller bounds what is open
            cookie_jar=aiohttp.DummyCookieJar(),
            headers=headers,
            trust_env=False,
        )
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def chat(self, body: bytes, timeout: float) -> Reply | Failure:  # noqa: ASYNC109
        """POST `body` (JSON) to `/chat/completions`; the whole exchange may take `timeout` seconds."""
        return await self.complete("/chat/completions", body, timeout)

    async def complete(self, path: str, body: bytes, timeout: float) -> Reply | Failure:  # noqa: ASYNC109
        """As `chat`, or to `/completions` token ids to read, of which `body` asks for `prompt_logprobs`."""
        answer = await self.exchange("POST", path, body, timeout)
        if isinstance(answer, Failure):
            return answer
        raw, headers = answer
        try:
            completions = parse_chat(raw)
        except ValueError as error:
            return self._not_the_shape(raw, headers, str(error))
        if path == "/completions" and not _SCORED.search(raw):
            said = "it told no prompt_logprobs: vLLM and `stillhouse serve` do"
            return replace(self._failed("malformed", said, 200, sent=True), fatal=True)
        return Reply(200, raw, headers, completions)

    async def models(self, timeout: float = 30.0) -> list[str]:  # noqa: ASYNC109
        """The ids of the models that the server offers. Raises EndpointError when it does not tell."""
        answer = await self.exchange("GET", "/models", None, timeout)
        if isinstance(answer, Failure):
            raise EndpointError(f"{self.base_url} did not list its models", answer.detail, _mend(answer.kind))
        try:
            rows = orjson.loads(answer[0])["data"]
            return [str(row["id"]) for row in rows]
        except (ValueError, KeyError, TypeError) as error:
            raise EndpointError(
                f"{self.base_url} did not list its models",
                "its answer to /models is not an OpenAI-compatible list",
                "check base_url; it usually ends in /v1",
            ) from error

    async def exchange(
        self,
        method: str,
        path: str,
        data: bytes | aiohttp.FormData | None,
        timeout: float,  # noqa: ASYNC109
        into: Path | None = None,
    ) -> tuple[bytes, dict[str, str]] | Failure:
        """The body and kept headers of a 200, or why there is none; `data` as bytes is JSON. With `into` the
        body of a 200 is written to that file, however large, and given as b""."""
        if self._session is None:
            raise RuntimeError("use `async with Endpoint(...)`")
        limits = _limits(timeout)
        url, kind = self.base_url + path, _JSON if isinstance(data, bytes) else None
        try:
            async with self._session.request(
                method, url, data=data, headers=kind, timeout=limits, allow_redirects=False
            ) as response:
                if into is not None and response.status == 200:
                    await _save(response, into)
                    return b"", {}
                raw = await _read(response)
                headers = _kept(response.headers)
                if raw is None:
                    return self._failed("too_large", f"the answer passes {MAX_REPLY_BYTES} bytes", sent=True)
                if response.status == 200:
                    return self._without_key(raw), headers
                return self._refused(response.status, raw, headers, response.headers.get("Location"))
        except aiohttp.ConnectionTimeoutError:
            return self._failed("timeout", f"no connection within {limits.sock_connect:g} s")
        except TimeoutError:
            return self._failed("timeout", f"no whole answer within {timeout:g} s", sent=True)
        except aiohttp.ClientConnectorError as error:  # also name resolution and TLS
            return self._failed("unreachable", str(error))
        except aiohttp.InvalidURL as error:
            return self._failed("unreachable", f"not a usable address: {error}")
        except (aiohttp.ClientError, OSError) as error:
            reason = str(error) or type(error).__name__
            return self._failed("cut", f"the connection broke: {reason}", sent=True)
        except (ValueError, asyncio.IncompleteReadError) as error:  # headers or chunks that are no HTTP
            return self._failed("malformed", f"not HTTP: {error}", sent=True)

    def _without_key(self, raw: bytes) -> bytes:
        """A proxy that repeats what it was sent must not bring the key into the ledger."""
        return raw.replace(self._key.encode(), b"[key]") if self._key else raw

    def _refused(self, status: int, raw: bytes, headers: dict[str, str], location: str | None) -> Failure:
        code, message = error_of(raw)
        wait = retry_after(headers)
        kind = kind_of(status, code, message)
        if 300 <= status < 400:
            message = f"the server redirects to {location}; name that address as base_url"
        detail = f"HTTP {status}: {message}" if message else f"HTTP {status}"
        failure = self._failed(kind, detail, status=status, wait=wait, sent=status >= 500)
        return replace(failure, headers=headers)

    def _not_the_shape(self, raw: bytes, headers: dict[str, str], reason: str) -> Failure:
        """A 200 that holds no completion; some routers put the error of the server behind them there."""
        code, message = error_of(raw)
        if message and re.fullmatch(r"[45][0-9][0-9]", code):
            kind = kind_of(int(code), code, message)
            return self._failed(
                kind, f"error {code} inside a 200: {message}", 200, retry_after(headers), True
            )
        said = f"{reason}; it says: {message}" if message else f"{reason}; it begins {raw[:80]!r}"
        return self._failed("malformed", said, 200, sent=True)

    def _failed(
        self,
        kind: FailureKind,
        detail: str,
        status: int | None = None,
        wait: float | None = None,
        sent: bool = False,
    ) -> Failure:
        shown = redact(detail, self._key)[:_DETAIL_CHARACTERS]
        return Failure(kind, shown, status, wait, sent, kind in FATAL)


# ---------------------------------------------------------------- decisions


def kind_of(status: int, code: str, message: str) -> FailureKind:
    """What a status other than 200 means; `code` and `message` are from the error body, "" if absent."""
    if code in _QUOTA_CODES or code.startswith("billing") or status == 402:
        return "quota"
    if status == 429:
        return "quota" if "exceeded your current quota" in message else "rate_limited"
    if status in (401, 403):
        return "auth"
    if status == 413:
        return "too_large"
    if status in (404, 405, 410) or 300 <= status < 400:
        return "not_found"
    if status == 408:
        return "timeout"
    return "server" if status >= 500 or status in (409, 425) else "bad_request"


def error_of(raw: bytes) -> tuple[str, str]:
    """(code, message) of an error body in any of the shapes that servers use; "" where absent."""
    try:
        body = orjson.loads(raw)
    except ValueError:
        return "", " ".join(raw[:2000].decode("utf-8", "replace").split())
    if isinstance(body, list) and body:  # Gemini's compatible endpoint wraps it
        body = body[0]
    error = body.get("error", body) if isinstance(body, dict) else body
    if not isinstance(error, dict):
        return "", error if isinstance(error, str) else ""
    code = error.get("code") or error.get("type") or ""
    message = error.get("message") or error.get("detail") or ""
    return str(code), message if isinstance(message, str) else orjson.dumps(message).decode()


def retry_after(headers: Mapping[str, str], now: float | None = None) -> float | None:
    """Seconds to wait by `retry-after-ms`, or by `retry-after` as seconds or HTTP date (RFC 9110, 10.2.3).

    A date is read against the server's own `date` header, so that a wrong clock here does no harm; `now`
    (Unix seconds) stands in for a server that sends none. None when nothing readable was said.
    """
    for name, scale in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        try:
            seconds = float(headers[name]) * scale
        except (KeyError, ValueError):
            continue
        if math.isfinite(seconds):
            return max(0.0, seconds)
    until = _moment(headers.get("retry-after"))
    since = _moment(headers.get("date"))
    since = now if since is None else since
    return max(0.0, until - since) if until is not None and since is not None else None


def check_key(key_env: str) -> None:
    """Raises UsageError when the variable that should hold the key is not set."""
    _read_key(key_env)


def _moment(text: str | None) -> float | None:
    try:
        return parsedate_to_datetime(text).timestamp() if text else None
    except (ValueError, OverflowError, OSError):
        return None


def redact(text: str, key: str) -> str:
    """`text` without the key, nor anything that looks like one."""
    if key:
        text = text.replace(key, "[key]")
        if len(key) >= 12:  # servers echo the ends and mask the middle
            text = re.sub(rf"{re.escape(key[:6])}\S*|\S*{re.escape(key[-6:])}", "[key]", text)
    return _LOOKS_SECRET.sub("[key]", text)


def _mend(kind: FailureKind) -> str:
    return {
        "unreachable": "start the server, or check base_url",
        "timeout": "check that the server is up",
        "auth": "check the key in the environment variable that the recipe names",
        "not_found": "check base_url; it usually ends in /v1",
        "quota": "check the account's plan and billing",
    }.get(kind, "try again later, or ask the server's operator")


# ---------------------------------------------------------------- what a 200 says


def parse_chat(raw: bytes) -> tuple[Completion, ...]:
    """The choices of a chat completion, or of a plain one, in order of their index.

    `usage` counts all choices together and is therefore given on the first one only. A `finish_reason` that
    is not one of OpenAI's becomes "unknown". Raises ValueError, with the reason, for anything that is not a
    chat completion.
    """
    try:
        body = orjson.loads(raw)
    except ValueError as error:
        raise ValueError(f"the answer is not JSON ({error})") from None
    if not isinstance(body, dict):
        raise ValueError("the answer is not a JSON object")
    choices = body.get("choices")
    if not isinstance(choices, list) or not choices:
        raise ValueError("the answer has no choices")
    model, fingerprint = body.get("model"), _string(body.get("system_fingerprint"))
    found: dict[int, Completion] = {}
    for place, choice in enumerate(choices):
        if not isinstance(choice, dict):
            raise ValueError(f"choice {place} is not an object")
        index = _count(choice.get("index", place))
        if index is None or index in found:
            raise ValueError(f"choice {place} has no index of its own")
        first = _usage(body.get("usage")) if index == 0 else Usage()
        name = model if isinstance(model, str) else ""
        found[index] = _completion(choice, place, name, fingerprint, first)
    return tuple(found[index] for index in sorted(found))


def _completion(
    choice: dict[str, Any], place: int, model: str, fingerprint: str | None, usage: Usage
) -> Completion:
    message = choice.get("message")
    if message is None and isinstance(choice.get("text"), str):
        message = {"content": choice["text"]}
    if not isinstance(message, dict):
        raise ValueError(f"choice {place} has no message")
    reason = choice.get("finish_reason")
    return Completion(
        text=message_text(message.get("content"), place),
        finish_reason=_FINISH.get(reason, "unknown") if isinstance(reason, str) else "unknown",
        model=model,
        usage=usage,
        refusal=_string(message.get("refusal")),
        reasoning=_string(message.get("reasoning_content")) or _string(message.get("reasoning")),
        tool_calls=_calls(message.get("tool_calls"), place),
        fingerprint=fingerprint,
    )


def _calls(calls: Any, place: int) -> str | None:
    if not calls:
        return None
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise ValueError(f"choice {place} has tool calls that are no list of objects")
    return orjson.dumps(calls).decode()


def message_text(content: Any, place: int) -> str:
    """A string, nothing (a refusal or a tool call), or parts of which the text ones count.

    Raises ValueError for anything else.
    """
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        parts = [p.get("text", "") for p in content if isinstance(p, dict) and p.get("type") == "text"]
        if all(isinstance(part, str) for part in parts):
            return "".join(parts)
    raise ValueError(f"the content of choice {place} is not text")


def _usage(usage: Any) -> Usage:
    if not isinstance(usage, dict):
        return Usage()
    return Usage(_count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens")))


def _count(value: Any) -> int | None:
    """A count that a record can hold; a provider that claims another one has not said how many."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53 else None


def _string(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


# ---------------------------------------------------------------- small parts


async def _read(response: aiohttp.ClientResponse) -> bytes | None:
    """The body, None when it passes the limit."""
    chunks: list[bytes] = []
    size = 0
    async for chunk in response.content.iter_any():
        size += len(chunk)
        if size > MAX_REPLY_BYTES:
            return None
        chunks.append(chunk)
    return b"".join(chunks)


async def _save(response: aiohttp.ClientResponse, path: Path) -> None:
    """Raises StorageError where the disk is full."""
    with storage("write", path), path.open("wb") as file:
        async for chunk in response.content.iter_any():
            file.write(chunk)


def _kept(headers: Mapping[str, str]) -> dict[str, str]:
    lower = ((name.lower(), value) for name, value in headers.items())
    return {name: value for name, value in lower if name in _KEPT_HEADERS or name.startswith(_RATES)}


@lru_cache(maxsize=16)
def _limits(timeout: float) -> aiohttp.ClientTimeout:
    return aiohttp.ClientTimeout(total=timeout, sock_connect=min(timeout, _CONNECT_SECONDS))


def _checked_url(base_url: str) -> str:
    parts = urlsplit(base_url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageError(
            f"not a base URL: {base_url!r}",
            "it needs http:// or https:// and a host",
            "as http://127.0.0.1:8000/v1",
        )
    if parts.username or parts.password or parts.query:
        raise UsageError(
            f"the base URL of {parts.hostname} holds credentials or a query",
            "it is written to the ledger and to reports, where no secret may be",
            "put the key into an environment variable and name that as key_env",
        )
    return base_url.rstrip("/")


def _read_key(variable: str) -> str:
    key = os.environ.get(variable, "").strip()
    if not key:
        raise UsageError(
            f"the environment variable {variable} is not set",
            "it should hold the key for the endpoint",
            f"export {variable}=... and run again",
        )
    if not key.isascii() or not key.isprintable() or " " in key:
        raise UsageError(
            f"the environment variable {variable} holds no key", "a key is one printable ASCII word"
        )
    return key


def identity() -> str:
    """The one name under which servers are asked."""
    try:
        return f"stillhouse/{version('stillhouse')}"
    except PackageNotFoundError:
        return "stillhouse/0"
