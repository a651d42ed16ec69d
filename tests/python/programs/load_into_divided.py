"""A rank of: load_into a model that FSDP2 and others have divided.

Arguments: checkpoint, layout, a folder for the reports of this rank.
"""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor

sys.path.append(str(Path(__file__).parents[1]))

import expected  # noqa: E402
import rankslice  # noqa: E402
from modules import divide, module_of  # noqa: E402


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


def load_into_one(folder, whole, layout, device):
    """Bytes that were read: as told, of the whole process, and as this rank's parts say."""
    module = module_of(whole, device)
    divide(module, layout)
    placements = {name: parameter.placements for name, parameter in module.named_parameters()}
    before = bytes_read_by_process()
    filled = rankslice.load_into(module, folder)
    of_process = bytes_read_by_process() - before
    for name, parameter in module.named_parameters():
        assert isinstance(parameter, nn.Parameter) and isinstance(parameter.data, DTensor), name
        assert parameter.placements == placements[name] and not parameter.is_meta, name
        assert torch.equal(expected.bits(parameter.full_tensor()), expected.bits(whole[name])), name
    return {"told": filled.bytes_read, "of_process": of_process, "expected": expected_bytes(module, folder)}


folder, layout, reports = sys.argv[1:]
dist.init_process_group("gloo")
native = rankslice.load(folder, rank=0, world_size=1)
for device in ("meta", "cpu"):
    for names in ("native", "transformers"):
        report = load_into_one(folder, native.renamed(names), layout, device)
        Path(reports, f"{device}-{names}-{dist.get_rank()}.json").write_text(json.dumps(report))
dist.destroy_process_group()
