"""Modules whose parameters have the names and shapes of a state dict, and compute nothing."""

import torch
from torch import nn


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
