"""Where a rank stands: every order of a DeviceMesh's dimensions, plain numbers, and what makes no sense together."""

import itertools

import pytest
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore

from rankslice import _mesh, errors

SIZES = {"ep_replicate": 2, "ep_shard": 3, "ep": 4}


@pytest.fixture
def as_rank():
    """as_rank(rank, world_size): this process is that rank, of a group in which nothing is sent."""

    def become(rank, world_size):
        if dist.is_initialized():
            dist.destroy_process_group()
        dist.init_process_group("fake", rank=rank, world_size=world_size, store=FakeStore())

    yield become
    if dist.is_initialized():
        dist.destroy_process_group()


def device_mesh(**sizes):
    return init_device_mesh("cpu", tuple(sizes.values()), mesh_dim_names=tuple(sizes))


def all_dimensions():
    return [dict(order) for count in (1, 2, 3) for order in itertools.permutations(SIZES.items(), count)]


@pytest.mark.parametrize("sizes", all_dimensions(), ids="-".join)
def test_a_rank_stands_where_its_coordinate_is_with_ep_fastest_and_ep_replicate_slowest(as_rank, sizes):
    total = 1
    for size in sizes.values():
        total *= size
    for rank in {0, 1, total // 2, total - 1}:
        as_rank(rank, total)
        mesh = device_mesh(**sizes)
        at = {name: mesh.get_local_rank(name) if name in sizes else 0 for name in SIZES}
        shards, width = sizes.get("ep_shard", 1), sizes.get("ep", 1)
        place = _mesh.place(mesh)
        assert place.rank == (at["ep_replicate"] * shards + at["ep_shard"]) * width + at["ep"]
        assert place.ranks[place.rank] == rank and sorted(place.ranks) == list(range(total))
        assert (place.mesh.ep_replicate, place.mesh.ep_shard, place.mesh.ep) == (
            sizes.get("ep_replicate", 1),
            shards,
            width,
        )
        assert place.device_mesh is mesh


def test_a_pipeline_stage_is_a_mesh_of_its_ranks_alone(as_rank):
    as_rank(6, 8)
    stage = device_mesh(pp=2, ep_shard=2, ep=2)["ep_shard", "ep"]
    place = _mesh.place(stage)
    assert (place.rank, place.ranks) == (2, [4, 5, 6, 7])


def test_a_mesh_of_other_dimensions_is_refused_by_their_names_16(as_rank):
    as_rank(0, 4)
    expected = "Expected mesh dimension names to contain only 'ep', 'ep_shard', 'ep_replicate', got "
    for mesh, names in [
        (device_mesh(ep=2, tp=2), "('ep', 'tp'): give a slice of it, mesh[\"ep\"]"),
        (
            device_mesh(pp=1, ep_shard=2, ep=2),
            "('pp', 'ep_shard', 'ep'): give a slice of it, mesh[\"ep_shard\", \"ep\"]",
        ),
        (device_mesh(dp=4), "('dp',)"),
        (init_device_mesh("cpu", (4,)), "None"),
    ]:
        with pytest.raises(errors.UsageError) as raised:
            _mesh.place(mesh)
        assert str(raised.value) == expected + names


def test_a_rank_that_is_not_in_the_mesh_is_told_so(as_rank):
    from torch.distributed.device_mesh import DeviceMesh

    as_rank(3, 4)
    with pytest.raises(errors.UsageError, match=r"rank 3 is not in the mesh of ranks \[0, 1\]"):
        _mesh.place(DeviceMesh("cpu", [0, 1], mesh_dim_names=("ep",)))


def test_rank_and_world_size_are_a_rank_that_works_alone():
    place = _mesh.place(rank=5, world_size=8, ep=2, ep_shard=2)
    assert (place.rank, place.ranks, place.device_mesh) == (5, None, None)
    assert (place.mesh.ep_replicate, place.mesh.ep_shard, place.mesh.ep) == (2, 2, 2)
    assert _mesh.place(rank=0, world_size=8).mesh.ep == 8


def test_without_arguments_the_ranks_are_those_of_torch_distributed_or_this_one_alone(as_rank):
    alone = _mesh.place()
    assert (alone.rank, alone.mesh.ranks, alone.ranks) == (0, 1, None)
    as_rank(2, 4)
    place = _mesh.place(ep=2)
    assert (place.rank, place.ranks, place.mesh.ep_replicate, place.mesh.ep) == (2, [0, 1, 2, 3], 2, 2)
    group = dist.new_group([1, 2])
    assert _mesh.place(process_group=group).ranks == [1, 2]


def test_ranks_of_a_launcher_that_nobody_made_a_group_do_not_silently_load_everything_each(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(errors.UsageError, match="WORLD_SIZE is 4, but torch.distributed is not initialised"):
        _mesh.place()
    assert _mesh.place(rank=1, world_size=4).rank == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rank": 1}, "rank and world_size belong together"),
        ({"world_size": 4}, "rank and world_size belong together"),
        ({"rank": 4, "world_size": 4}, "rank 4 is outside a mesh of 4 ranks"),
        ({"rank": -1, "world_size": 4}, "rank -1 is outside a mesh of 4 ranks"),
    ],
)
def test_numbers_that_make_no_sense_together_are_refused(arguments, message):
    with pytest.raises(errors.UsageError, match=message):
        _mesh.place(**arguments)


def test_sizes_that_do_not_divide_the_ranks_are_refused_with_all_of_them():
    with pytest.raises(errors.PlanError, match="ep_shard 3 × ep 2 does not divide the number of ranks, 8"):
        _mesh.place(rank=0, world_size=8, ep=2, ep_shard=3)


def test_a_mesh_and_numbers_are_one_too_many(as_rank):
    as_rank(0, 4)
    mesh = device_mesh(ep=4)
    for more in ({"rank": 0, "world_size": 4}, {"ep": 4}, {"ep_shard": 1}):
        with pytest.raises(errors.UsageError, match="give one or the other"):
            _mesh.place(mesh, **more)
