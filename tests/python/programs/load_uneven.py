"""A rank of three: 8 experts cannot be DTensors over ep=3."""

import sys

import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

import rankslice

dist.init_process_group("gloo")
try:
    rankslice.load(sys.argv[1], mesh=init_device_mesh("cpu", (3,), mesh_dim_names=("ep",)))
except rankslice.Error as error:
    assert "8 experts over ep=3 are uneven" in str(error) and "rank= and world_size=" in str(error), error
    assert error.tensor.endswith("experts.gate_and_up_projs"), error.tensor
else:
    raise AssertionError("not refused")
dist.destroy_process_group()
