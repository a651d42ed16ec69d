"""A rank of: load_into where rank 1 alone fails, while it plans and while it fills; argument: the checkpoint."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist

sys.path.append(str(Path(__file__).parents[1]))

import rankslice  # noqa: E402
from rankslice import _filling  # noqa: E402

NAME = "model.language_model.norm.weight"


def error_of(state, folder):
    try:
        rankslice.load_into(state, folder)
    except rankslice.Error as error:
        return error
    raise AssertionError("did not fail")


folder = sys.argv[1]
dist.init_process_group("gloo")
is_bad = dist.get_rank() == 1
whole = rankslice.load(folder, rank=0, world_size=1)

error = error_of({**whole, NAME: torch.empty(7)} if is_bad else dict(whole), folder)
assert f"{NAME}: expected [256]" in str(error) and "found [7]" in str(error), error
assert error.tensor == NAME and error.rank == 1 and error.code == 2, (error.tensor, error.rank, error.code)


def refuse(*_):
    raise rankslice.errors.IoError("a disk that fails on purpose", file="model.safetensors")


if is_bad:
    _filling._cut = refuse
error = error_of({**whole, NAME: torch.empty(256, dtype=torch.float64)}, folder)  # through other memory
assert isinstance(error, rankslice.errors.IoError) and str(error) == "a disk that fails on purpose", error
assert error.file == "model.safetensors" and error.rank == 1 and error.code == 74, (error.file, error.rank, error.code)
dist.destroy_process_group()
