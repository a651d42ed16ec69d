"""What is wrong with a checkpoint, a store or a command line is told by the documented code, and names the culprit."""

import json
import os
import re
import subprocess

import h5py
import pytest

import checkpoints
import reference
from checkpoints import edit_header, edit_json, file_of
from program import MPIEXEC, MPIEXEC_OPTIONS, PROGRAM, OnRank, expect, leftovers, run, run_ok

INDEX = "model.safetensors.index.json"
GATE_UP = "model.language_model.layers.2.mlp.experts.gate_up_proj"
DENSE = "model.language_model.layers.0.mlp.gate.weight"


def load_alone(code, ckpt, says="", **how):
    """One rank without MPI: what is found while opening is found by every kind of run."""
    return expect(code, "load", ckpt, "--rank", 0, "--ranks", 2, says=says, **how)


def cut(path, size):
    with open(path, "r+b") as file:
        file.truncate(size if size >= 0 else path.stat().st_size + size)


# Broken checkpoints -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [-1, 4, 0])
def test_a_shard_that_ends_early(broken, size):
    path = file_of(broken, GATE_UP)
    cut(path, size)
    load_alone(65, broken, says=path.name)


def test_a_shard_with_a_trailer(broken):
    path = file_of(broken, GATE_UP)
    path.write_bytes(path.read_bytes() + b"\0")
    load_alone(65, broken, says=path.name)


def test_a_missing_shard(broken):
    path = file_of(broken, GATE_UP)
    path.unlink()
    load_alone(66, broken, says=path.name)


def test_a_missing_folder(tmp_path):
    for command in ("inspect", "verify"):
        expect(66, command, tmp_path / "nowhere", says=tmp_path / "nowhere")
    load_alone(66, tmp_path / "nowhere")


def test_a_folder_without_weights(tmp_path):
    load_alone(66, tmp_path, says=tmp_path)


def test_a_shard_that_is_no_regular_file(broken):
    path = file_of(broken, GATE_UP)
    path.unlink()
    os.mkfifo(path)
    load_alone(65, broken, says=path.name)


def test_an_index_that_is_no_json(broken):
    (broken / INDEX).write_text('{"weight_map": {')
    load_alone(65, broken, says=INDEX)


def change_weight_map(broken, edit):
    edit_json(broken / INDEX, lambda index: edit(index["weight_map"]))


def test_an_index_that_names_the_wrong_file(broken):
    other = next(p.name for p in reference.shard_files(broken) if p != file_of(broken, GATE_UP))
    change_weight_map(broken, lambda names: names.update({GATE_UP: other}))
    load_alone(65, broken, says=GATE_UP)


def test_an_index_with_a_tensor_that_no_file_has(broken):
    file = file_of(broken, DENSE).name
    change_weight_map(broken, lambda names: names.update({"model.language_model.layers.0.ghost": file}))
    load_alone(65, broken, says="layers.0.ghost")


def test_a_tensor_that_the_index_forgets(broken):
    change_weight_map(broken, lambda names: names.pop(DENSE))
    load_alone(65, broken, says=DENSE)


def test_a_wrong_total_size_is_only_worth_a_warning(broken):
    edit_json(broken / INDEX, lambda index: index["metadata"].update(total_size=1))
    load_alone(0, broken, says="total_size")


OUTSIDE = "../m.safetensors /etc/m.safetensors a/../m.safetensors a//m.safetensors a\\m.safetensors m.bin".split()


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_name_that_leads_out_of_the_folder(broken, name):
    (broken.parent / "m.safetensors").write_bytes(file_of(broken, DENSE).read_bytes())
    change_weight_map(broken, lambda names: names.update({DENSE: name}))
    load_alone(65, broken, says=INDEX)


def test_a_tensor_twice_in_one_header(broken):
    def double(header):
        text = json.dumps(header)
        return (text[:-1] + f', "{DENSE}": {json.dumps(header[DENSE])}}}').encode()

    edit_header(file_of(broken, DENSE), double)
    load_alone(65, broken, says=DENSE)


