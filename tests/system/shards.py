"""What `--save-shards` has written, beside what the rules say that each rank holds."""

import json

import reference


def shard_path(folder, rank):
    return folder / f"rank-{rank:05}.safetensors"


def assert_rank(path, tensors, mesh, rank, model=reference.QWEN3_5):
    """A rank's file holds the reference's names, dtypes, shapes and bytes, and says where they belong."""
    wrong = reference.differences(reference.local_state(tensors, mesh, rank, model), reference.read_file(path))
    assert not wrong, f"rank {rank}:\n" + "\n".join(wrong[:20])
    metadata = reference.metadata(path)
    assert json.loads(metadata["mesh"]) == mesh.sizes
    assert json.loads(metadata["mesh_coordinate"]) == mesh.coordinate(rank)
    places = {
        name: {"global_shape": shape, "offsets": offsets}
        for name, (shape, offsets) in reference.local_places(tensors, mesh, rank, model).items()
    }
    for name, dtype in reference.widened(tensors, model).items():
        places[name]["hf_dtype"] = dtype
    assert json.loads(metadata["tensors"]) == places


def assert_shards(folder, tensors, mesh, model=reference.QWEN3_5):
    """The folder holds every rank's file, and nothing else."""
    assert sorted(p.name for p in folder.iterdir()) == [shard_path(folder, r).name for r in range(mesh.ranks)]
    for rank in range(mesh.ranks):
        assert_rank(shard_path(folder, rank), tensors, mesh, rank, model)
