#!/usr/bin/env python3
"""loading.py CKPT [--ranks 2] [--repeats 3]: what it takes to load the same slices in two ways.

Every rank is a fresh process that has half (of 2 ranks) of the experts in the native layout and all other tensors, in
memory of its own, which is first made sure of. The other way is what people write with safetensors: `get_slice`,
transposed and made contiguous, and `get_tensor`. All ranks of a repeat start together, and the slowest one counts; the
page cache is warm. Prints seconds, the peak of resident memory over what stood there before, and what a rank holds.
"""

import argparse
import collections
import contextlib
import hashlib
import statistics
import subprocess
import sys
import time
from pathlib import Path

STACKED = ("experts.gate_up_proj", "experts.down_proj")  # as Qwen3.5-MoE's checkpoints have them


def with_safetensors(checkpoint, rank, ranks):
    """HF key and tensor, one by one."""
    from safetensors import safe_open

    for path in sorted(Path(checkpoint).glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 (it is no dict)
                if key.endswith(STACKED):
                    stored = file.get_slice(key)
                    experts = stored.get_shape()[0]
                    mine = stored[experts * rank // ranks : experts * (rank + 1) // ranks]
                    yield key, mine.transpose(1, 2).contiguous()
                else:
                    yield key, file.get_tensor(key).clone()  # without a copy it would be pages of the file


def with_rankslice(verify):
    def load(checkpoint, rank, ranks):
        import rankslice

        yield from rankslice.load(checkpoint, rank=rank, world_size=ranks, verify=verify).items()

    return load


WAYS = {
    "rankslice.load, verify=off": with_rankslice("off"),
    "rankslice.load": with_rankslice("full"),
    "safetensors": with_safetensors,
}


def contents(tensors):
    """How often there is a tensor of which shape and values, by whatever name and in whatever dtype."""
    return collections.Counter(
        (tensor.shape, hashlib.blake2b(tensor.float().numpy()).digest()) for _, tensor in tensors
    )


def require_same_work(checkpoint, rank, ranks):
    ours, theirs = (contents(WAYS[way](checkpoint, rank, ranks)) for way in ("rankslice.load", "safetensors"))
    if ours != theirs:
        raise SystemExit(f"rank {rank}: {len(ours - theirs)} tensors are not the same")


def resident(field):
    """Bytes that /proc says of this process: VmRSS now, VmHWM its peak."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith(field))


def measure(way, checkpoint, rank, ranks):
    """In a fresh process: waits for a line, loads, prints seconds, bytes over those before, and bytes held."""
    import safetensors  # noqa: F401 (both ways begin with the same libraries)
    import torch

    from rankslice import load  # noqa: F401

    torch.set_num_threads(1)
    with contextlib.suppress(OSError):  # where the peak cannot be reset it is that of importing, which is lower
        Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    print("ready", flush=True)
    sys.stdin.readline()
    start = time.perf_counter()
    tensors = dict(WAYS[way](checkpoint, rank, ranks))
    seconds = time.perf_counter() - start
    held = sum(tensor.nbytes for tensor in tensors.values())
    print(seconds, resident("VmHWM") - before, held, flush=True)


def run_ranks(way, checkpoint, ranks):
    """(seconds of the slowest rank, the highest peak, the most bytes held)."""
    command = [sys.executable, __file__, checkpoint, "--ranks", str(ranks), "--way", way, "--rank"]
    children = [
        subprocess.Popen([*command, str(rank)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for rank in range(ranks)
    ]
    for child in children:
        child.stdout.readline()
    for child in children:
        child.stdin.write("\n")
        child.stdin.flush()
    found = [[float(figure) for figure in child.communicate()[0].split()] for child in children]
    return tuple(map(max, zip(*found, strict=True)))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--way", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank is not None:
        measure(options.way, options.checkpoint, options.rank, options.ranks)
        return
    for rank in range(options.ranks):
        require_same_work(options.checkpoint, rank, options.ranks)
    found = {way: [] for way in WAYS}
    for _ in range(options.repeats):  # taking turns, so that what else goes on meets all of them
        for way in WAYS:
            found[way].append(run_ranks(way, options.checkpoint, options.ranks))
    print(f"{'':28}{'s min':>8}{'s median':>10}{'peak GB':>10}{'held GB':>10}")
    for way, runs in found.items():
        seconds, peaks, held = zip(*runs, strict=True)
        memory = f"{max(peaks) / 1e9:10.3f}{held[0] / 1e9:10.3f}"
        print(f"{way:28}{min(seconds):8.2f}{statistics.median(seconds):10.2f}{memory}")


if __name__ == "__main__":
    main()
