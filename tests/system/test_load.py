"""`load` gives every rank exactly the tensors that the rules say, bit for bit, and reports what it did."""

import json

import pytest

import checkpoints
import program
import reference
from program import run_ok
from reference import Mesh
from shards import assert_shards, shard_path

# 8 experts: one rank, even parts, a remainder (3, 3, 2), two experts each, and two replicas of two ranks.
MESHES = [Mesh(1, 1), Mesh(1, 2), Mesh(1, 3), Mesh(1, 4), Mesh(2, 2)]


def assert_report(path, tensors, mesh):
    report = json.loads(path.read_text())
    stacked = [value for key, value in tensors.items() if reference.is_stacked(key)]
    owned = [sum(t.nbytes for t in reference.local_state(tensors, mesh, rank).values()) for rank in range(mesh.ranks)]
    read = [reference.bytes_wanted(tensors, mesh, rank) for rank in range(mesh.ranks)]
    assert report["schema"] == "rankslice.report/1"
    assert (report["command"], report["ok"], report["family"]) == ("load", True, "qwen3_5_moe")
    assert report["ranks"] == mesh.ranks
    assert report["mesh"] == {"ep_replicate": mesh.ep_replicate, "ep_shard": 1, "ep": mesh.ep}
    assert report["device"] == "cpu"
    assert report["bytes"]["checkpoint"] == sum(value.nbytes for value in tensors.values())
    assert (report["bytes"]["read"], report["bytes"]["owned"]) == (sum(read), sum(owned))
    assert [entry["rank"] for entry in report["rank"]] == list(range(mesh.ranks))
    assert [entry["bytes_owned"] for entry in report["rank"]] == owned
    assert [entry["bytes_read"] for entry in report["rank"]] == read
    for entry, bytes_owned in zip(report["rank"], owned, strict=True):
        assert entry["host"]
        assert 0 < entry["seconds_load"] <= report["seconds"]["load"] <= report["seconds"]["total"]
        assert entry["peak_rss_bytes"] > bytes_owned
    verify = report["verify"]
    assert (verify["level"], verify["reference"], verify["mismatches"]) == ("full", "none", [])
    assert verify["tensors"] == len(tensors)
    assert verify["experts"] == sum(value.shape[0] for value in stacked)
    assert report["choices"]["dense"] == "each-rank" and report["choices"]["io"] == "pread"
    assert report["versions"]


@pytest.mark.parametrize("mesh", MESHES, ids=lambda mesh: f"{mesh.ep_replicate}x{mesh.ep}")
def test_every_rank_holds_its_slice(tiny, tiny_tensors, mesh, tmp_path):  # rules 9, 13, 32, 34, 35, 38, 39, 53-55
    shards, report = tmp_path / "shards", tmp_path / "report.json"
    ranks = None if mesh.ranks == 1 else mesh.ranks
    run_ok("load", tiny, "--ep", mesh.ep, "--save-shards", shards, "--report", report, ranks=ranks)
    assert_shards(shards, tiny_tensors, mesh)
    assert_report(report, tiny_tensors, mesh)


def test_a_rank_without_experts_holds_an_empty_tensor(tmp_path):  # rules 9, 42
    mesh = Mesh(1, 4)
    ckpt = checkpoints.write_mini(tmp_path / "three", experts=3)
    run_ok("load", ckpt, "--ep", 4, "--save-shards", tmp_path / "shards", ranks=4)
    tensors = reference.read_folder(ckpt)
    assert_shards(tmp_path / "shards", tensors, mesh)
    last = reference.read_file(shard_path(tmp_path / "shards", 3))
    name = "model.language_model.layers.0.mlp.experts.gate_and_up_projs"
    assert last[name].shape == (0, checkpoints.HIDDEN, 2 * checkpoints.INTERMEDIATE)


