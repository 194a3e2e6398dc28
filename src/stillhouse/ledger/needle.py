"""Finding a text wherever it may stand: plain, within JSON, within JSON that is a value of JSON, in HTML."""

from __future__ import annotations

import html
import json
from dataclasses import dataclass
from typing import Any

import orjson


@dataclass(frozen=True, slots=True)
class Needle:
    """A text as files may hold it; `forms` are strings and `raw` their UTF-8."""

    text: str
    forms: tuple[str, ...]
    raw: tuple[bytes, ...]

    def in_text(self, text: str) -> bool:
        return any(form in text for form in self.forms)

    def in_bytes(self, data: bytes) -> bool:
        """Whether a file or a content holds it; where that is JSON, however its characters are escaped."""
        if any(form in data for form in self.raw):
            return True
        if b"\\" not in data:
            return False
        try:
            return self.in_value(orjson.loads(data))
        except orjson.JSONDecodeError:
            return False

    def in_value(self, value: Any) -> bool:
        """Whether a string anywhere in a plain value holds it, keys included."""
        if isinstance(value, str):
            return self.in_text(value)
        if isinstance(value, dict):
            return any(self.in_text(str(key)) or self.in_value(each) for key, each in value.items())
        return isinstance(value, list | tuple) and any(self.in_value(each) for each in value)


def needle(text: str) -> Needle:
    forms = [text, html.escape(text), html.escape(text, quote=False)]
    for plain in (False, True):
        once = json.dumps(text, ensure_ascii=plain)[1:-1]
        forms += [once, json.dumps(once, ensure_ascii=plain)[1:-1], html.escape(once)]
    forms += [repr(text)[1:-1], repr(text + "'\"")[1:-4]]  # as a traceback may quote it
    forms = list(dict.fromkeys(forms))
    return Needle(text, tuple(forms), tuple(form.encode("utf-8", "surrogatepass") for form in forms))
