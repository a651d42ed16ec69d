"""A rank of a process group: dense tensors that all ranks read once together, into fresh memory and into a module's."""

import sys

import torch
import torch.distributed as dist

import rankslice

dist.init_process_group("gloo")
rank, ranks = dist.get_rank(), dist.get_world_size()
seen = []


def follow(phase, done, total):
    if phase == "load":
        seen.append((done, total))


alone = rankslice.load(sys.argv[1], rank=rank, world_size=ranks)
state = rankslice.load(sys.argv[1], process_group=dist.group.WORLD, dense="once", progress=follow)
assert state.keys() == alone.keys()
assert all(torch.equal(state[name].view(torch.uint8), alone[name].view(torch.uint8)) for name in alone)
assert state.bytes_read < alone.bytes_read and state.bytes_owned == alone.bytes_owned
assert all(done <= total for done, total in seen) and seen[-1][0] == seen[-1][1]

planned = rankslice.plan(sys.argv[1], ranks=ranks, dense="once")
assert state.bytes_read == planned["rank"][rank]["bytes_read"]
assert planned["dense"]["reading"] == "once"

memory = {name: torch.zeros_like(tensor) for name, tensor in alone.items()}
filled = rankslice.load_into(memory, sys.argv[1], process_group=dist.group.WORLD, dense="once")
assert filled.bytes_read == state.bytes_read
assert all(torch.equal(memory[name].view(torch.uint8), alone[name].view(torch.uint8)) for name in alone)
dist.destroy_process_group()
