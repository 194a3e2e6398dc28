"""The wire as an OpenAPI 3.1 document: what the gateway itself checks and says. What models take beyond it is
passed on."""

from __future__ import annotations

from typing import Any

from stillhouse.guard.asked import MOST

_TEXT = {"type": "string"}
_OBJECT = {"type": "object"}
_COUNT = {"type": ["integer", "null"], "minimum": 1, "exclusiveMaximum": MOST}
_LENGTH = {"type": ["integer", "null"], "minimum": 0, "exclusiveMaximum": MOST}
_COMMON: dict[str, Any] = {
    "model": _TEXT,
    "stream": {"type": ["boolean", "null"]},
    "stream_options": {"type": ["object", "null"], "properties": {"include_usage": {"type": "boolean"}}},
}
_PARTS = {"type": "array", "items": {"type": "object", "required": ["type"], "properties": {"type": _TEXT}}}
_MESSAGE = {
    "type": "object",
    "required": ["role"],
    "properties": {
        "role": {"enum": ["system", "developer", "user", "assistant", "tool"]},
        "content": {"anyOf": [_TEXT, _PARTS, {"type": "null"}]},
    },
}
_IDS = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
_TEXTS = {"type": "array", "items": _TEXT, "minItems": 1}
_PROMPT = {"anyOf": [_TEXT, _TEXTS, _IDS, {"type": "array", "items": _IDS, "minItems": 1}]}
_ITEMS = {"type": "array", "items": _OBJECT, "minItems": 1}

REQUESTS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        "required": ["model", "messages"],
        "properties": {
            **_COMMON,
            "messages": {"type": "array", "items": _MESSAGE, "minItems": 1},
            "max_tokens": _LENGTH,
            "max_completion_tokens": _LENGTH,
            "n": _COUNT,
            "logprobs": {"type": ["boolean", "null"]},
            "top_logprobs": {"type": ["integer", "null"], "minimum": 0, "maximum": 20},
            "logit_bias": {"type": ["object", "null"], "additionalProperties": {"type": "number"}},
        },
    },
    "/v1/completions": {
        "required": ["model", "prompt"],
        "properties": {
            **_COMMON,
            "prompt": _PROMPT,
            "max_tokens": _LENGTH,
            "n": _COUNT,
            "best_of": _COUNT,
            "echo": {"type": ["boolean", "null"]},
            "logprobs": {"type": ["integer", "null"], "minimum": 0, "maximum": 20},
        },
    },
    "/v1/embeddings": {
        "required": ["model", "input"],
        "properties": {"model": _TEXT, "input": _PROMPT},
    },
    "/v1/responses": {
        "required": ["model", "input"],
        "properties": {
            **_COMMON,
            "input": {"anyOf": [_TEXT, _ITEMS]},
            "max_output_tokens": _LENGTH,
        },
    },
}
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "code"],
            "properties": {
                "message": _TEXT,
                "type": _TEXT,
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
SAID = {
    "400": "the request is wrong, or asks for what is not given",
    "401": "no valid key",
    "402": "no money left",
    "403": "the account or key is blocked or stopped, or has not accepted the terms",
    "404": "no such model for this key, or nothing is watched",
    "408": "the request did not arrive in time",
    "409": "another version of the terms is in force, or there is nothing to appeal against",
    "413": "the request is too long",
    "429": "a limit is reached; Retry-After says when to come back",
    "502": "the server behind broke off",
    "503": "no server behind can be reached, or nothing can be counted at present",
    "504": "the server behind did not answer in time",
}


def document(admin: dict[str, Any] | None = None) -> dict[str, Any]:
    """The whole document; `admin` holds the `paths` and `components` of the admin API."""
    more = admin or {"paths": {}, "components": {"schemas": {}}}
    paths: dict[str, Any] = {path: {"post": _asking(path, schema)} for path, schema in REQUESTS.items()}
    paths["/v1/models"] = {"get": _reading("models that this key may ask", ("200", "401", "403", "503"))}
    paths["/v1/models/{model}"] = {
        "get": {
            **_reading("one model", ("200", "401", "403", "404", "503")),
            "parameters": [{"name": "model", "in": "path", "required": True, "schema": _TEXT}],
        }
    }
    paths["/v1/terms/acceptance"] = {
        "post": {
            "summary": "accept the terms in force, for this key's account",
            "requestBody": _body({"required": ["version"], "properties": {"version": _TEXT}}),
            "responses": _responses(("200", "400", "401", "403", "404", "408", "409", "413", "503")),
        }
    }
    paths["/v1/standing"] = {
        "get": _reading("how this key's account stands, and why", ("200", "401", "403", "404", "429", "503"))
    }
    paths["/v1/standing/appeal"] = {
        "post": {
            "summary": "ask that a person looks at the account's standing again",
            "requestBody": _body({"required": ["text"], "properties": {"text": _TEXT}}),
            "responses": _responses(("201", "400", "401", "403", "404", "408", "409", "413", "429", "503")),
        }
    }
    for path in ("/health", "/ready"):
        paths[path] = {
            "get": {
                **_reading("whether it lives, and whether it takes requests", ("200", "503")),
                "security": [],
            }
        }
    return {
        "openapi": "3.1.0",
        "info": {"title": "stillhouse guard", "version": "1"},
        "security": [{"key": []}],
        "paths": {**paths, **more["paths"]},
        "components": {
            "securitySchemes": {
                "key": {"type": "http", "scheme": "bearer"},
                "admin": {"type": "http", "scheme": "bearer"},
            },
            "schemas": {**more["components"]["schemas"], "Error": _ERROR},
        },
    }


def _asking(path: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {
        "summary": f"as OpenAI's {path}",
        "requestBody": _body(schema),
        "responses": _responses(("200", *(status for status in SAID if status != "409"))),
    }


def _reading(summary: str, statuses: tuple[str, ...]) -> dict[str, Any]:
    return {"summary": summary, "responses": _responses(statuses)}


def _body(schema: dict[str, Any]) -> dict[str, Any]:
    return {"required": True, "content": {"application/json": {"schema": {"type": "object", **schema}}}}


def _responses(statuses: tuple[str, ...]) -> dict[str, Any]:
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    said: dict[str, Any] = {}
    for status in statuses:
        if status < "300":
            said[status] = {"description": "the answer"}
        else:
            said[status] = {"description": SAID[status], "content": error}
    return said