def test_swapped_axes(broken):  # rules 3, 61
    def swap(header):
        e, rows, columns = header[GATE_UP]["shape"]
        header[GATE_UP]["shape"] = [e, columns, rows]
        return header

    edit_header(file_of(broken, GATE_UP), swap)
    load_alone(65, broken, says=[GATE_UP, "[6, 24, 16]", "[6, 16, 24]"])


@pytest.mark.parametrize("field", ["num_experts", "hidden_size", "moe_intermediate_size"])
def test_sizes_that_config_json_denies(broken, field):  # rules 42, 61
    edit_json(broken / "config.json", lambda config: config["text_config"].update({field: 5}))
    load_alone(65, broken, says=[".mlp.experts.", "5"])


def test_a_layer_without_experts(broken):  # rule 42
    path = file_of(broken, GATE_UP)
    kept = [(k, t.dtype, t.bits) for k, t in reference.read_file(path).items() if k != GATE_UP]
    checkpoints.write_safetensors(path, kept)
    change_weight_map(broken, lambda names: names.pop(GATE_UP))
    load_alone(65, broken, says=GATE_UP)


@pytest.mark.parametrize("method", ["gptq", "awq", "modelopt", "compressed-tensors"])
def test_other_quantisations_than_block_fp8_are_refused_by_name(broken, method):
    quantization = {"quantization_config": {"quant_method": method, "bits": 4}}
    checkpoints.edit_json(broken / "config.json", lambda config: config.update(quantization))
    load_alone(65, broken, says=["config.json", method])


def test_two_keys_for_one_parameter(broken):  # rule 39: upstream lets the later one win
    path = file_of(broken, "lm_head.weight")
    tensors = [(k, t.dtype, t.bits) for k, t in reference.read_file(path).items()]
    tensors.append(("model.lm_head.weight", "BF16", reference.read_file(path)["lm_head.weight"].bits))
    checkpoints.write_safetensors(path, tensors)
    change_weight_map(broken, lambda names: names.update({"model.lm_head.weight": path.name}))
    load_alone(65, broken, says=["model.lm_head.weight", "lm_head.weight"])


def test_a_missing_config(broken):
    (broken / "config.json").unlink()
    result = run("load", broken, "--rank", 0, "--ranks", 2)
    assert result.code in (65, 66) and "config.json" in result.stderr, result


def test_a_config_that_is_no_json(broken):
    (broken / "config.json").write_text("model_type: qwen3_5_moe")
    load_alone(65, broken, says="config.json")


def test_a_model_of_another_family(broken):
    edit_json(broken / "config.json", lambda config: config.update(model_type="llama"))
    load_alone(65, broken, says=["llama", "qwen3_5_moe"])


@pytest.mark.parametrize("ranks", [1, 4])
def test_all_ranks_leave_with_the_same_code_and_one_message(broken, ranks, tmp_path):
    path = file_of(broken, GATE_UP)
    cut(path, -1)
    on_rank = OnRank(tmp_path / "ranks", codes=True)
    result = run("load", broken, "--store", tmp_path / "s.h5", ranks=ranks, on_rank=on_rank)
    assert result.rank_codes == dict.fromkeys(range(ranks), 65)
    assert result.stderr.count(path.name) == 1, result.stderr
    assert not (tmp_path / "s.h5").exists() and not leftovers(tmp_path / "s.h5")


def test_mpirun_reports_the_code(broken):
    file_of(broken, GATE_UP).unlink()
    expect(66, "load", broken, ranks=2)


def test_an_error_is_in_the_report(broken, tmp_path):
    path = file_of(broken, GATE_UP)
    cut(path, -1)
    result = load_alone(65, broken, says=path.name)
    result = run("load", broken, "--json", "--report", tmp_path / "report.json")
    assert result.code == 65
    for report in (result.json, json.loads((tmp_path / "report.json").read_text())):
        assert (report["ok"], report["error"]["code"], report["error"]["rank"]) == (False, 65, 0)
        assert path.name in report["error"]["file"] and path.name in report["error"]["message"]


