"""CKPT OUT: exports that fail, on two ranks. OUT/errors.json says what each rank raised, by what was tried."""

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

import rankslice


class OutOfPatience(Exception):
    """A caller's own."""


def lose_patience(phase, done, total):
    if phase == "to_hf":
        raise OutOfPatience(phase)


def error_of(call):
    try:
        call()
    except Exception as error:
        return {"type": type(error).__name__, "code": getattr(error, "code", None), "message": str(error)}
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
