"""Names of parameters inside what other libraries put around a model and its modules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from rankslice.errors import PlanError

Value = TypeVar("Value")

_PREFIXES = ("module.", "base_model.model.")
"""Of DistributedDataParallel and of peft."""

_SEGMENTS = {"_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module", "base_layer", "original_module"}
"""Of torch.compile, activation checkpointing and FSDP1, and of peft: around what it adapts, and what it trains a copy
of."""


def bare(name: str) -> str:
    """The name of a parameter in the model itself: `base_model.model.lm_head.base_layer.weight` is `lm_head.weight`.
    What is of an adapter has none there."""
    if is_adapter(name):
        return name
    name = ".".join(segment for segment in name.split(".") if segment not in _SEGMENTS)
    while name.startswith(_PREFIXES):
        for prefix in _PREFIXES:
            name = name.removeprefix(prefix)
    return name


def is_adapter(name: str) -> bool:
    """Whether it is of a LoRA adapter, which the checkpoints of a model do not have."""
    return any(segment.startswith("lora_") for segment in name.split("."))


def without_wrappers(tensors: Mapping[str, Value]) -> dict[str, Value]:
    """By their names in the model itself. Raises PlanError where two have the same name."""
    found: dict[str, Value] = {}
    for name, tensor in tensors.items():
        if bare(name) in found:
            raise PlanError(f"{name}: there are two {bare(name)}", tensor=name)
        found[bare(name)] = tensor
    return found
