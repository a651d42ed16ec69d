"""CKPT OUT: exports that fail, on two ranks. OUT/errors.json says what each rank raised, by what was tried."""

import json
import os
import sys
from pathlib import Path
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.placement_types import _StridedShard

import rankslice


class OutOfPatience(Exception):
    """A caller's own."""


class Unwilling(torch.nn.Module):
    """A module whose state dict cannot be had."""

    def state_dict(self):
        raise OutOfPatience("state_dict")


def lose_patience(phase, done, total):
    if phase == "to_hf":
        raise OutOfPatience(phase)


def error_of(call):
    try:
        call()
    except Exception as error:
        told = {"type": type(error).__name__, "code": getattr(error, "code", None), "message": str(error)}
        return told | {"cause": type(error.__cause__).__name__}
    return None


def on_every_rank(call):
    errors = [None] * dist.get_world_size()
    dist.all_gather_object(errors, error_of(call))
    return errors


def main(ckpt, out):
    dist.init_process_group("gloo")
    is_second, out = dist.get_rank() == 1, Path(out)
    state = rankslice.load(ckpt, mesh=init_device_mesh("cpu", (2,), mesh_dim_names=("ep",)))
    errors = {}

    (out / "here" / "folder").mkdir(parents=True, exist_ok=True)
    (out / "elsewhere").mkdir(exist_ok=True)
    os.chdir(out / ("elsewhere" if is_second else "here"))
    errors["a folder that one rank does not see"] = on_every_rank(lambda: rankslice.to_hf(state, "folder/export"))
    errors["gathered where one rank sees the folder"] = on_every_rank(
        lambda: rankslice.to_hf(state, "folder/gathered", gather=True)
    )
    os.chdir(out)

    patience = {"progress": lose_patience} if is_second else {}
    errors["a callback that raises on one rank"] = on_every_rank(
        lambda: rankslice.to_hf(state, out / "interrupted", **patience)
    )
    errors["other options on one rank"] = on_every_rank(
        lambda: rankslice.to_hf(state, out / "other", include="lm_head" if is_second else None)
    )
    name = "model.language_model.norm.weight"
    lacking = {key: value for key, value in state.items() if not (is_second and key == name)}
    errors["a tensor that one rank lacks"] = on_every_rank(
        lambda: rankslice.to_hf(lacking, out / "lacking", source=ckpt)
    )
    columns = {
        key: distribute_tensor(value.full_tensor(), value.device_mesh, [Shard(1)], src_data_rank=None)
        for key, value in state.items()
        if key.endswith("gate_proj.weight")
    }
    lacking = dict(state, **columns)
    if is_second:
        del lacking[min(columns)]
    errors["a tensor that ranks must exchange and one lacks"] = on_every_rank(
        lambda: rankslice.to_hf(lacking, out / "lacking", source=ckpt)
    )
    name = "model.language_model.norm.weight"
    misshapen = dict(state, **columns, **{name: torch.zeros(3) if is_second else state[name].full_tensor()})
    errors["a shape on one rank, beside tensors that ranks must exchange"] = on_every_rank(
        lambda: rankslice.to_hf(misshapen, out / "misshapen", source=ckpt)
    )
    with patch.object(DTensor, "redistribute", side_effect=RuntimeError("the connection is lost")):
        errors["an exchange that fails"] = on_every_rank(
            lambda: rankslice.to_hf(dict(state, **columns), out / "lost", source=ckpt)
        )
    name, column = min(columns.items())
    strided = init_device_mesh("cpu", (2, 1)), [_StridedShard(0, split_factor=2), Replicate()]
    in_strides = DTensor.from_local(column.full_tensor().chunk(2)[0], *strided, run_check=False)
    lacking = {key: value for key, value in {**state, name: in_strides}.items() if not (is_second and key == name)}
    errors["a tensor in strides that one rank lacks"] = on_every_rank(
        lambda: rankslice.to_hf(lacking, out / "lacking", source=ckpt)
    )
    full = {key: value.full_tensor() for key, value in state.items()}
    errors["a state that only the first rank has"] = on_every_rank(
        lambda: rankslice.to_hf(None if is_second else full, out / "alone", source=ckpt)
    )
    errors["a state that one rank cannot take"] = on_every_rank(
        lambda: rankslice.to_hf(Unwilling() if is_second else full, out / "unwilling", source=ckpt)
    )
    errors["another dtype on one rank"] = on_every_rank(
        lambda: rankslice.to_hf(full, out / "dtype", source=ckpt, dtype="bfloat16" if is_second else "held")
    )
    errors["a source on one rank alone"] = on_every_rank(
        lambda: rankslice.to_hf(full, out / "source", source=None if is_second else ckpt)
    )
    errors["no folder on one rank"] = on_every_rank(
        lambda: rankslice.to_hf(state, None if is_second else out / "folder")
    )
    (gate,) = [key for key in state if key.endswith("layers.0.mlp.shared_expert_gate.weight")]
    first_has_it = distribute_tensor(full[gate], column.device_mesh, [Shard(0)], src_data_rank=None)
    another = distribute_tensor(full[gate].clone(), column.device_mesh, [Shard(0)], src_data_rank=None)
    errors["a tied tensor of which one rank has nothing"] = on_every_rank(
        lambda: rankslice.verify({**state, gate: first_has_it, "tied": first_has_it.detach()}, ckpt)
    )
    errors["an unknown tensor of which one rank has nothing"] = on_every_rank(
        lambda: rankslice.verify({**state, gate: first_has_it, "strange": another}, ckpt)
    )
    strange = dict(state, **({"strange": torch.zeros(1)} if is_second else {}))
    errors["a tensor that only one rank has"] = on_every_rank(
        lambda: rankslice.to_hf(strange, out / "more", source=ckpt)
    )
    errors["a source that is not there"] = on_every_rank(
        lambda: rankslice.to_hf(dict(state), out / "nowhere", source=out / "nothing")
    )

    first = rankslice.to_hf(state, out / "export")
    errors["a folder that exists"] = on_every_rank(lambda: rankslice.to_hf(state, out / "export"))
    errors["one that may be replaced"] = on_every_rank(lambda: rankslice.to_hf(state, out / "export", overwrite=True))
    if not is_second:
        (out / "errors.json").write_text(json.dumps({"errors": errors, "files": first.files}))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
