"""The running batch of a decoding loop: prompts are read in, rows step on by a token, rows are dropped."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache, DynamicLayer

_FIRST_PLACES = 48  # made beside a prompt's own: most answers are no longer


@dataclass(slots=True)
class _Now:
    """What the layers of a model need to know of the forward pass under way.

    `capacity` is (rows, places); `reading` the first of the rows being read in, None while decoding, when
    row `index[i]` stores at `places[i]` and `longest` places are looked at.
    """

    capacity: tuple[int, int] = (0, 0)
    reading: int | None = None
    index: Any = None
    places: Any = None
    longest: int = 0


class _RowLayer(CacheLayerMixin):  # type: ignore[misc]
    """One layer's keys and values, (rows, heads, places, width), each row from place 0 on."""

    is_sliding = False

    def __init__(self, now: _Now) -> None:
        super().__init__()
        self.now = now
        self.keys: Any = None
        self.values: Any = None

    def lazy_initialization(self, key_states: Any, value_states: Any) -> None:
        """Nothing: room is made by `update`."""

    def update(self, keys: Any, values: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """Reading in: store the prompts of new rows. Decoding: store one place per row, return all places."""
        now = self.now
        self._reserve(keys, values)
        if now.reading is not None:
            first, n = now.reading, keys.shape[0]
            self.keys[first : first + n, :, : keys.shape[2]] = keys
            self.values[first : first + n, :, : values.shape[2]] = values
            return keys, values
        self.keys[now.index, :, now.places] = keys[:, :, 0]
        self.values[now.index, :, now.places] = values[:, :, 0]
        n = keys.shape[0]
        return self.keys[:n, :, : now.longest], self.values[:n, :, : now.longest]

    def _reserve(self, keys: Any, values: Any) -> None:
        n_rows, n_places = self.now.capacity
        if self.keys is not None and (self.keys.shape[0], self.keys.shape[2]) == (n_rows, n_places):
            return
        for name, like in (("keys", keys), ("values", values)):
            old = getattr(self, name)
            new = like.new_zeros((n_rows, like.shape[1], n_places, like.shape[3]))
            if old is not None:
                kept = old[:n_rows, :, :n_places]
                new[: kept.shape[0], :, : kept.shape[2]] = kept
            setattr(self, name, new)

    def get_seq_length(self) -> int:
        return 0 if self.now.reading is not None else self.now.longest - 1

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        return -1


class Rows:
    """A batch that rows may join and leave at any time, for models with plain rotary attention.

    Memory is taken for the rows present and given back when the last one leaves.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.device = model.device
        self.lengths: list[int] = []
        self.now = _Now()
        n_layers = model.config.get_text_config(decoder=True).num_hidden_layers
        self.layers = [_RowLayer(self.now) for _ in range(n_layers)]
        self.cache = Cache(layers=self.layers)

    def accepts(self) -> bool:
        return True

    def expect(self, rows: int, places: int) -> None:
        """So many rows will be read in next, with prompts of at most so many tokens: make room at once."""
        longest = max(places + _FIRST_PLACES, *self.lengths, 0)
        self._grow(len(self.lengths) + rows, longest)

    def read(self, prompts: Sequence[Sequence[int]]) -> Any:
        """Append rows; the logits after each prompt, (new rows, vocabulary)."""
        ends = [len(p) - 1 for p in prompts]
        width = max(ends) + 1
        ids = torch.zeros((len(prompts), width), dtype=torch.long)
        for row, prompt in enumerate(prompts):
            ids[row, : len(prompt)] = torch.as_tensor(prompt)
        self.now.reading = len(self.lengths)
        self._grow(len(self.lengths) + len(prompts), max(width, *self.lengths, 0))
        last = torch.tensor(ends)[:, None].to(self.device)
        try:
            logits = self.model(
                ids.to(self.device), past_key_values=self.cache, use_cache=True, logits_to_keep=last
            ).logits[:, 0]
        finally:
            self.now.reading = None
        self.lengths += [len(p) for p in prompts]
        return logits

    def step(self, tokens: Sequence[int]) -> Any:
        """One token for each row; the logits after it, (rows, vocabulary)."""
        now = self.now
        now.longest = max(self.lengths) + 1
        self._grow(len(tokens), now.longest)
        now.places = torch.tensor(self.lengths, device=self.device)
        now.index = torch.arange(len(tokens), device=self.device)
        seen = torch.arange(now.longest, device=self.device)[None, :] <= now.places[:, None]
        hidden = torch.zeros(seen.shape, dtype=self.model.dtype, device=self.device)
        hidden.masked_fill_(~seen, torch.finfo(self.model.dtype).min)
        logits = self.model(
            torch.tensor(tokens, device=self.device)[:, None],
            attention_mask=hidden[:, None, None, :],
            position_ids=now.places[:, None],
            past_key_values=self.cache,
            use_cache=True,
        ).logits[:, -1]
        self.lengths = [n + 1 for n in self.lengths]
        return logits

    def drop(self, row: int) -> None:
        """Forget a row; the last one takes its number."""
        last, length = len(self.lengths) - 1, self.lengths[-1]
        if row != last:
            for layer in self.layers:
                layer.keys[row, :, :length] = layer.keys[last, :, :length]
                layer.values[row, :, :length] = layer.values[last, :, :length]
            self.lengths[row] = length
        self.lengths.pop()
        if not self.lengths:
            self.now.capacity = (0, 0)
            for layer in self.layers:
                layer.keys = layer.values = None

    def _grow(self, rows: int, places: int) -> None:
        """Room for so many, and a quarter more when there was some; what the other side has too much of is
        given back, so that a long row gone does not widen the rows that come after it."""
        have_rows, have_places = self.now.capacity
        if rows > have_rows or places > have_places:
            self.now.capacity = (_roomy(have_rows, rows), _roomy(have_places, places))


def _roomy(have: int, needed: int) -> int:
    if needed > have:
        return max(needed, have * 5 // 4)
    return min(have, needed * 5 // 4)


class Whole:
    """A left-padded batch with the model's own cache: takes rows only while it is empty.

    A model that keeps no `past_key_values` (state-space models) reads the whole text anew for each token.
    """

    def __init__(self, model: Any) -> None:
        known = inspect.signature(model.forward).parameters
        self.model = model
        self.device = model.device
        self.takes_positions = "position_ids" in known
        self.keeps_cache = "past_key_values" in known
        self.alive: list[int] = []  # row number -> line of the batch
        self.ids: Any = None
        self.mask: Any = None
        self.cache: Any = None

    def accepts(self) -> bool:
        return not self.alive

    def expect(self, rows: int, places: int) -> None:
        """Nothing: the model's own cache makes room."""

    def read(self, prompts: Sequence[Sequence[int]]) -> Any:
        self.ids, self.mask = (t.to(self.device) for t in _left_padded(prompts))
        self.alive = list(range(len(prompts)))
        self.cache = None
        return self._forward(self.ids, (self.mask.cumsum(-1) - 1).clamp_(min=0))

    def step(self, tokens: Sequence[int]) -> Any:
        ids = self.ids.new_zeros((self.mask.shape[0], 1))
        ids[self.alive, 0] = torch.tensor(tokens, device=self.device)
        self.mask = torch.cat([self.mask, self.mask.new_ones((self.mask.shape[0], 1))], dim=1)
        positions = self.mask.cumsum(-1) - 1
        if self.keeps_cache:
            return self._forward(ids, positions[:, -1:])[self.alive]
        self.ids = torch.cat([self.ids, ids], dim=1)
        return self._forward(self.ids, positions.clamp_(min=0))[self.alive]

    def _forward(self, ids: Any, positions: Any) -> Any:
        extra = {"position_ids": positions} if self.takes_positions else {}
        if self.keeps_cache:
            extra |= {"past_key_values": self.cache, "use_cache": True}
        out = self.model(ids, attention_mask=self.mask, **extra)
        self.cache = getattr(out, "past_key_values", None)
        return out.logits[:, -1]

    def drop(self, row: int) -> None:
        """Forget a row; the last one takes its number."""
        last = self.alive.pop()
        if row < len(self.alive):
            self.alive[row] = last
        if not self.alive:
            self.ids = self.mask = self.cache = None


def _left_padded(prompts: Sequence[Sequence[int]]) -> tuple[Any, Any]:
    """Token ids and mask, both (prompts, longest)."""
    width = max(len(p) for p in prompts)
    ids = torch.zeros((len(prompts), width), dtype=torch.long)
    mask = torch.zeros((len(prompts), width), dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.as_tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    return ids, mask


def start(model: Any) -> Rows | Whole:
    known = inspect.signature(model.forward).parameters
    config = model.config.get_text_config(decoder=True)
    plain = all(type(layer) is DynamicLayer for layer in DynamicCache(config=config).layers)
    rotary = getattr(config, "rope_parameters", None) is not None
    return Rows(model) if plain and rotary and "logits_to_keep" in known else Whole(model)
