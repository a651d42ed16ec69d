"""A rank of: load_into a model that FSDP2 and others have divided.

Arguments: checkpoint, layout, device, names, a folder for the report of this rank.
"""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

sys.path.append(str(Path(__file__).parents[1]))

import expected  # noqa: E402
import rankslice  # noqa: E402
from modules import module_of  # noqa: E402


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


def bytes_read_by_process():
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(dict(line.split(": ") for line in lines)["rchar"])


def expected_bytes(module, folder):
    """Of each tensor what this rank holds along axis 0; all of what it is divided along other axes, but that experts
    may be divided along native axis 1, whose rows are columns of these files that are read whole when short."""
    stored = {key: tensor for key, tensor in expected.reference.read_folder(folder).items()}
    names = rankslice.load(folder, rank=0, world_size=1).renamed("transformers")
    keys = dict(zip(names.renamed("native"), names))
    total = 0
    for name, parameter in module.named_parameters():
        tensor = stored[keys.get(name, name)]
        share = parameter.to_local().shape[0] / parameter.shape[0] if parameter.to_local().numel() else 0
        total += round(tensor.bits.nbytes * share)
    return total


folder, layout, device, names, reports = sys.argv[1:]
dist.init_process_group("gloo")
whole = rankslice.load(folder, rank=0, world_size=1).renamed(names)
module = module_of(whole, device)
divide(module, layout)
placements = {name: parameter.placements for name, parameter in module.named_parameters()}

before = bytes_read_by_process()
filled = rankslice.load_into(module, folder)
read = bytes_read_by_process() - before

for name, parameter in module.named_parameters():
    assert isinstance(parameter, nn.Parameter) and isinstance(parameter.data, DTensor), name
    assert parameter.placements == placements[name] and not parameter.is_meta, name
    assert torch.equal(expected.bits(parameter.full_tensor()), expected.bits(whole[name])), name
assert any(parameter.to_local().numel() < parameter.numel() for parameter in module.parameters())
headers = sum(len(expected.reference.raw_header(path)) for path in Path(folder).glob("*.safetensors"))
Path(reports, f"rank-{dist.get_rank()}.json").write_text(
    json.dumps(
        {
            "told": filled.bytes_read,
            "expected": expected_bytes(module, folder),
            "of_the_process": read,
            "headers": headers + (1 << 20),
        }
    )
)
dist.destroy_process_group()
