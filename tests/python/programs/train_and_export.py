"""CKPT OUT [CKPT OUT]…: what training jobs do, on every rank. Each way leaves an export in OUT/NAME, and what the ranks
had in memory then in OUT/NAME.pt: {"tensors": by transformers' names, "logits": of PROMPT}."""

import re
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from transformers import AutoConfig, AutoModelForImageTextToText

import rankslice

PROMPT = torch.tensor([[5, 17, 101, 3, 42]])


def expert_mesh():
    """Of 2 ranks two parts of the experts; of 4 also two parts of each expert."""
    if dist.get_world_size() == 2:
        return init_device_mesh("cpu", (2,), mesh_dim_names=("ep",))
    return init_device_mesh("cpu", (2, dist.get_world_size() // 2), mesh_dim_names=("ep_shard", "ep"))


def whole_model(ckpt):
    return AutoModelForImageTextToText.from_pretrained(ckpt, dtype=torch.bfloat16)


def model_on_meta(ckpt):
    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(ckpt), dtype=torch.bfloat16)


def sharded(model):
    for layer in model.model.language_model.layers:
        fully_shard(layer)
    return fully_shard(model)


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


def train(model, ckpt, out, name):
    """One step with the model itself, which is then exported and kept."""
    backward(model)
    step(model.parameters())
    rankslice.to_hf(model, out / name, source=ckpt)
    keep(out, name, model.state_dict(), logits_of(model))


def loaded(ckpt, out):
    rankslice.to_hf(rankslice.load(ckpt, mesh=expert_mesh()), out / "loaded")


def tensor_parallel(ckpt, out):
    """Parameters divided along any of their axes."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),), mesh_dim_names=("tp",))
    state = {
        name: distribute_tensor(value.detach(), mesh, [Shard(n % value.ndim)], src_data_rank=None)
        for n, (name, value) in enumerate(whole_model(ckpt).named_parameters())
    }
    rankslice.to_hf(state, out / "tensor_parallel", source=ckpt)


def pipeline_stages(ckpt, out):
    """Two, which half of the ranks hold each, and write by themselves."""
    half = dist.get_world_size() // 2
    groups = [dist.new_group(range(n * half, (n + 1) * half)) for n in range(2)]
    stage = dist.get_rank() // half
    first = r"model\.visual|model\.language_model\.(embed_tokens|layers\.0)"
    part = {"include": first} if stage == 0 else {"exclude": first}
    state = {
        name: value
        for name, value in whole_model(ckpt).state_dict().items()
        if bool(re.match(first, name)) == (stage == 0)
    }
    rankslice.to_hf(state, out / f"stage_{stage}", source=rankslice.open(ckpt, **part), process_group=groups[stage])


def expert_parallel(ckpt, out):
    """The experts and dense tensors of `load`, trained with the gradients of the whole model."""
    state = rankslice.load(ckpt, mesh=expert_mesh(), names="transformers")
    model = whole_model(ckpt)
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
    train(sharded(whole_model(ckpt)), ckpt, out, "fsdp")


def fsdp_filled(ckpt, out):
    """The same, of a model that had no values: each rank reads what it has of them."""
    model = sharded(model_on_meta(ckpt))
    rankslice.load_into(model, ckpt)
    train(model, ckpt, out, "fsdp_filled")


def without_source(ckpt, out):
    """A divided model that belongs to no checkpoint."""
    model = fully_shard(whole_model(ckpt))
    family = model.config.model_type
    rankslice.to_hf(model, out / "without_source", family=family, side_files=ckpt, expert_layout="transformers")


def master_weights(ckpt, out):
    """The same, held in float32 and used in bfloat16, as which they go back."""
    model = whole_model(ckpt).float()
    for layer in model.model.language_model.layers:
        fully_shard(layer, mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16))
    fully_shard(model, mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16))
    backward(model)
    step(model.parameters())
    rankslice.to_hf(model, out / "master_weights", source=ckpt, dtype="source")
    keep(out, "master_weights", model.state_dict(), logits_of(model))


def replicated(ckpt, out):
    """The whole model on every rank."""
    train(whole_model(ckpt), ckpt, out, "replicated")


def replicated_assigned(ckpt, out):
    """The same, of a model whose parameters are what `load` returned."""
    model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(ckpt), dtype=torch.bfloat16)
    state = rankslice.load(ckpt, rank=0, world_size=1, names="transformers")
    held = {name: value.bfloat16() for name, value in state.items()}  # A_log and dt_bias come in float32 (rule 55)
    model.load_state_dict(held, assign=True)
    train(model, ckpt, out, "replicated_assigned")


WAYS = [
    loaded,
    tensor_parallel,
    pipeline_stages,
    without_source,
    expert_parallel,
    fsdp,
    fsdp_filled,
    master_weights,
    replicated,
    replicated_assigned,
]


def main(*folders):
    dist.init_process_group("gloo")
    for ckpt, out in zip(folders[::2], folders[1::2], strict=True):
        for way in WAYS:
            way(ckpt, Path(out))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
