"""Weight transfer: the ranks of a training job, all but the last two, give their weights to the last two, which infer.

The first training rank passes every tensor on in a group of its own with those who infer, while the next one is
gathered in the group of the training. Arguments: the checkpoint, and a folder for what those who infer were given.
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist

import rankslice

checkpoint, out = sys.argv[1], Path(sys.argv[2])
dist.init_process_group("gloo")
rank, size = dist.get_rank(), dist.get_world_size()
training = dist.new_group(range(size - 2))
transfer = dist.new_group([0, size - 2, size - 1])


def tell(about=None):
    """What the first training rank says."""
    message = [about]
    dist.broadcast_object_list(message, src=0, group=transfer)
    return message[0]


def pass_on(tensor):
    dist.broadcast(tensor.view(-1).view(torch.uint8), src=0, group=transfer)


def give_weights(state):
    """On the training ranks. The loop has turns on the first of them only."""
    proved = False
    try:
        for name, tensor in rankslice.gather(state, process_group=training):
            tell((name, tensor.dtype, tensor.shape))
            pass_on(tensor)
        proved = True
    finally:
        if rank == 0:
            tell(proved)


def take_weights():
    tensors = {}
    while not isinstance(about := tell(), bool):
        name, dtype, shape = about
        tensors[name] = torch.empty(shape, dtype=dtype)
        pass_on(tensors[name])
    if not about:
        raise RuntimeError("the training ranks failed: what they gave must not count")
    return tensors


if rank < size - 2:
    give_weights(rankslice.load(checkpoint, process_group=training))
else:
    torch.save(take_weights(), out / f"{rank}.pt")
dist.barrier()
dist.destroy_process_group()
