"""Modules whose parameters have the names and shapes of a state dict, and compute nothing."""

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard, distribute_tensor


def module_of(tensors, device="cpu", dtype=None):
    """A tree of modules with an uninitialised parameter for each name, nested as the dots say."""
    root = nn.Module()
    for name, tensor in tensors.items():
        *path, leaf = name.split(".")
        module = root
        for part in path:
            if part not in module._modules:
                module.add_module(part, nn.Module())
            module = module._modules[part]
        memory = torch.full(tensor.shape, 77, dtype=torch.uint8, device=device).to(dtype or tensor.dtype)
        module.register_parameter(leaf, nn.Parameter(memory, requires_grad=memory.is_floating_point()))
    return root


def divide(module, layout):
    """As trainers do; `fsdp_tp` has strided placements, `ep_fsdp` experts on a mesh of their own."""
    if layout == "fsdp":
        fully_shard(module)
    elif layout == "hsdp":
        fully_shard(module, mesh=init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard")))
    elif layout == "fsdp_tp":
        mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
        replace(module, lambda name, p: distribute_tensor(p, mesh["tp"], [Shard(p.ndim - 1 if "down" in name else 0)]))
        fully_shard(module, mesh=mesh["dp"])
    elif layout == "ep_fsdp":
        mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("ep_shard", "ep"))
        for experts in [part for name, part in module.named_modules() if name.endswith(".experts")]:
            replace(experts, lambda _, p: distribute_tensor(p, mesh["ep"], [Shard(0)]))
            fully_shard(experts, mesh=mesh["ep_shard"], shard_placement_fn=lambda _: Shard(1))
        fully_shard(module, mesh=init_device_mesh("cpu", (4,)))


def replace(module, divided):
    for name, parameter in list(module.named_parameters()):
        owner, _, leaf = name.rpartition(".")
        setattr(module.get_submodule(owner), leaf, nn.Parameter(divided(name, parameter.data)))
