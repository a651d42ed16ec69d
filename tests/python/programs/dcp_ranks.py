"""dcp_ranks.py SOURCE SCRATCH: torch.distributed.checkpoint reads what rankslice wrote, and the other way, on two
ranks."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor, zeros

sys.path.append(str(Path(__file__).resolve().parents[1]))
import made  # noqa: E402
import rankslice  # noqa: E402
from rankslice import errors  # noqa: E402


def local(state):
    return {name: t.to_local() if isinstance(t, DTensor) else t for name, t in state.items()}


def empty_like(tensors, mesh):
    """Where DCP is to put them: experts divided, rows of matrices divided, all else whole."""
    return {
        key: zeros(tensor.shape, dtype=tensor.dtype, device_mesh=mesh, placements=[Shard(tensor.ndim % 2)])
        if tensor.ndim in (2, 3)
        else torch.zeros_like(tensor)
        for key, tensor in tensors.items()
    }


def assert_read_by_dcp(folder, expected, mesh):
    plain = {key: torch.zeros_like(tensor) for key, tensor in expected.items()}
    divided = empty_like(expected, mesh)
    for state in (plain, divided):
        dcp.load(state, storage_reader=HuggingFaceStorageReader(str(folder)))
    whole = {key: t.full_tensor() if isinstance(t, DTensor) else t for key, t in divided.items()}
    assert made.differences(expected, plain) == []
    assert made.differences(expected, whole) == []


def check_dcp_reads_what_we_wrote(source, scratch, mesh):
    """After one value of each expert tensor and of a dense one was changed."""
    state = rankslice.load(source, mesh=mesh)
    for name, tensor in state.items():
        if ".mlp.experts." in name or name.endswith("q_proj.weight"):
            tensor.to_local().flatten()[3] = 7
    rankslice.to_hf(state, scratch / "trained")
    expected = made.tensors_of(scratch / "trained")
    assert made.differences(made.tensors_of(source), expected)
    assert_read_by_dcp(scratch / "trained", expected, mesh)


def check_a_state_survives_dcp(source, scratch, mesh):
    """Saved as it was loaded, then read into memory of the same and of other placements."""
    state = rankslice.load(source, mesh=mesh)
    dcp.save(dict(state), checkpoint_id=str(scratch / "dcp"))

    again = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    dcp.load(again, checkpoint_id=str(scratch / "dcp"))
    assert made.differences(local(state), local(again)) == []

    by_rows = {
        name: distribute_tensor(torch.zeros(t.shape, dtype=t.dtype), mesh, [Shard(0)]) for name, t in state.items()
    }
    rankslice.load_into(by_rows, source)
    read = {name: torch.zeros_like(tensor) for name, tensor in by_rows.items()}
    dcp.load(read, checkpoint_id=str(scratch / "dcp"))
    assert made.differences(local(by_rows), local(read)) == []

    rankslice.to_hf(again, scratch / "home", source=source, mesh=mesh)
    if dist.get_rank() == 0:
        assert made.files(scratch / "home") == made.files(source)


def check_we_read_what_dcp_wrote(source, scratch, mesh):
    """Consolidated: a Hugging Face checkpoint that lacks only config.json. What each rank wrote is none."""
    state = rankslice.load(source, mesh=mesh)
    hf = {key: tensor for key, tensor in empty_like(made.tensors_of(source), mesh).items()}
    dcp.load(hf, storage_reader=HuggingFaceStorageReader(str(source)))
    files = made.files_of(source)
    numbers = {file: n for n, file in enumerate(sorted(set(files.values())), 1)}
    writer = HuggingFaceStorageWriter(
        str(scratch / "written"),
        fqn_to_index_mapping={key: numbers[file] for key, file in files.items()},
        save_distributed=True,
        enable_consolidation=True,
    )
    dcp.save(hf, storage_writer=writer)
    if dist.get_rank() == 0:
        for folder in (scratch / "written", scratch / "written/sharded"):
            (folder / "config.json").write_bytes((source / "config.json").read_bytes())
    dist.barrier()
    again = rankslice.load(scratch / "written", mesh=mesh)
    assert made.differences(local(state), local(again)) == []

    try:
        rankslice.load(scratch / "written/sharded", mesh=mesh)
    except errors.FormatError as error:
        assert "consolidate" in str(error), error
    else:
        raise AssertionError("parts of tensors were taken for whole ones")


def main(source, scratch):
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("ep",))
    check_dcp_reads_what_we_wrote(source, scratch, mesh)
    check_a_state_survives_dcp(source, scratch, mesh)
    check_we_read_what_dcp_wrote(source, scratch, mesh)
    dist.barrier()
    dist.destroy_process_group()


main(Path(sys.argv[1]), Path(sys.argv[2]))
