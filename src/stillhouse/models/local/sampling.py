"""From logits and a number drawn in [0, 1) to a token: by inversion, within a nucleus or without one."""

from __future__ import annotations

from typing import Any

import torch

_NUCLEUS = 1024  # likeliest tokens that are ranked first; more only where the nucleus is larger


def sample(logits: Any, top_p: Any, draws: Any) -> list[int]:
    """Nucleus sampling by inversion: (rows, vocabulary), (rows,), draws in [0, 1) -> token ids.

    The nucleus is the smallest set of likeliest tokens with at least `top_p` of the probability (Holtzman
    et al. 2020, section 3.1), the likeliest token always in it; equal ones go by their id.
    """
    shares = torch.softmax(logits.float(), dim=-1)
    found = torch.empty(len(shares), dtype=torch.long, device=shares.device)
    within = top_p < 1
    if bool(within.any()):
        found[within] = _from_nucleus(shares[within], top_p[within], draws[within])
    if not bool(within.all()):
        found[~within] = _invert(shares[~within], draws[~within])
    ids: list[int] = found.tolist()
    return ids


def within_nucleus(logits: Any, top_p: Any) -> Any:
    """The logits, (rows, vocabulary), minus infinity for what its row's nucleus, (rows,), leaves out."""
    ranked, order = torch.softmax(logits.float(), dim=-1).sort(dim=-1, descending=True, stable=True)
    outside = ranked.cumsum(dim=-1, dtype=widest(logits)) - ranked >= top_p[:, None]
    outside[:, 0] = False
    outside &= top_p[:, None] < 1  # a sum of rounded shares may reach 1 early
    return logits.masked_fill(torch.zeros_like(outside).scatter_(1, order, outside), -torch.inf)


def _from_nucleus(shares: Any, top_p: Any, draws: Any, most: int = _NUCLEUS) -> Any:
    """Token ids, (rows,), each from its row's nucleus; ranks `most` tokens, all where that is too few."""
    whole = most >= shares.shape[-1]
    if whole:
        ranked, order = shares.sort(dim=-1, descending=True, stable=True)
    else:
        order = shares.topk(most, dim=-1, sorted=False).indices.sort(dim=-1).values
        ranked, within = shares.gather(1, order).sort(dim=-1, descending=True, stable=True)
        order = order.gather(1, within)
    before = ranked.cumsum(dim=-1, dtype=widest(shares)) - ranked
    outside = before >= top_p[:, None]
    outside[:, 0] = False
    inside = ranked.masked_fill(outside, 0)
    found = order.gather(1, _invert(inside, draws)[:, None])[:, 0]
    if whole:
        return found
    # The nucleus may go on, or end among equals of which some were not ranked.
    least = ranked.masked_fill(outside, 2.0).amin(dim=-1)
    cut = ~outside[:, -1] | (least <= ranked[:, -1])
    if bool(cut.any()):
        found[cut] = _from_nucleus(shares[cut], top_p[cut], draws[cut], shares.shape[-1])
    return found


def _invert(shares: Any, draws: Any) -> Any:
    """The column of each row where the sum of `shares` first passes the fraction `draws` of the whole."""
    mass = shares.cumsum(dim=-1, dtype=widest(shares))
    whole = mass[:, -1:].contiguous()
    place = torch.searchsorted(mass, draws.to(mass.dtype)[:, None] * whole, right=True)
    return torch.minimum(place, torch.searchsorted(mass, whole))[:, 0]


def widest(tensor: Any) -> Any:
    return torch.float32 if tensor.device.type == "mps" else torch.float64
