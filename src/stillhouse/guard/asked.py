"""What a request asks for, and the most that answering it can take."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from stillhouse.guard.config import Model
from stillhouse.money import worst_prompt_tokens

Route = Literal["chat/completions", "completions", "embeddings", "responses"]

# Where a request says how long an answer may be; the first is what it is given when it says nothing.
LENGTHS: Mapping[str, tuple[str, ...]] = {
    "chat/completions": ("max_tokens", "max_completion_tokens"),
    "completions": ("max_tokens",),
    "responses": ("max_output_tokens",),
}
# Lengths by the names of other servers, which overrule ours there: of llama.cpp, Ollama and TGI
OTHER_LENGTHS = ("n_predict", "num_predict", "n_cmpl", "max_new_tokens")
# What is of the account that all customers share at the upstream, by the field that leads to it
_KEPT = "what the upstream keeps is not kept apart by customer; send the text itself"
_PAID = "it costs what no price here knows; leave it out"
_OTHER = "another model or server than the one that is served here could answer; leave it out"
_SHARED: Mapping[str, str] = {
    "previous_response_id": _KEPT,
    "conversation": _KEPT,
    "session_params": _KEPT,  # SGLang
    "background": "an answer that is fetched later is kept by the upstream for all customers; leave it out",
    "priority": "whose turn it is among customers is not for one of them to say; leave it out",  # vLLM
    "service_tier": _PAID,
    "web_search_options": _PAID,  # OpenAI, Perplexity
    "search_parameters": _PAID,  # xAI
    "search_settings": _PAID,  # Groq
    "compound_custom": _PAID,  # Groq
    "enable_search": _PAID,  # Alibaba
    "data_sources": _PAID,  # Azure
    "plugins": _PAID,  # OpenRouter
    "models": _OTHER,  # OpenRouter
    "provider": _OTHER,  # OpenRouter
    "preset": _OTHER,  # OpenRouter
    "fallbacks": _OTHER,  # LiteLLM
    "api_base": _OTHER,  # LiteLLM
    "base_url": _OTHER,  # LiteLLM
    "user_config": _OTHER,  # LiteLLM
}
_TOOLS = ("function", "custom")
TEXT_PARTS = frozenset({"text", "input_text", "output_text", "refusal", "summary_text"})
# Whatever else stands in a part, a server may take for a picture though its type says text
_TEXT_KEYS = frozenset({"type", "text", "refusal", "annotations", "logprobs", "cache_control"})
_CALLS = ("function_call", "function_call_output", "custom_tool_call", "custom_tool_call_output")
_TEXT_ITEMS = frozenset({None, "message", "reasoning", *_CALLS})
_SCHEME = re.compile(r"\s*(?!data:)[A-Za-z][A-Za-z0-9+.-]*:")
MOST = 1 << 31


class Denied(Exception):
    """A request that is refused: a status and the fields of OpenAI's error body, `more` beside them."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        param: str | None = None,
        kind: str = "invalid_request_error",
        headers: tuple[tuple[bytes, bytes], ...] = (),
        more: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param
        self.kind = kind
        self.headers = headers
        self.more = more or {}

    def body(self) -> dict[str, Any]:
        return {
            "error": {
                "message": str(self),
                "type": self.kind,
                "param": self.param,
                "code": self.code,
                **self.more,
            },
        }


@dataclass(frozen=True, slots=True)
class Asked:
    """`input_tokens` and `output_tokens` are upper bounds, the latter over all `choices`. `set_length` is
    what the request must be given because it names no length of its own."""

    stream: bool
    usage_wanted: bool
    input_tokens: int
    output_tokens: int
    choices: int
    set_length: int | None


def read(route: Route, body: Mapping[str, Any], size: int, model: Model) -> Asked:
    """What `body`, of `size` bytes on the wire, asks of `model`. Raises Denied for what cannot be bounded.

    No token is shorter than a byte, so the request's own length bounds its prompt, but for what the template
    adds to each message.
    """
    stream = body.get("stream") or False
    if not isinstance(stream, bool):
        raise _wrong("stream", "must be true or false")
    options = body.get("stream_options") or {}
    if not isinstance(options, dict):
        raise _wrong("stream_options", "must be an object")
    texts = _texts(route, body)
    bound = worst_prompt_tokens(size, texts)
    _refuse_shared(route, body)
    if _has_media(body):
        if model.context_tokens is None:
            raise Denied(
                400,
                "prompt_not_bounded",
                f"this request has pictures or files in it, and {model.name} is "
                "served without a bound on its prompts; send text alone, or ask who serves it",
            )
        bound = max(bound, model.context_tokens)
    if model.context_tokens is not None:
        bound = min(bound, model.context_tokens)
    choices = _choices(route, body, texts)
    length, given = _length(route, body, model)
    # What is wrong of a prediction OpenAI charges as output, beyond the length
    predicted = size if body.get("prediction") else 0
    return Asked(
        stream=stream,
        usage_wanted=bool(options.get("include_usage")),
        input_tokens=bound,
        output_tokens=(length + predicted) * choices,
        choices=choices,
        set_length=None if given else length,
    )


