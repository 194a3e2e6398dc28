"""Compile the Triton kernel for two kinds of GPU, with the assembler that Triton brings and no GPU: run by
`test_kernels.py`. One line for each variant, with the bytes of its code."""

from __future__ import annotations

import itertools

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from stillhouse.train.losses import kernels

POINTERS = {"losses": "*fp32", "labels": "*i64", "ids": "*i64", "log_weights": "*fp32", "log_tails": "*fp32"}
WHOLE = {"stride": "i32", "vocabulary": "i32", "entries": "i32"}
REAL = ("scale", "cap", "per_temperature", "soft", "hard")


def code(capability: int, logits: str, flags: dict[str, bool], entries: int) -> bytes:
    constants = flags | {"ENTRIES": entries, "BLOCK": kernels.BLOCK_LOGITS}
    types = {"logits": f"*{logits}"} | POINTERS | WHOLE | dict.fromkeys(REAL, "fp32")
    signature = {name: "constexpr" if name in constants else types[name] for name in kernels._row.arg_names}
    source = ASTSource(fn=kernels._row, signature=signature, constexprs=constants)
    warps = kernels.BLOCK_LOGITS // kernels.WARP_LOGITS
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": warps})
    return made.asm["cubin"]


VARIANTS = (  # whether TAIL, WARM, CAPPED and LEARNS, and entries
    ((False, False, False, True), 1),
    ((False, False, False, False), 16),
    ((False, True, False, True), 16),
    ((True, False, False, True), 32),
    ((True, True, True, True), 128),
)
for capability, logits in itertools.product((80, 90), ("fp32", "bf16")):
    for flags, entries in VARIANTS:
        named = dict(zip(("TAIL", "WARM", "CAPPED", "LEARNS"), flags, strict=True))
        print(capability, logits, flags, entries, len(code(capability, logits, named, entries)))
