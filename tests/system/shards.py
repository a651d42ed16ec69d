"""What `--save-shards` has written, beside what the rules say that each rank holds."""

import json
from dataclasses import dataclass

import reference


def shard_path(folder, rank):
    return folder / f"rank-{rank:05}.safetensors"


@dataclass(frozen=True)
class Expected:
    """All ranks' tensors, computed once."""

    state: dict  # FQN -> whole native tensor
    converted: dict  # FQN -> dtype in the checkpoint, of those that have another one there

    @classmethod
    def of(cls, tensors, model=reference.QWEN3_5):
        return cls(reference.global_state(tensors, model), reference.converted(tensors, model))

    def assert_rank(self, path, mesh, rank):
        """A rank's file holds the reference's names, dtypes, shapes and bytes, and says where they belong."""
        local = reference.local_part(self.state, mesh, rank)
        wrong = reference.differences(local, reference.read_file(path))
        assert not wrong, f"rank {rank}:\n" + "\n".join(wrong[:20])
        metadata = reference.metadata(path)
        assert json.loads(metadata["mesh"]) == mesh.sizes
        assert json.loads(metadata["mesh_coordinate"]) == mesh.coordinate(rank)
        places = {
            name: {"global_shape": shape, "offsets": offsets}
            for name, (shape, offsets) in reference.local_places(self.state, mesh, rank).items()
        }
        for name, dtype in self.converted.items():
            places[name]["hf_dtype"] = dtype
        assert json.loads(metadata["tensors"]) == places


def assert_rank(path, tensors, mesh, rank, model=reference.QWEN3_5):
    Expected.of(tensors, model).assert_rank(path, mesh, rank)


def assert_shards(folder, tensors, mesh, model=reference.QWEN3_5):
    """The folder holds every rank's file, and nothing else."""
    assert sorted(p.name for p in folder.iterdir()) == [shard_path(folder, r).name for r in range(mesh.ranks)]
    expected = Expected.of(tensors, model)
    for rank in range(mesh.ranks):
        expected.assert_rank(shard_path(folder, rank), mesh, rank)