def _length(route: Route, body: Mapping[str, Any], model: Model) -> tuple[int, bool]:
    names = LENGTHS.get(route)
    if names is None:
        return 0, True
    for name in OTHER_LENGTHS:
        if body.get(name) is not None:
            said = f"{name} is no field of this interface; say how long the answer may be by {names[0]}"
            raise Denied(400, "another_length", said, name)
    longest, given = 0, False
    for name in names:
        value = body.get(name)
        if value is None:
            continue
        longest, given = max(longest, _count(name, value, 0 if route == "completions" else 1)), True
        if value > model.max_output_tokens:
            raise Denied(
                400,
                "max_tokens_too_large",
                f"{name} is {value}; {model.name} gives at most {model.max_output_tokens}",
                name,
            )
    # 0 is to score a prompt, and to some servers means no end
    return longest or model.max_output_tokens, given


def _texts(route: Route, body: Mapping[str, Any]) -> int:
    """How many messages or prompts there are."""
    if route == "chat/completions":
        messages = body.get("messages")
        if not isinstance(messages, list) or not messages:
            raise _wrong("messages", "must be a list of messages")
        return len(messages)
    field = "prompt" if route == "completions" else "input"
    value = body.get(field)
    if isinstance(value, list):
        return 1 if value and isinstance(value[0], int) else max(1, len(value))
    return 1


def _choices(route: Route, body: Mapping[str, Any], prompts: int) -> int:
    if route in ("embeddings", "responses"):
        return 1
    choices = max(_count(name, body.get(name, 1), 1) for name in ("n", "best_of"))
    return choices * prompts if route == "completions" else choices


def _refuse_shared(route: Route, body: Mapping[str, Any]) -> None:
    """What one customer could read, or have the operator pay, of another's or of the operator's own."""
    for name, why in _SHARED.items():
        value = body.get(name)
        # To some an empty object says yes
        if (value or value == {}) and not (name == "service_tier" and value in ("auto", "default")):
            raise _not_offered(name, f"`{name}`", why)
    if route == "responses" and body.get("prompt"):
        raise _not_offered("prompt", "`prompt`", _KEPT)
    tools = body.get("tools")
    for tool in tools if isinstance(tools, list) else ():
        if isinstance(tool, dict) and not _is_of_client(tool):
            raise _not_offered(
                "tools", "a tool that the upstream runs", f"it acts as the operator, and {_PAID}"
            )
    items = body.get("input")
    for item in items if route == "responses" and isinstance(items, list) else ():
        if isinstance(item, dict) and _is_reference(item):
            raise _not_offered("input", "an item that is only referred to", _KEPT)


def _is_of_client(tool: Mapping[str, Any]) -> bool:
    """Some servers know one of their own by its name alone, without a type."""
    kind = tool.get("type")
    return kind in _TOOLS or (kind is None and bool(tool.keys() & {"function", "name"}))


def _is_reference(item: Mapping[str, Any]) -> bool:
    """A picture that the upstream drew is known by the id of the call."""
    return item.get("type") in ("item_reference", "image_generation_call") or not item.keys() & {
        "type",
        "role",
    }


def _not_offered(name: str, what: str, why: str) -> Denied:
    return Denied(400, "not_offered", f"{what} is not offered here: {why}", name)


def _has_media(body: Mapping[str, Any]) -> bool:
    found = False
    for field in ("messages", "input"):
        for part in _media(body.get(field)):
            found = True
            _refuse_references(field, part)
    return found


def _media(messages: Any) -> Iterator[Any]:
    """All of some messages, or items of an input, that is not plainly text."""
    for message in messages if isinstance(messages, list) else ():
        if not isinstance(message, dict):
            continue
        kind = message.get("type")
        if not (kind is None or isinstance(kind, str)) or kind not in _TEXT_ITEMS:
            yield message
            continue
        if isinstance(audio := message.get("audio"), dict) and audio.get("id"):
            raise _not_offered("messages", "an answer's `audio` by its `id`", _KEPT)
        if audio:
            yield audio
        for name in ("content", "output"):
            held = message.get(name)
            for part in held if isinstance(held, list) else (held,):
                if isinstance(part, dict) and not _is_text(part):
                    yield part


def _is_text(part: Mapping[str, Any]) -> bool:
    kind = part.get("type")
    if kind is None:
        return part.keys() == {"text"}
    return isinstance(kind, str) and kind in TEXT_PARTS and part.keys() <= _TEXT_KEYS


def _refuse_references(field: str, media: Any) -> None:
    """To files, which are of the account that all share, to pictures that are kept by a name which anybody
    may give, and to URLs, which the server would fetch from inside the operator's network."""
    left = [("", media)]
    while left:
        name, value = left.pop()
        if isinstance(value, dict):
            for kept in ("file_id", "uuid"):
                if value.get(kept):
                    raise _not_offered(field, f"`{kept}`", _KEPT)
            left += value.items()
        elif isinstance(value, list):
            left += [(name, each) for each in value]
        elif isinstance(value, str) and name not in ("text", "filename"):
            is_url = name.endswith(("url", "uri")) and not value.startswith("data:")
            if is_url or _SCHEME.match(value):
                said = f"`{field}` refers to a URL, which is not fetched here; send a data: URL"
                raise Denied(400, "url_refused", said, field)


def _count(name: str, value: Any, least: int) -> int:
    if value is None:
        return least
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value < MOST:
        raise _wrong(name, f"must be a whole number from {least} on")
    return value


def _wrong(name: str, what: str) -> Denied:
    return Denied(400, "invalid_value", f"{name} {what}", name)
