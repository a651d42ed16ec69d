"""What the programs of this folder have in common: one process group, and one report of each rank."""

import json
import os
import time
import weakref
from datetime import timedelta

import torch.distributed as dist


def join(timeout=60):
    """Joins the others over gloo, with the group's deadline in seconds. Returns rank and number of ranks."""
    dist.init_process_group("gloo", timeout=timedelta(seconds=timeout))
    return dist.get_rank(), dist.get_world_size()


def report(result):
    """What the test gets of this rank: anything that JSON has."""
    with open(os.environ["RANK_REPORT"], "w") as file:
        json.dump(result, file)


def described(error):
    """An exception as the tests compare it."""
    fields = {name: getattr(error, name) for name in ("code", "file", "tensor", "rank") if hasattr(error, name)}
    return {"type": type(error).__name__, "message": str(error), **fields}


def raised_by(call):
    """What a call raises, described; None where it raises nothing."""
    try:
        call()
    except BaseException as error:
        return described(error)


def group_works():
    """Whether the ranks still meet in their process group."""
    import torch

    value = torch.tensor([dist.get_rank() + 1])
    dist.all_reduce(value)
    total, held = value.item(), weakref.ref(value)
    del value
    while held() is not None:  # by gloo's thread, which aborts the process where Python ends before it lets go
        time.sleep(0.001)
    return total == dist.get_world_size() * (dist.get_world_size() + 1) // 2
