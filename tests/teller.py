"""A server for the gateway to stand before whose answers differ from each other."""

from __future__ import annotations

import json
import random

from behind import Behind

WORDS = [f"{a}{b}" for a in "bdfgklmnprst" for b in ("a", "e", "i", "o", "u", "an", "en", "ill")]
LENGTH = 60
PROSE = (
    "For example, fish do not fly. In addition, birds help each other (e.g., at sea), "
    "though some cannot sing."
)


class Teller(Behind):
    """Says words drawn at random, a token each. `seldom` fails but for the seed 0; `thinking`
    thinks before; `same` says one thing; `marked` says that it marks; `short` says two words; `prose`
    says what can be said otherwise; `slow` waits, but for the seed 0."""

    def __init__(self):
        super().__init__()
        self.rng = random.Random(5)
        self.given = []

    async def _answer(self, model, path, body, writer):
        number = self.seen[model]
        if model == "seldom" and body["seed"]:
            return await super()._answer("status-500", path, body, writer)
        if model == "slow" and body["seed"]:
            return await super()._answer("hang", path, body, writer)
        if path.endswith("embeddings") or model.startswith(("status-", "close", "half", "no-json")):
            return await super()._answer(model, path, body, writer)
        length = 2 if model == "short" else LENGTH + number % 7
        said = " ".join(self.rng.choices(WORDS, k=length))
        text = {"same": "always this", "prose": PROSE}.get(model, said)
        self.given.append(text)
        shown = f"<think>{said} and more</think>{text}" if model == "thinking" else text
        message = {"role": "assistant", "content": shown}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        usage = {"prompt_tokens": 7, "completion_tokens": length, "total_tokens": 7 + length}
        whole = {"id": f"c{number}", "object": "chat.completion", "choices": [choice], "usage": usage}
        more = "x-stillhouse-watermark: 0a1b2c3d\r\n" if model == "marked" else ""
        data = json.dumps(whole).encode()
        head = (
            f"HTTP/1.1 200 X\r\ncontent-type: application/json\r\n{more}content-length: {len(data)}\r\n\r\n"
        )
        writer.write(head.encode() + data)
        await writer.drain()
        return True
