"""System calls do not lie: a rank asks the disk for its own bytes, once, and for nobody else's."""

import json
import re
from collections import Counter

import h5py
import numpy as np
import pytest

import checkpoints
import reference
from program import OnRank, run_ok
from reference import Mesh
from system_calls import TRACE, preads, tensor_bytes, times_read, traced
from variants import Variant

pytestmark = pytest.mark.usefixtures("strace")


def own_bytes(ckpt, tensors, mesh, rank, dense=True):
    """File name -> which bytes are a rank's: its experts, and the dense tensors if asked for."""
    masks = {path.name: np.zeros(path.stat().st_size, bool) for path in reference.shard_files(ckpt)}
    for key, (file, begin, end) in reference.extents(ckpt).items():
        if reference.is_stacked(key):
            one = (end - begin) // tensors[key].shape[0]
            owned = reference.owned_experts(tensors[key].shape[0], mesh.ep, mesh.coordinate(rank)["ep"])
            masks[file][begin + owned.start * one : begin + owned.stop * one] = True
        elif dense:
            masks[file][begin:end] = True
    return masks


@pytest.mark.parametrize("mesh", [Mesh(1, 4), Mesh(2, 2)], ids=lambda mesh: f"{mesh.ep_replicate}x{mesh.ep}")
def test_a_rank_reads_its_own_bytes_once(tiny, tiny_tensors, mesh, tmp_path):
    on_rank = traced("load", tiny, "--ep", mesh.ep, folder=tmp_path, ranks=4)
    shards, everything = reference.shard_files(tiny), tensor_bytes(tiny)
    for rank in range(4):
        counts = times_read(on_rank, rank, shards)
        for file, wanted in own_bytes(tiny, tiny_tensors, mesh, rank).items():
            assert np.array_equal(counts[file] * everything[file], wanted), f"rank {rank}, {file}"
            read_header = bool(counts[file][~everything[file]].any())
            assert read_header == (rank == 0), f"rank {rank}, header of {file}"


def test_rules33_36_a_rank_reads_its_own_split_experts_once(tmp_path):
    """Experts outside its range are skipped: 7 over 4 ranks, 2, 2, 2 and 1, in the decoder and in MTP."""
    ckpt = Variant("qwen3_5_moe", experts=7, split_decoder=True, split_mtp=True).write(tmp_path / "ckpt")
    on_rank = traced("load", ckpt, folder=tmp_path / "ranks", ranks=4)
    for rank in range(4):
        owned = reference.owned_experts(7, 4, rank)
        counts = times_read(on_rank, rank, reference.shard_files(ckpt))
        for key, (file, begin, end) in reference.extents(ckpt).items():
            match = re.search(r"\.mlp\.experts\.(\d+)\.", key)
            wanted = not match or int(match[1]) in owned
            assert (counts[file][begin:end] == wanted).all(), f"rank {rank}, {key}"


def test_a_rank_reads_its_own_bytes_of_a_store_once(tiny, tiny_tensors, tmp_path):
    mesh, store = Mesh(1, 4), tmp_path / "tiny.h5"
    run_ok("load", tiny, "--store", store)
    on_rank = traced("load", store, "--ep", 4, folder=tmp_path / "ranks", ranks=4)
    with h5py.File(store) as file:
        places = {name: (d.id.get_offset(), d.id.get_storage_size()) for name, d in file["state_dict"].items()}
    for rank in range(4):
        (counts,) = times_read(on_rank, rank, [store]).values()
        too_often = 0
        for key, value in tiny_tensors.items():
            begin, size = places[reference.fqn(key, "model.")]
            wanted = np.ones(size, bool)
            if reference.is_stacked(key):
                owned = reference.owned_experts(value.shape[0], mesh.ep, rank)
                one = size // value.shape[0]
                wanted[:] = False
                wanted[owned.start * one : owned.stop * one] = True
            assert (counts[begin : begin + size] >= wanted).all(), f"rank {rank}, {key}"
            too_often += int((counts[begin : begin + size] - wanted).sum())
        # Rank 0 lets HDF5 read the metadata, which takes object headers with some bytes of what follows them.
        assert too_often <= (1024 * len(places) if rank == 0 else 0), f"rank {rank}"


