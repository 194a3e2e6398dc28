"""A training step from sparse targets beside cross-entropy, and from whole distributions beside its peers.

    .venv/bin/python benchmarks/train_step.py [--quick] [--json FILE]

Two vocabularies, each in float32 and, where the device multiplies it in hardware, in bfloat16. The head and
its loss are timed alone, forward and backward from the last hidden states, where no body hides a difference;
a whole step adds the layers of a small Llama, its embeddings and AdamW. All run by turns in one process, and
a ratio is that of the least times: processor time of one thread on a CPU, wall time on a GPU. Memory is the
most above what was there before. Losses that claim to be one are compared before they are timed.

trl's is the function that its DistillationTrainer calls, liger's its chunked JSD; both take a teacher's
hidden states and head, as stillhouse's dense loss does here. trl and liger-kernel are installed into an
environment of their own, on top of the torch and transformers of this one; liger's fused cross-entropy needs
Triton, and so a GPU. There stillhouse's cross-entropy and sparse losses run in its Triton kernel if that was
found equal to torch, and stand beside the same losses in torch.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from typing import Any

from rows import Row, arguments, header, show

SEED = 11
LIMIT = 1.10
RUNNER = Path(__file__).with_name("train_step_run.py")
ROOT = Path(__file__).resolve().parents[1]
PEERS = ROOT / ".bench" / "train_step"
PACKAGES = ("trl==1.16.0", "liger-kernel==0.8.5")
SPARSE = "stillhouse sampled targets, 12 ids"
TAILED = "stillhouse tail bucket, 20 ids"
CROSS_ENTROPIES = (
    "torch cross-entropy, all logits",
    "torch cross-entropy, checkpointed chunks",
    "stillhouse cross-entropy",
)
Found = dict[str, Any]  # by contestant: seconds of each round, peak bytes, or why it is missing


def peer_python() -> str:
    """The Python of the peers' environment, which the first call makes; this one where pip fails."""
    python, ready = PEERS / "bin" / "python", PEERS / "ready"
    if not ready.exists():
        print(f"installing {' '.join(PACKAGES)} into {PEERS}", file=sys.stderr)
        venv.create(PEERS, with_pip=True)
        own = subprocess.run(
            [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
            check=True,
            capture_output=True,
            text=True,
        )
        # The very torch that stillhouse runs with, so that one torch is compared with itself
        Path(own.stdout.strip(), "host.pth").write_text(sysconfig.get_path("purelib") + "\n")
        install = [str(python), "-m", "pip", "install", "--quiet", "--no-deps", *PACKAGES]
        if subprocess.run(install, check=False).returncode != 0:
            return sys.executable
        ready.write_text("\n".join(PACKAGES))
    return str(python)


def measured(python: str, vocabulary: int, dtype: str, tokens: int, width: int, rounds: int) -> Found:
    """Times in one process; memory in another, whose allocator gives back at once what is freed."""
    sizes = [str(each) for each in (vocabulary, dtype, tokens, width)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    found: list[Found] = []
    for count, more in ((rounds, {}), (0, {"MALLOC_MMAP_THRESHOLD_": "1048576"})):
        command = [python, str(RUNNER), *sizes, str(count)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment | more)
        found.append(json.loads(done.stdout))
    times, sizes_of = found
    for part in ("head", "step"):
        for name, each in times[part].items():
            each["peak"] = sizes_of[part][name].get("peak")
    return times


def compared(title: str, found: Found, name: str, peer: str, target: str | None = None) -> list[Row]:
    """Time and memory of one contestant beside another's."""
    one, other = found[name], found.get(peer, {"missing": ""})
    if "missing" in one:
        return [Row(f"{title}: {name}: {one['missing']}", None, "ms")]
    rows = []
    values = [1e3 * second for second in one["seconds"]]
    times = Row(f"{title}: {name}", statistics.median(values), "ms", min(values), max(values))
    memory = Row(f"{title}: {name}", one["peak"] and one["peak"] / 1e6, "MB")
    for row, key in ((times, "seconds"), (memory, "peak")):
        if "missing" in other or not other[key] or not one[key]:
            rows.append(row)
            continue
        most = LIMIT if target is None else 1.0
        if key == "seconds":
            ratio, beside = min(one[key]) / min(other[key]), 1e3 * statistics.median(other[key])
        else:
            ratio, beside = one[key] / other[key], other[key] / 1e6
        rows.append(
            Row(
                row.what,
                row.value,
                row.unit,
                row.low,
                row.high,
                peer=peer,
                peer_value=beside,
                ratio=ratio,
                target=f"<= {LIMIT:.2f} x the fastest cross-entropy" if target is None else target,
                holds=ratio <= most,
            )
        )
    return rows


def rows_of(title: str, found: Found) -> list[Row]:
    rows = []
    for part, where in (("head", "head and loss"), ("step", "whole step")):
        each = found[part]
        fastest = min(CROSS_ENTROPIES, key=lambda name: min(each[name]["seconds"]))
        label = f"{title}, {where}"
        for name in CROSS_ENTROPIES:
            plain = each[name]
            rows.append(
                Row(f"{label}: {name}", 1e3 * statistics.median(plain["seconds"]), "ms", *spread(plain))
            )
            rows.append(Row(f"{label}: {name}", plain["peak"] and plain["peak"] / 1e6, "MB"))
        for name in (SPARSE, TAILED):
            rows += compared(label, each, name, fastest)
    for name in (CROSS_ENTROPIES[-1], SPARSE, TAILED):
        if (plain := f"{name}, in torch") in found["head"]:
            rows += compared(f"{title}, kernel", found["head"], name, plain, "no more than in torch")
    if found["refused"]:
        rows.append(Row(f"{title}, kernel: {found['refused']}", None, "ms"))
    for peer in ("trl DistillationTrainer", "liger JSD"):
        for kind in ("forward KL", "Jensen-Shannon"):
            other = f"{peer}, {kind}"
            label = f"{title}, head and loss"
            if "missing" in found["head"][other]:
                rows.append(Row(f"{label}: {other}: {found['head'][other]['missing']}", None, "ms"))
                continue
            rows += compared(
                label, found["head"], f"stillhouse dense, {kind}", other, "no more than the peer's"
            )
        rows += compared(label, found["head"], SPARSE, f"{peer}, forward KL", "no more than the peer's")
    return rows


def spread(found: Found) -> tuple[float, float]:
    return 1e3 * min(found["seconds"]), 1e3 * max(found["seconds"])


def dtypes() -> list[str]:
    from stillhouse.train.machine import has_bf16

    device = header_device()
    return ["float32", "bfloat16"] if has_bf16(device) else ["float32"]


def header_device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def main() -> None:
    options = arguments(__doc__ or "")
    gpu = header_device() == "cuda"
    tokens, width, rounds = (128, 64, 5) if options.quick else (8192, 1024, 9) if gpu else (512, 256, 7)
    python, rows = peer_python(), []
    for vocabulary in (32_000, 150_000):
        for dtype in dtypes()[:1] if options.quick else dtypes():
            found = measured(python, vocabulary, dtype, tokens, width, rounds)
            rows += rows_of(f"{vocabulary:,} ids, {dtype}, {tokens} tokens", found)
    head = header(SEED, ["stillhouse", "torch", "transformers"])
    head["versions"] |= dict(package.split("==") for package in PACKAGES)
    show(head, rows, options.json)


if __name__ == "__main__":
    main()
