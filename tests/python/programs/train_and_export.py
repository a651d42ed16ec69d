"""CKPT OUT: what training jobs do, on every rank. Each way leaves an export in OUT/NAME, and what the ranks had in
memory then in OUT/NAME.pt: {"tensors": by transformers' names, "logits": of PROMPT}."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import AutoModelForImageTextToText

import rankslice

PROMPT = torch.tensor([[5, 17, 101, 3, 42]])


def expert_mesh():
    """Of 2 ranks two parts of the experts; of 4 also two parts of each expert."""
    if dist.get_world_size() == 2:
        return init_device_mesh("cpu", (2,), mesh_dim_names=("ep",))
    return init_device_mesh("cpu", (2, dist.get_world_size() // 2), mesh_dim_names=("ep_shard", "ep"))


def whole(value):
    return value.full_tensor() if isinstance(value, DTensor) else value


def keep(out, name, tensors, logits):
    everything = {name: whole(value.detach()) for name, value in tensors.items()}
    if dist.get_rank() == 0:
        torch.save({"tensors": everything, "logits": logits}, out / f"{name}.pt")


def backward(model):
    model(input_ids=PROMPT).logits.float().square().mean().backward()


def step(parameters):
    """One of AdamW, wide enough to change values in bfloat16."""
    torch.optim.AdamW(parameters, lr=0.02).step()


def logits_of(model):
    with torch.no_grad():
        return model(input_ids=PROMPT).logits


def untouched(ckpt, out):
    rankslice.to_hf(rankslice.load(ckpt, mesh=expert_mesh()), out / "untouched")


def expert_parallel(ckpt, out):
    """The experts and dense tensors of `load`, trained with the gradients of the whole model."""
    state = rankslice.load(ckpt, mesh=expert_mesh(), names="transformers")
    model = AutoModelForImageTextToText.from_pretrained(ckpt, dtype=torch.bfloat16)
    backward(model)
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    parameters = []
    for name, value in state.items():
        parameter = torch.nn.Parameter(value)  # over the same memory
        if gradients[name] is not None:
            gradient = gradients[name].to(value.dtype)
            parameter.grad = distribute_tensor(gradient, value.device_mesh, value.placements, src_data_rank=None)
        parameters.append(parameter)
    step(parameters)
    rankslice.to_hf(state, out / "expert_parallel")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(whole(state[name]))
    keep(out, "expert_parallel", state, logits_of(model))


def fsdp(ckpt, out):
    """Every parameter divided along its first axis, experts unevenly."""
    model = AutoModelForImageTextToText.from_pretrained(ckpt, dtype=torch.bfloat16)
    for layer in model.model.language_model.layers:
        fully_shard(layer)
    fully_shard(model)
    backward(model)
    step(model.parameters())
    rankslice.to_hf(model, out / "fsdp", source=ckpt)
    keep(out, "fsdp", model.state_dict(), logits_of(model))


def replicated(ckpt, out):
    """The whole model on every rank."""
    model = AutoModelForImageTextToText.from_pretrained(ckpt, dtype=torch.bfloat16)
    backward(model)
    step(model.parameters())
    rankslice.to_hf(model, out / "replicated", source=ckpt)
    keep(out, "replicated", model.state_dict(), logits_of(model))


def main(ckpt, out):
    dist.init_process_group("gloo")
    for way in (untouched, expert_parallel, fsdp, replicated):
        way(ckpt, Path(out))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