def test_an_export_of_a_checkpoint_reads_every_byte_on_one_rank_only(tiny, tiny_tensors, tmp_path):
    mesh = Mesh(1, 3)
    on_rank = traced("to-hf", tiny, tmp_path / "out", folder=tmp_path / "ranks", ranks=3)
    assert not checkpoints.folder_differences(tiny, tmp_path / "out")
    shards, everything = reference.shard_files(tiny), tensor_bytes(tiny)
    counts = [times_read(on_rank, rank, shards) for rank in range(3)]
    for file, mask in everything.items():
        assert np.array_equal(sum(count[file] for count in counts) * mask, mask), file
        for rank in range(3):
            of_others = np.zeros_like(mask)
            for other in set(range(3)) - {rank}:
                of_others |= own_bytes(tiny, tiny_tensors, mesh, other, dense=False)[file]
            assert not counts[rank][file][of_others].any(), f"rank {rank} read experts of another in {file}"


def test_an_export_of_a_state_reads_no_tensor_of_the_source(mini, tmp_path):
    run_ok("load", mini, "--save-shards", tmp_path / "shards", ranks=2)
    on_rank = traced("to-hf", tmp_path / "shards", tmp_path / "out", folder=tmp_path / "ranks", ranks=2)
    assert not checkpoints.folder_differences(mini, tmp_path / "out")
    for rank in range(2):
        counts = times_read(on_rank, rank, reference.shard_files(mini))
        for file, mask in tensor_bytes(mini).items():
            assert not counts[file][mask].any(), f"rank {rank}, {file}"
        # … and of the shards, the experts that this rank writes, not the other's.
        other = tmp_path / "shards" / f"rank-{1 - rank:05}.safetensors"
        (counted,) = times_read(on_rank, rank, [other]).values()
        header = reference.raw_header(other)
        for name, (begin, end) in stacked_places(other, header).items():
            assert not counted[begin:end].any(), f"rank {rank} read {name} of the other"


def stacked_places(path, header):
    """FQN -> place of the stacked tensors in a rank's file."""
    return {
        name: (len(header) + entry["data_offsets"][0], len(header) + entry["data_offsets"][1])
        for name, entry in json.loads(header[8:]).items()
        if ".mlp.experts." in name
    }


def test_a_plan_reads_headers_only(mini, tmp_path):
    on_rank = OnRank(tmp_path, traced="0", strace=TRACE)
    run_ok("plan", mini, "--ranks", 4, on_rank=on_rank)
    run_counts = times_read(on_rank, 0, reference.shard_files(mini))
    for file, mask in tensor_bytes(mini).items():
        assert not run_counts[file][mask].any(), file


WINDOW = 512 << 10  # what a rank reads at once of small tensors that touch


def runs_of_experts(ckpt, owned):
    """File name -> [begin, end) of what the owner of these split experts reads: tensors that touch make one run."""
    runs = {path.name: [] for path in reference.shard_files(ckpt)}
    for key, (file, begin, end) in sorted(reference.extents(ckpt).items(), key=lambda item: item[1]):
        match = re.search(r"\.mlp\.experts\.(\d+)\.", key)
        if not match or int(match[1]) not in owned:
            continue
        if runs[file] and runs[file][-1][1] == begin:
            runs[file][-1][1] = end
        else:
            runs[file].append([begin, end])
    return runs


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("quantization", ["none", "fp8"])
def test_split_experts_that_touch_are_read_together(quantization, ranks, tmp_path):
    """With their scales, which stand before all weights of a file; those of a file's last weight begin the next one."""
    ckpt, split = tmp_path / "ckpt", ["--decoder-experts", "split", "--mtp-experts", "split"]
    run_ok("synth", ckpt, "--preset", "tiny", *split, "--quantization", quantization)
    on_rank = traced("load", ckpt, "--include", r".*\.mlp\.experts\.", folder=tmp_path / "ranks", ranks=ranks)
    tensors = tensor_bytes(ckpt)
    for rank in range(ranks):
        runs = runs_of_experts(ckpt, reference.owned_experts(8, ranks, rank))
        shards = reference.shard_files(ckpt)
        counts = times_read(on_rank, rank, shards)
        calls = Counter(file for file, begin, _ in preads(on_rank, rank, shards) if tensors[file][begin])
        for file, wanted in runs.items():
            expected = np.zeros_like(tensors[file])
            for begin, end in wanted:
                expected[begin:end] = True
            assert np.array_equal(counts[file] * tensors[file], expected), f"rank {rank}, {file}"
            assert calls[file] == sum(-(-(end - begin) // WINDOW) for begin, end in wanted), f"rank {rank}, {file}"
