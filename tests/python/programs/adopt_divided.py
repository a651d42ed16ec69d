"""A rank of: adopt a model that FSDP2 and others have divided; arguments: checkpoint, layout."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist

sys.path.append(str(Path(__file__).parents[1]))

import rankslice  # noqa: E402
from modules import divide, module_of  # noqa: E402
from rankslice import _mesh, _native, _state, _world  # noqa: E402

NAME = "model.language_model.layers.1.mlp.shared_expert_gate.weight"


def mismatches(module, folder):
    adopted = _state.adopt(module, rankslice.open(folder), _mesh.place())
    world = _world.communicator()
    _native.digest_source(adopted, world, 1, None)
    return _native.verify(adopted, world, "full", None, 1, None).mismatches


folder, layout = sys.argv[1:]
dist.init_process_group("gloo")
for names in ("native", "transformers"):
    module = module_of(rankslice.load(folder, rank=0, world_size=1).renamed(names), "meta")
    divide(module, layout)
    rankslice.load_into(module, folder)
    assert not mismatches(module, folder)
    with torch.no_grad():
        module.get_parameter(NAME).mul_(2)
    found = mismatches(module, folder)  # of HSDP, one for each copy
    assert {mismatch.tensor for mismatch in found} == {NAME}, [(m.tensor, m.rank, m.what) for m in found]
dist.destroy_process_group()
