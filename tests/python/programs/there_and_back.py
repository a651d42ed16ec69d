"""there_and_back.py CHECKPOINT OUT: loads as DTensors over all ranks, and exports what was loaded."""

import sys

import rankslice

assert "torch" not in sys.modules

import torch.distributed as dist  # noqa: E402
from torch.distributed.device_mesh import init_device_mesh  # noqa: E402

checkpoint, out = sys.argv[1:]
dist.init_process_group("gloo")
mesh = init_device_mesh("cpu", (dist.get_world_size(),), mesh_dim_names=("ep",))
state = rankslice.load(checkpoint, mesh=mesh)

alone = rankslice.load(checkpoint, rank=dist.get_rank(), world_size=dist.get_world_size())
assert list(state) == list(alone)
for name, tensor in state.items():
    assert tensor.to_local().equal(alone[name]), name
assert sum(tensor.to_local().shape != tensor.shape for tensor in state.values()) > 0

rankslice.to_hf(state, out)
dist.destroy_process_group()
