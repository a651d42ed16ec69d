"""What the calls of a communicator over a process group give on this rank. Argument: bytes that a message has at most.

It is made over the default group in the order that the second argument says, or over a group of these ranks alone."""

import json
import sys

import torch
import torch.distributed as dist
from process_group import group_works, join, report

from rankslice import _world

rank, size = join()
largest, order, own_group = int(sys.argv[1]), json.loads(sys.argv[2]), json.loads(sys.argv[3])
_world._Messages.largest_message = largest


def bytes_from(root, count):
    """Other bytes for every root and every count."""
    return (torch.arange(count) * (2 * root + 1) + count + root).to(torch.uint8)


def broadcasts(world):
    """The sizes and roots for which a broadcast gives something else than the root's bytes."""
    wrong = []
    for count in (0, 1, largest - 1, largest, largest + 1, 5 * largest + 3):
        for root in range(world.size):
            memory = bytes_from(root if world.rank == root else 99, count)
            world.broadcast(memory.numpy(), root)
            if not torch.equal(memory, bytes_from(root, count)):
                wrong.append((count, root))
    return wrong


def calls(world):
    part = world.split(world.rank % 2)
    return {
        "rank": world.rank,
        "size": world.size,
        "kind": world.kind,
        "global_ranks": [int(text) for text in world.all_gather(str(dist.get_rank()).encode())],
        "wrong_broadcasts": broadcasts(world),
        "sum": world.sum([world.rank, 2**64 - 1, 2**63, *([world.rank + 1] * 1000)]),
        "gathered": [text.decode() for text in world.gather(b"x" * world.rank, world.size - 1)],
        "part": [part.rank, part.size, part.sum([1 << world.rank])],
        "same_host": len({world.host(other) for other in range(world.size)}) == 1,
    }


group = dist.new_group(order) if own_group else None
if rank in order:
    world = _world.communicator(group, None if own_group else order)
    report(calls(world))
    del world
assert group_works()
