"""A rank of: load over a DeviceMesh; arguments: the checkpoint, and name=size of each of its dims."""

import sys
from pathlib import Path

import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard

sys.path.append(str(Path(__file__).parents[1]))

import expected  # noqa: E402
import rankslice  # noqa: E402


def expected_layout(dims):
    """Rule 16: names of the mesh's dims and the placements of experts along them."""
    others = {name: size for name, size in dims.items() if name != "ep"}
    names = list(dims) if not others or max(others.values()) > 1 else ["ep"]
    along = {"ep": Shard(0), "ep_shard": Shard(1), "ep_replicate": Replicate()}
    return tuple(names), tuple(along[name] for name in names)


folder, *dims = sys.argv[1:]
dims = {name: int(size) for name, size in (dim.split("=") for dim in dims)}
dist.init_process_group("gloo")
mesh = init_device_mesh("cpu", tuple(dims.values()), mesh_dim_names=tuple(dims))
state = rankslice.load(folder, mesh=mesh)
names, of_experts = expected_layout(dims)
for fqn, tensor in state.items():
    is_experts = expected.reference.is_native_experts(fqn)
    assert tensor.device_mesh.mesh_dim_names == names, fqn
    assert tensor.placements == (of_experts if is_experts else (Replicate(),) * len(names)), fqn
    assert is_experts or tensor.to_local().shape == tensor.shape, fqn
found = {fqn: expected.bits(tensor.full_tensor()) for fqn, tensor in state.items()}
expected.assert_same(found, expected.whole_state(folder))
swapped = {fqn: tensor for fqn, tensor in state.renamed("transformers").items() if ".mlp.experts." in fqn}
expected.assert_same(
    {key: expected.bits(tensor.full_tensor()) for key, tensor in swapped.items()},
    {key: value for key, value in expected.stored(folder).items() if ".mlp.experts." in key},
)
dist.destroy_process_group()