# Outputs that cannot be made ----------------------------------------------------------------------------------------


def test_an_output_in_a_folder_that_is_not_there(mini, tmp_path):
    out = tmp_path / "nowhere" / "out"
    expect(73, "load", mini, "--store", out, says=out)
    expect(73, "load", mini, "--save-shards", out, says=out)
    expect(73, "to-hf", mini, out, says=out)
    expect(73, "synth", out, "--family", "qwen3_5_moe", "--preset", "tiny", says=out)
    assert not (tmp_path / "nowhere").exists()


# Damaged stores -----------------------------------------------------------------------------------------------------


def flip_bit(path, offset, bit=3):
    with open(path, "r+b") as file:
        file.seek(offset)
        (byte,) = file.read(1)
        file.seek(offset)
        file.write(bytes([byte ^ 1 << bit]))


@pytest.fixture
def store(mini_store, tmp_path):
    """A store that a test may damage."""
    path = tmp_path / "damaged.h5"
    path.write_bytes(mini_store.read_bytes())
    return path


def flip_in_expert(path, fqn, expert):
    with h5py.File(path) as file:
        dataset = file["state_dict"][fqn]
        bytes_of_one = dataset.id.get_storage_size() // dataset.shape[0]
        at = dataset.id.get_offset() + expert * bytes_of_one + bytes_of_one // 2
    flip_bit(path, at)


@pytest.mark.parametrize("ranks", [None, 2])
def test_a_flipped_bit_in_an_expert_is_named_by_layer_and_expert(store, ranks, tmp_path):
    flip_in_expert(store, "model.language_model.layers.2.mlp.experts.gate_and_up_projs", expert=4)
    result = expect(3, "verify", store, ranks=ranks)
    assert re.search(r"layer 2\b", result.stderr) and re.search(r"expert 4\b", result.stderr), result.stderr
    assert "layers.2.mlp.experts.gate" in result.stderr
    expect(3, "load", store, "--save-shards", tmp_path / "shards", says="expert 4", ranks=ranks)
    expect(3, "to-hf", store, tmp_path / "out", says="expert 4", ranks=ranks)
    for output in (tmp_path / "shards", tmp_path / "out"):
        assert not output.exists() and not leftovers(output)


def test_a_flipped_bit_in_a_dense_tensor_is_named(store):
    with h5py.File(store) as file:
        at = file["state_dict/lm_head.weight"].id.get_offset()
    flip_bit(store, at + 7)
    expect(3, "verify", store, says="lm_head.weight")


def test_the_report_lists_the_mismatch(store):
    flip_in_expert(store, "mtp.layers.0.mlp.experts.down_projs", expert=5)
    result = run("verify", store, "--json")
    assert result.code == 3
    (mismatch,) = result.json["verify"]["mismatches"]
    assert mismatch["expert"] == 5 and "mtp.layers.0.mlp.experts.down_proj" in mismatch["tensor"]


def test_a_difference_from_another_checkpoint_is_found(broken, mini_store):
    file, begin, _ = reference.extents(broken)[GATE_UP]
    flip_bit(broken / file, begin + 3 * 24 * 16 * 2)  # the first element of expert 3
    expect(3, "verify", broken, "--against", mini_store, says=[GATE_UP, "expert 3"])


def metadata_addresses(path):
    """Bytes of the superblock and of some object headers."""
    with h5py.File(path) as file:
        objects = ["state_dict", "digest/source", "source", "state_dict/lm_head.weight"]
        addresses = {name: h5py.h5o.get_info(file[name].id).addr for name in objects}
    return {"superblock": 20, **{name: address + 12 for name, address in addresses.items()}}


