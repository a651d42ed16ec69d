"""A rank of: load and load_into of a checkpoint of which a bit flipped since its manifest was written; argument: it."""

import sys

import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

import rankslice

folder = sys.argv[1]
dist.init_process_group("gloo")
mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("ep",))
state = rankslice.load(folder, mesh=mesh, verify="coverage")
for call in (lambda: rankslice.load(folder, mesh=mesh), lambda: rankslice.load_into(state, folder)):
    try:
        call()
    except rankslice.VerifyError as error:
        assert "manifest digest" in str(error), error
    else:
        raise AssertionError("found nothing")
dist.destroy_process_group()
