"""Which part of the whole a rank's DTensor is, against torch's own dividing of a tensor of numbers."""

from itertools import product

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from torch.testing._internal.distributed.fake_pg import FakeStore

import rankslice
from rankslice._pieces import pieces_of

MESH = (2, 3)


@pytest.fixture(params=range(6))
def mesh(request):
    """Of six ranks of which one is real and none communicates."""
    dist.init_process_group("fake", store=FakeStore(), rank=request.param, world_size=6)
    yield init_device_mesh("cpu", MESH)
    dist.destroy_process_group()


@pytest.mark.parametrize("shape", [(12, 6), (7, 5, 2), (1, 4), (5, 1, 3)], ids=str)
def test_pieces_hold_the_values_that_torch_gives_the_rank(mesh, shape):
    whole = torch.arange(torch.Size(shape).numel()).view(shape)
    kinds = [Replicate(), *(Shard(axis) for axis in range(len(shape)))]
    for placements in product(kinds, repeat=2):
        tensor = distribute_tensor(whole, mesh, placements, src_data_rank=None)
        found = pieces_of("numbers", tensor)
        assert len(found) == (tensor.to_local().numel() > 0), placements
        for piece in found:
            box = tuple(slice(begin, begin + size) for begin, size in zip(piece.offsets, piece.shape))
            assert torch.equal(piece.of(tensor.to_local()), whole[box]), placements
            local, offsets = compute_local_shape_and_global_offset(shape, mesh, placements)
            assert piece.shape == local and piece.offsets == offsets, placements


@pytest.mark.parametrize(("dp", "tp"), list(product((2, 3, 4), repeat=2)))
def test_of_a_tensor_parallel_model_in_fsdp_pieces_hold_what_fsdp_gives_the_rank(dp, tp):
    """FSDP divides each rank's rows of tensor parallelism, whose parts may be uneven, once more."""
    for rank in range(dp * tp):
        dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=dp * tp)
        try:
            names = f"dp of {rank}", f"tp of {rank}"  # torch keeps meshes of the same names, with their rank
            mesh = init_device_mesh("cpu", (dp, tp), mesh_dim_names=names)
            numbers = {str(rows): torch.arange(3.0 * rows).view(rows, 3) for rows in (*range(1, 14), 17, 23, 39)}
            module = nn.ParameterDict({
                rows: nn.Parameter(distribute_tensor(whole, mesh[names[1]], [Shard(0)], src_data_rank=None))
                for rows, whole in numbers.items()
            })  # fmt: skip
            fully_shard(module, mesh=mesh[names[0]])
            for rows, parameter in module.items():
                local = parameter.to_local().detach()
                pieces = pieces_of(rows, parameter)
                found = [numbers[rows].narrow(0, p.offsets[0], p.shape[0]) for p in pieces if p.shape[0]]
                assert torch.equal(torch.cat([local[:0], *found]), local), (rank, rows)
        finally:
            dist.destroy_process_group()


def test_partial_sums_and_local_tensors_of_other_shapes_are_refused_by_name(mesh):
    partial = DTensor.from_local(torch.ones(4), mesh, [Partial(), Replicate()], run_check=False)
    with pytest.raises(rankslice.errors.PlanError, match="a.weight: has partial sums"):
        pieces_of("a.weight", partial)
    uneven = DTensor.from_local(torch.ones(4), mesh, [Shard(0), Replicate()], run_check=False,
                                shape=torch.Size([10]), stride=(1,))  # fmt: skip
    with pytest.raises(rankslice.errors.PlanError, match=r"a.weight: .* give this rank \[5\] of \[10\], .* is \[4\]"):
        pieces_of("a.weight", uneven)
