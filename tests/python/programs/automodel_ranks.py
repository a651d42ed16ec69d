"""automodel_ranks.py UNEVEN FOLDER…: on two ranks, what NeMo Automodel's adapters make of checkpoints is what rankslice
loads: names, dtypes, shapes, placements and bits. In UNEVEN experts and ranks do not go into one another."""

import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from automodel import from_hf, made
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate

import rankslice
from rankslice import errors

MESHES = [{"ep": 2}, {"ep_shard": 1, "ep": 2}, {"ep_shard": 2, "ep": 1}, {"ep_replicate": 2, "ep_shard": 1, "ep": 1}]


def same_dtensors(expected, found):
    return (
        expected.device_mesh == found.device_mesh
        and expected.placements == found.placements
        and expected.shape == found.shape
        and made.is_same(expected.to_local(), found.to_local())
    )


def described(tensor):
    return tensor.device_mesh, tensor.placements, tensor.shape, tensor.to_local().shape, tensor.dtype


def check(folder, mesh):
    if (
        made.config_of(folder).model_type == "qwen3_moe"
        and "ep_shard" in mesh.mesh_dim_names
        and mesh["ep_shard"].size() > 1
    ):
        return  # its adapter leaves all rows on each rank, and the DTensor then has twice as many
    ours, theirs = rankslice.load(folder, mesh=mesh), from_hf(folder, mesh)
    assert ours.keys() == theirs.keys()
    experts = [name for name in ours if ".mlp.experts." in name]
    for name in experts:
        assert same_dtensors(theirs[name], ours[name]), (name, described(theirs[name]), described(ours[name]))
    for name in ours.keys() - set(experts):  # theirs are plain, ours on the mesh
        assert all(isinstance(placement, Replicate) for placement in ours[name].placements)
        local = ours[name].to_local()
        assert theirs[name].dtype == torch.float8_e4m3fn or made.is_same(theirs[name], local), name  # rule 60


def check_uneven(folder):
    """Rule 12: by rule 9 rank 0 has one expert more, which the shape of a DTensor cannot say."""
    mesh, rank = init_device_mesh("cpu", (2,), mesh_dim_names=("ep",)), dist.get_rank()
    theirs, ours = from_hf(folder, mesh), rankslice.load(folder, rank=rank, world_size=2)
    experts = [name for name in ours if ".mlp.experts." in name]
    assert [name for name in experts if not made.is_same(theirs[name].to_local(), ours[name])] == []
    assert {(ours[name].shape[0], theirs[name].shape[0]) for name in experts} == {((4, 8), (3, 6))[rank]}
    with pytest.raises(errors.Error, match="7 experts over ep=2 are uneven"):
        rankslice.load(folder, mesh=mesh)


def main(uneven, *folders):
    dist.init_process_group("gloo")
    for dims in MESHES:
        mesh = init_device_mesh("cpu", tuple(dims.values()), mesh_dim_names=tuple(dims))
        for folder in folders:
            check(Path(folder), mesh)
    check_uneven(Path(uneven))
    dist.barrier()
    dist.destroy_process_group()


main(*sys.argv[1:])