@pytest.mark.parametrize("where", ["superblock", "state_dict", "digest/source", "source", "state_dict/lm_head.weight"])
def test_a_flipped_bit_in_the_metadata_is_refused(store, where):
    flip_bit(store, metadata_addresses(store)[where])
    expect(65, "verify", store, says=store)


def test_a_flipped_bit_in_the_kept_source_is_refused(store, mini, tmp_path):
    """The headers and side files are not covered by digests: they have checksums of their own."""
    side_file = (mini / "tokenizer.json").read_bytes()
    flip_bit(store, store.read_bytes().index(side_file) + 100)
    expect(65, "to-hf", store, tmp_path / "out", says="tokenizer.json")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("size", [0, 100, 4096, -1])
def test_a_store_that_ends_early_is_refused(store, size):
    cut(store, size)
    expect(65, "verify", store, says=store)


# Wrong usage --------------------------------------------------------------------------------------------------------

WRONG = [
    ["load", "CKPT", "--nonsense"],
    ["nonsense"],
    [],
    ["load"],
    ["to-hf", "CKPT"],
    ["load", "CKPT", "--rank", "0", "--ranks", "4", "--ep", "3"],
    ["load", "CKPT", "--rank", "4", "--ranks", "4"],
    ["load", "CKPT", "--rank", "-1", "--ranks", "4"],
    ["load", "CKPT", "--rank", "1"],
    ["load", "CKPT", "--ep", "two"],
    ["load", "CKPT", "--verify", "nonsense"],
    ["load", "CKPT", "--timeout", "-1"],
    ["plan", "CKPT"],
    ["synth", "OUT", "--family", "qwen3_5_moe", "--preset", "nonsense"],
    ["synth", "OUT", "--family", "nonsense", "--preset", "tiny"],
]
UNAVAILABLE = [["load", "CKPT", "--device", "cuda"], ["load", "CKPT", "--comm", "nccl"]]


def filled(arguments, mini, tmp_path):
    return [{"CKPT": mini, "OUT": tmp_path / "out"}.get(argument, argument) for argument in arguments]


@pytest.mark.parametrize("arguments", WRONG, ids=lambda arguments: " ".join(arguments) or "nothing")
def test_wrong_usage(arguments, mini, tmp_path):
    result = expect(2, *filled(arguments, mini, tmp_path))
    assert result.stderr.strip() and not (tmp_path / "out").exists()


@pytest.mark.parametrize("arguments", UNAVAILABLE, ids=" ".join)
def test_a_gpu_that_is_asked_for_is_not_silently_replaced(arguments, mini, tmp_path):
    expect(69, *filled(arguments, mini, tmp_path), says=arguments[-1])


def test_nccl_without_gpus_is_refused_on_every_rank_and_said_once(mini, tmp_path):
    result = run("load", mini, "--comm", "nccl", ranks=3, on_rank=OnRank(tmp_path, codes=True))
    assert result.rank_codes == {0: 69, 1: 69, 2: 69}
    assert result.stderr.count("--comm nccl: ") == 1 and "--comm mpi" in result.stderr


def test_nccl_for_some_ranks_only_is_refused_on_all(mini):
    rank = ["-n", "1", "env", PROGRAM, "load", mini, "-q"]
    told = [*rank[:3], "RANKSLICE_COMM=nccl", *rank[3:]]
    command = [MPIEXEC, *MPIEXEC_OPTIONS, *told, ":", *rank]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode == 69
    assert result.stderr.count("--comm nccl was given to some of the ranks only") == 1


def test_what_is_the_default_may_be_said(mini):
    words = "--family auto --dtype preserve --device auto --comm auto --verify full --ep-shard 1 --expert-layout auto"
    run_ok("load", mini, *words.split())


def test_wrong_usage_is_said_once_by_four_ranks(mini, tmp_path):
    on_rank = OnRank(tmp_path / "ranks", codes=True)
    result = run("load", mini, "--ep", 3, ranks=4, on_rank=on_rank)
    assert result.rank_codes == dict.fromkeys(range(4), 2)
    assert len([line for line in result.stderr.splitlines() if "ep" in line]) == 1, result.stderr


