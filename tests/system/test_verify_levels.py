"""`--verify off|coverage|full|reread`: what each level reads, says and finds, and that all ranks must want the same."""

import re

import numpy as np
import pytest

import checkpoints
import reference
from program import OnRank, expect, run, run_ok
from reference import Mesh
from system_calls import CALLS, lines_about, traced
from test_reads import own_bytes
from variants import Variant

GATE_UP = "model.language_model.layers.2.mlp.experts.gate_up_proj"


def flip_bit_of_store(path, tensors, key):
    """Its experts stand there transposed; of a tensor that is not, the bytes are the checkpoint's."""
    data = path.read_bytes()
    at = data.index(tensors[key].bits.tobytes())
    path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])


@pytest.fixture
def damaged_store(mini, mini_tensors, tmp_path):
    path = tmp_path / "damaged.h5"
    run_ok("load", mini, "--store", path)
    flip_bit_of_store(path, mini_tensors, "lm_head.weight")
    return path


# Coverage -----------------------------------------------------------------------------------------------------------


def test_coverage_says_so_and_digests_nothing(mini):
    result = run_ok("load", mini, "--verify", "coverage", "--json", ranks=3)
    assert result.json["verify"]["level"] == "coverage"
    assert result.json["verify"]["reference"] == "none"
    assert result.json["verify"]["experts"] > 0
    assert result.json["choices"]["digest"] == "off"
    assert "no bytes compared" in result.stderr


def test_coverage_of_one_rank_alone_is_refused(mini):
    refused = expect(2, "load", mini, "--rank", 0, "--ranks", 2, "--verify", "coverage", says="needs all ranks")
    assert "all there" not in refused.stdout + refused.stderr
    run_ok("load", mini, "--rank", 0, "--ranks", 2, "--verify", "off")


def test_what_coverage_does_not_look_at_full_finds(damaged_store):
    run_ok("load", damaged_store, "--verify", "coverage", ranks=2)
    expect(3, "load", damaged_store, "--verify", "full", says="lm_head.weight", ranks=2)


@pytest.mark.usefixtures("strace")
def test_coverage_of_a_checkpoint_reads_its_headers_only(mini, tmp_path):
    on_rank = traced("verify", mini, "--verify", "coverage", folder=tmp_path, ranks=2)
    extents = reference.extents(mini)
    shard = extents[GATE_UP][0]
    data = min(begin for file, begin, _ in extents.values() if file == shard)
    for rank in range(2):
        for line in lines_about(on_rank, rank, [mini.resolve() / shard]):
            offset = re.search(r", (\d+)\)\s+= ", line)
            assert not offset or int(offset[1]) < data, line


def test_an_export_is_read_back_at_every_level(mini_store, mini, tmp_path):
    for level in ("off", "coverage", "full", "reread"):
        out = tmp_path / level
        result = run_ok("to-hf", mini_store, out, "--verify", level, "--json", ranks=2)
        assert result.json["verify"]["level"] == level
        assert not checkpoints.folder_differences(mini, out)
        assert "read back" in result.stderr


def test_an_export_meets_the_recorded_digests_from_full_on(damaged_store, tmp_path):
    for level, code in {"off": 0, "coverage": 0, "full": 3, "reread": 3}.items():
        expect(code, "to-hf", damaged_store, tmp_path / level, "--verify", level, ranks=2)
        assert (tmp_path / level).exists() == (code == 0)


# Reread -------------------------------------------------------------------------------------------------------------

SOURCES = {
    "grouped": Variant("qwen3_5_moe", layers=2),
    "split": Variant("qwen3_5_moe", layers=2, experts=7, split_decoder=True, split_mtp=True),
    "fp8": Variant("qwen3_5_moe", layers=2, fp8="decoder dense", scales="F32"),
}


def assert_read_again(result):
    """Every byte that was read, once more."""
    reread = result.json["verify"]["reread"]
    assert result.json["verify"]["level"] == "reread"
    assert reread["bytes"] == result.json["bytes"]["read"] > 0
    assert reread["on"] == "the same host"
    assert reread["by"] == ("the same rank" if len(result.json["rank"]) == 1 else "another rank")
    return reread


@pytest.mark.parametrize("which", SOURCES)
def test_reread_reads_again_what_loading_read(which, tmp_path):
    source = SOURCES[which].write(tmp_path / "ckpt")
    store, shards = tmp_path / "s.h5", tmp_path / "shards"
    run_ok("load", source, "--store", store, "--save-shards", shards, ranks=2)
    meshes = [(1, []), (4, ["--ep", 2, "--ep-shard", 2]), (2, ["--include", r"model\..*mlp"])]
    for ckpt in (source, store, shards):
        for ranks, options in meshes:
            result = run_ok("load", ckpt, *options, "--verify", "reread", "--json", ranks=ranks)
            assert_read_again(result)
            recorded = ckpt is store
            assert result.json["verify"]["reference"] == ("store" if recorded else "reread")


