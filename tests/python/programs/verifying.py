"""CKPT OUT: states that are verified, on two ranks. OUT/reports.json says what was found,
and whether all ranks found the same."""

import dataclasses
import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import AutoModelForImageTextToText

import rankslice

EXPERTS = "model.language_model.layers.1.mlp.experts"


def flip(tensor, *at):
    """The lowest bit of one element."""
    local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    local.detach().view(torch.int16)[at] ^= 1


def model_of(ckpt):
    return AutoModelForImageTextToText.from_pretrained(ckpt, dtype=torch.bfloat16)


def shard(model):
    for layer in model.model.language_model.layers:
        fully_shard(layer)
    return fully_shard(model)


def main(ckpt, out):
    dist.init_process_group("gloo")
    is_second = dist.get_rank() == 1
    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("ep",))
    reports = {}

    def report(name, *args, **options):
        found = dataclasses.asdict(rankslice.verify(*args, check=False, **options))
        everywhere = [None] * dist.get_world_size()
        dist.all_gather_object(everywhere, found)
        reports[name] = dict(found, same=all(one == found for one in everywhere))

    state = rankslice.load(ckpt, mesh=mesh)
    report("loaded", state)
    report("reread", state, level="reread")
    report("against", state, against=ckpt)
    report("of a source", dict(state), ckpt)
    alone = rankslice.load(ckpt, rank=dist.get_rank(), world_size=2)
    report("loaded by each rank alone", alone)
    report("parts of a mesh", dict(alone), ckpt, mesh=mesh)
    report("of a model", model_of(ckpt), ckpt)
    model = shard(model_of(ckpt))
    report("of an FSDP model", model, ckpt)

    if is_second:
        flip(state[f"{EXPERTS}.down_projs"], 1, 3, 5)  # expert 4 of 6
    report("flipped", state)
    report("flipped, of a source", dict(state), ckpt)
    report("flipped, coverage", state, level="coverage")
    parameters = dict(model.named_parameters())
    if is_second:
        flip(parameters[f"{EXPERTS}.gate_up_proj"], 2, 0, 7)  # expert 5
        flip(parameters["model.language_model.norm.weight"], 1)  # on its second half
    report("flipped in an FSDP model", model, ckpt)

    try:
        rankslice.verify(state)
        raised = None
    except rankslice.VerifyError as error:
        raised = {"message": str(error), "tensor": error.tensor, "mismatches": len(error.report.mismatches)}
    everywhere = [None] * dist.get_world_size()
    dist.all_gather_object(everywhere, raised)
    if not is_second:
        Path(out, "reports.json").write_text(json.dumps({"reports": reports, "raised": everywhere}))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