# Wrong launches -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variable", ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS", "WORLD_SIZE"])
def test_many_jobs_of_one_rank_instead_of_one_job(mini, variable, tmp_path):
    expect(78, "load", mini, "--store", tmp_path / "s.h5", env={variable: "4"}, says=[variable, "4"])
    assert not (tmp_path / "s.h5").exists()


CAUSES = [
    ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "srun --mpi=pmix"),
    ("WORLD_SIZE", "RANK", "--rank $RANK --ranks $WORLD_SIZE"),
    ("PMI_SIZE", "PMI_RANK", "another MPI library"),
]


@pytest.mark.parametrize("ranks, rank, cause", CAUSES)
def test_one_rank_worlds_are_told_their_likely_cause_by_one_of_them(mini, ranks, rank, cause):
    expect(78, "verify", mini, env={ranks: "2", rank: "0"}, says=cause)
    assert not expect(78, "verify", mini, env={ranks: "2", rank: "1"}).stderr


def test_the_launcher_of_most_ranks_says_which_one_this_is(mini):
    srun = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1"}
    expect(78, "verify", mini, env=srun | {"WORLD_SIZE": "16", "RANK": "0"}, says="WORLD_SIZE=16")
    assert not expect(78, "verify", mini, env=srun | {"WORLD_SIZE": "16", "RANK": "9"}).stderr


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_processes_that_would_all_load_as_one_rank(mini, rank, tmp_path):
    on_rank = OnRank(tmp_path / "ranks", codes=True)
    shards = ["--save-shards", tmp_path / "shards"]
    result = run("load", mini, "--rank", rank, "--ranks", 3, *shards, ranks=3, on_rank=on_rank)
    assert result.rank_codes == {r: 0 if r == rank else 78 for r in range(3)}
    lines = [line for line in result.stderr.splitlines() if "Likely cause: --rank is for one process" in line]
    numbers = {int(re.search(r"and number (\d+) was", line)[1]) for line in lines}
    assert len(lines) == 2 and numbers == {0, 1, 2} - {rank}, result.stderr


def test_one_process_with_the_number_of_another_is_told(mini):
    expect(78, "load", mini, "--rank", 1, "--ranks", 4, env={"WORLD_SIZE": "4", "RANK": "2"}, says="number 2 was")


def test_processes_that_each_load_as_their_own_rank_may(mini):
    for rank in range(2):
        env = {"RANK": str(rank), "WORLD_SIZE": "2"}
        run_ok("load", mini, "--rank", rank, "--ranks", 2, env=env)


@pytest.mark.parametrize("rank", [0, 8, 9, 15])
def test_processes_of_torchrun_may_be_started_by_srun(mini, rank):
    """srun -N2 torchrun --nproc-per-node 8, which all processes of a node see."""
    srun = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": str(rank // 8)}
    env = srun | {"WORLD_SIZE": "16", "RANK": str(rank)}
    run_ok("load", mini, "--rank", rank, "--ranks", 16, "--ep", 2, env=env)
    said = f"number {rank} was started with --rank {rank ^ 4}"
    expect(78, "load", mini, "--rank", rank ^ 4, "--ranks", 16, "--ep", 2, env=env, says=said)


def test_the_job_that_is_meant_may_be_the_smaller_one(mini):
    env = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1", "WORLD_SIZE": "16", "RANK": "3"}
    run_ok("load", mini, "--rank", 1, "--ranks", 2, env=env)
    expect(78, "load", mini, "--rank", 1, "--ranks", 4, env=env, says="number 3 was started with --rank 1")


def test_commands_without_ranks_do_not_mind_the_launch(mini):
    run_ok("inspect", mini, env={"WORLD_SIZE": "4"})
    run_ok("plan", mini, "--ranks", 4, env={"OMPI_COMM_WORLD_SIZE": "4"})