@pytest.mark.parametrize("which", SOURCES)
def test_reread_of_a_checkpoint_and_of_an_export(which, tmp_path):
    source = SOURCES[which].write(tmp_path / "ckpt")
    for ranks in (1, 3):
        assert_read_again(run_ok("verify", source, "--verify", "reread", "--json", ranks=ranks))
        out = tmp_path / f"out{ranks}"
        assert_read_again(run_ok("to-hf", source, out, "--verify", "reread", "--json", ranks=ranks))


def test_reread_of_one_rank_alone(mini):
    result = run_ok("load", mini, "--rank", 1, "--ranks", 3, "--verify", "reread", "--json")
    assert_read_again(result)
    assert result.json["verify"]["reference"] == "reread"


def test_with_other_files_to_compare_with_these_are_the_reference(mini, mini_store):
    result = run_ok("verify", mini_store, "--against", mini, "--verify", "reread", "--json", ranks=2)
    assert_read_again(result)
    assert result.json["verify"]["reference"] == "against"


@pytest.mark.usefixtures("strace")
def test_the_bytes_of_a_rank_are_read_again_by_the_next_one_past_the_page_cache(tiny, tiny_tensors, tmp_path):
    trace = f"-e trace={CALLS},openat"
    on_rank = OnRank(tmp_path / "ranks", traced="all", strace=trace)
    result = run_ok("load", tiny, "--verify", "reread", "--json", ranks=2, on_rank=on_rank)
    direct = result.json["verify"]["reread"]["past_page_cache"]
    shards = [path.resolve() for path in reference.shard_files(tiny)]
    for rank in range(2):
        lines = list(lines_about(on_rank, rank, shards))
        assert any("O_DIRECT" in line for line in lines) or not direct
        counts = {path.name: np.zeros(path.stat().st_size, "u2") for path in shards}
        for line in lines:
            call = re.match(r"pread64\(\d+<(?P<path>[^>]*)>, .*, (?P<offset>\d+)\)\s+= (?P<got>\d+)$", line)
            if call:
                begin = int(call["offset"])
                counts[call["path"].rsplit("/", 1)[1]][begin : begin + int(call["got"])] += 1
        other = own_bytes(tiny, tiny_tensors, Mesh(1, 2), 1 - rank)
        assert all((counts[file][mask] >= 1).all() for file, mask in other.items()), f"rank {rank}"


def test_plan_says_what_verifying_passes_between_ranks(tiny, tmp_path):
    """8 bytes a number: one for each entry of the first axis of a tensor with three axes or more, or else of a tensor;
    twice where loading converts anything."""
    split = Variant("qwen3_moe").write(tmp_path / "split")
    for ckpt, dtype, tables in [(tiny, "preserve", 2), (split, "preserve", 1), (split, "float32", 2)]:
        tensors = reference.read_folder(ckpt)
        numbers = {key: t.shape[0] if len(t.shape) >= 3 else 1 for key, t in tensors.items()}
        every, experts = sum(numbers.values()), sum(n for key, n in numbers.items() if ".mlp.experts." in key)
        summed = {"coverage": 0, "full": tables * experts * 8, "reread": tables * experts * 8}
        sent = {"coverage": 0, "full": 0, "reread": tables * every * 8}
        for level, found in run_ok("plan", ckpt, "--ranks", 4, "--dtype", dtype, "--json").json["verify"].items():
            assert (found["summed_bytes"], found["sent_bytes"]) == (summed[level], sent[level]), (ckpt, dtype, level)
            assert found["wire_bytes_per_rank"] == summed[level] * 2 * 3 // 4 + sent[level]


# Ranks that want different things -----------------------------------------------------------------------------------


@pytest.mark.parametrize("level", ["off", "coverage", "full"])
@pytest.mark.parametrize("command", ["load", "verify", "to-hf"])
def test_ranks_that_want_different_levels_are_told_so(mini, command, level, tmp_path):
    on_rank = OnRank(tmp_path / "ranks", codes=True, rank_1_sets=f"RANKSLICE_VERIFY={level}")
    out = [tmp_path / "out"] if command == "to-hf" else []
    result = run(command, mini, *out, ranks=3, on_rank=on_rank, env={"RANKSLICE_VERIFY": "reread"})
    assert result.rank_codes == dict.fromkeys(range(3), 2), result.stderr
    assert f"rank 1 has --verify {level}, rank 0 has --verify reread" in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "option", ["RANKSLICE_EP=1", "RANKSLICE_INCLUDE=lm_head", "RANKSLICE_DTYPE=float32", "RANKSLICE_DRY_RUN=1"]
)
def test_no_other_option_may_differ_either(mini, option, tmp_path):
    on_rank = OnRank(tmp_path / "ranks", codes=True, rank_1_sets=option)
    result = run("load", mini, ranks=2, on_rank=on_rank)
    assert result.rank_codes == {0: 2, 1: 2}, result.stderr
    name, value = option.removeprefix("RANKSLICE_").split("=")
    assert f"rank 1 has --{name.lower().replace('_', '-')} {'true' if name == 'DRY_RUN' else value}" in result.stderr


def test_what_a_rank_says_about_itself_may_differ(mini, tmp_path):
    run_ok("load", mini, ranks=2, on_rank=OnRank(tmp_path / "ranks", rank_1_sets="RANKSLICE_VERBOSE=1"))
