"""Buffers that no checkpoint has, of models built on the meta device: rotary embeddings, for example."""

from __future__ import annotations

import torch
from torch import nn


@torch.no_grad()
def compute(model: nn.Module) -> None:
    """Has a model of transformers compute them again, where that is certain to touch no parameter and all of their
    elements. Others stay on the meta device."""
    compute_one = getattr(model, "_init_weights", None)
    device = next((parameter.device for parameter in model.parameters() if not parameter.is_meta), None)
    if compute_one is None or device is None:
        return
    for module in model.modules():
        names = _computable(module)
        if not names or any(True for _ in module.parameters(recurse=False)):
            continue
        before = {name: module._buffers[name] for name in names}
        module._buffers.update({name: _unset(buffer, device) for name, buffer in before.items()})
        compute_one(module)
        if any(module._buffers[name].isnan().any() for name in names):
            module._buffers.update(before)


def _computable(module: nn.Module) -> list[str]:
    return [
        name
        for name in module._non_persistent_buffers_set
        if (buffer := module._buffers[name]) is not None and buffer.is_meta and buffer.is_floating_point()
    ]


def _unset(buffer: torch.Tensor, device: torch.device) -> torch.Tensor:
    return torch.full_like(buffer, torch.nan, device=device)