def test_any_bits_survive_and_remainders_are_dealt_out(mini, mini_tensors, tmp_path):  # rules 9, 55
    """The values of `mini` are random bits: NaN payloads, infinities, minus zero. 6 experts: 2, 2, 1, 1."""
    mesh = Mesh(1, 4)
    run_ok("load", mini, "--save-shards", tmp_path / "shards", ranks=4)  # --ep is the number of ranks
    assert_shards(tmp_path / "shards", mini_tensors, mesh)


def test_what_transformers_saves_is_loaded(made_by_transformers, tmp_path):  # rule 5a
    _, ckpt = made_by_transformers
    mesh = Mesh(1, 2)
    run_ok("load", ckpt, "--save-shards", tmp_path / "shards", ranks=2)
    assert_shards(tmp_path / "shards", reference.read_folder(ckpt), mesh)


@pytest.mark.parametrize(("mesh", "rank"), [(Mesh(1, 4), 0), (Mesh(1, 4), 3), (Mesh(2, 2), 3)])
def test_rank_local_loading_gives_the_same_tensors(mini, mini_tensors, mesh, rank, tmp_path):
    run_ok("load", mini, "--rank", rank, "--ranks", mesh.ranks, "--ep", mesh.ep, "--save-shards", tmp_path / "shards")
    files = list((tmp_path / "shards").iterdir())
    assert files == [shard_path(tmp_path / "shards", rank)]
    assert not reference.differences(reference.local_state(mini_tensors, mesh, rank), reference.read_file(files[0]))


def test_rank_local_loading_needs_no_job_around_it(mini, tmp_path):
    """Inside a training job the launcher's variables are set, but no MPI is meant."""
    env = {"WORLD_SIZE": "4", "RANK": "1", "LOCAL_RANK": "1"}
    run_ok("load", mini, "--rank", 1, "--ranks", 4, "--save-shards", tmp_path / "shards", env=env)
    assert shard_path(tmp_path / "shards", 1).exists()


def test_shard_files_of_replicas_say_where_they_belong(mini, mini_tensors, tmp_path):
    """`__metadata__`: the mesh coordinate, each tensor's global shape and offsets, the source and its fingerprint."""
    mesh = Mesh(2, 2)
    run_ok("load", mini, "--ep", 2, "--save-shards", tmp_path / "shards", ranks=4)
    assert_shards(tmp_path / "shards", mini_tensors, mesh)
    found = [reference.metadata(shard_path(tmp_path / "shards", rank)) for rank in range(mesh.ranks)]
    assert {metadata["source"] for metadata in found} == {str(mini.resolve())}
    (fingerprint,) = {metadata["source_fingerprint"] for metadata in found}
    assert len(fingerprint) == 32


def test_a_checkpoint_in_the_hub_cache_is_loaded_through_its_links(mini, mini_tensors, tmp_path):
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "0123abc"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for n, path in enumerate(sorted(mini.iterdir())):
        (blobs / f"etag{n}").write_bytes(path.read_bytes())
        (snapshot / path.name).symlink_to(f"../../blobs/etag{n}")
    run_ok("load", snapshot, "--save-shards", tmp_path / "shards")
    assert_shards(tmp_path / "shards", mini_tensors, Mesh(1, 1))


@pytest.mark.parametrize("shards", [1, 3])
def test_a_checkpoint_without_an_index_is_loaded(shards, tmp_path):
    ckpt = checkpoints.write_mini(tmp_path / "ckpt", experts=2, layers=1, shards=shards)
    (ckpt / "model.safetensors.index.json").unlink()
    run_ok("load", ckpt, "--save-shards", tmp_path / "shards")
    assert_shards(tmp_path / "shards", reference.read_folder(ckpt), Mesh(1, 1))


def test_an_existing_folder_of_shards_is_kept(mini, tmp_path):
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "mine.txt").write_text("precious")
    program.expect(73, "load", mini, "--save-shards", tmp_path / "shards")
    assert [p.name for p in (tmp_path / "shards").iterdir()] == ["mine.txt"]
