"""The command line: help, machine output, quietness, environment, dry runs, and the commands without ranks."""

import json
import re
import shutil

import pytest

import checkpoints
import reference
from program import expect, run_ok
from reference import Mesh
from variants import Variant

COMMANDS = ["inspect", "plan", "synth", "load", "verify", "to-hf"]


# Help ---------------------------------------------------------------------------------------------------------------


def example_lines(text):
    return [line.strip() for line in text.splitlines() if re.match(r"\s*(\$ )?(mpirun .*)?rankslice [a-z]", line)]


def test_help_lists_the_commands_and_an_example():
    text = run_ok("--help").stdout
    for command in COMMANDS:
        assert re.search(rf"^\s*{command}\b", text, re.MULTILINE), command
    assert example_lines(text)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_shows_an_example_with_options_that_exist(command):
    text = run_ok(command, "--help").stdout
    examples = [line for line in example_lines(text) if f"rankslice {command} " in line]
    assert examples, text
    documented = set(re.findall(r"--[a-z][a-z-]*", "\n".join(set(text.splitlines()) - set(examples))))
    for line in examples:
        of_rankslice = line.split("rankslice", 1)[1]
        unknown = set(re.findall(r"--[a-z][a-z-]*", of_rankslice)) - documented
        assert not unknown, f"{line}: {unknown}"


def test_the_options_of_load_are_documented():
    text = run_ok("load", "--help").stdout
    for option in (
        "family dtype expert-layout device comm verify include exclude timeout dry-run json report progress log-format"
        " overwrite ep ep-shard store save-shards rank ranks"
    ).split():
        assert f"--{option}" in text, option


# rule 25: an export may have other keys than its source
@pytest.mark.parametrize("command", ["inspect", "plan", "load", "verify", "to-hf"])
def test_help_says_whose_keys_are_selected(command):
    keys_of = "export" if command == "to-hf" else "source"
    text = " ".join(run_ok(command, "--help").stdout.split())
    for tensors in ("Only tensors", "No tensors"):
        assert f"{tensors} whose HF key in the {keys_of} matches this regex" in text


# Machine output -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_json_is_one_document_on_stdout(command, mini, mini_store, tmp_path):
    arguments = {
        "inspect": ["inspect", mini],
        "plan": ["plan", mini, "--ranks", 3],
        "synth": ["synth", tmp_path / "out", "--family", "qwen3_5_moe", "--preset", "tiny", "--layers", 1],
        "load": ["load", mini],
        "verify": ["verify", mini_store],
        "to-hf": ["to-hf", mini_store, tmp_path / "out"],
    }[command]
    document = run_ok(*arguments, "--json").json
    if command in ("inspect", "plan"):  # these list what is there; the others report what they did
        assert document["schema"] == f"rankslice.{command}/1"
    else:
        assert document["schema"] == "rankslice.report/1"
        assert (document["command"], document["ok"]) == (command, True)


def test_json_comes_from_one_rank(mini):
    assert run_ok("load", mini, "--json", ranks=3).json["ranks"] == 3


def test_without_json_stdout_is_for_data_only(mini):
    assert run_ok("load", mini).stdout == ""


# Words for people ---------------------------------------------------------------------------------------------------


def test_quiet_says_nothing(mini, tmp_path):
    result = run_ok("load", mini, "--store", tmp_path / "s.h5", "-q")
    assert (result.stdout, result.stderr) == ("", "")


def test_progress_is_told_by_one_rank(mini, tmp_path):
    lines = run_ok("load", mini, "--store", tmp_path / "s.h5", "--progress", "on", ranks=3).stderr.splitlines()
    for phase in ("load", "verify", "store"):
        assert [line for line in lines if phase in line], phase
    assert len(lines) == len(set(lines)), lines


def test_log_lines_can_be_json(mini):
    lines = run_ok("load", mini, "--log-format", "json").stderr.splitlines()
    assert lines
    for line in lines:
        assert isinstance(json.loads(line), dict), line


# inspect and plan ---------------------------------------------------------------------------------------------------


def numbers_in(tree):
    if isinstance(tree, (dict, list)):
        for value in tree.values() if isinstance(tree, dict) else tree:
            yield from numbers_in(value)
    elif isinstance(tree, int):
        yield tree


@pytest.mark.parametrize("which", ["mini", "mini_store"])
def test_inspect_says_what_is_in_it(which, mini_tensors, request):
    path = request.getfixturevalue(which)
    report = run_ok("inspect", path, "--json").json
    assert report["family"] == "qwen3_5_moe"
    numbers = set(numbers_in(report))
    assert len(mini_tensors) in numbers  # tensors
    assert 6 in numbers  # experts
    assert sum(value.nbytes for value in mini_tensors.values()) in numbers
    text = run_ok("inspect", path).stdout
    assert "qwen3_5_moe" in text and str(len(mini_tensors)) in text


def test_inspect_says_how_experts_are_stored_and_what_load_would_do(mini, mini_tensors):
    report = run_ok("inspect", mini, "--json").json
    shapes = {group["stored"].split()[0]: group for group in report["experts"]["groups"] if group["layers_of"] != "mtp"}
    stored = {name.rsplit(".", 1)[-1]: list(value.shape) for name, value in mini_tensors.items() if "experts." in name}
    for name, fqn in (("gate_up_proj", "gate_and_up_projs"), ("down_proj", "down_projs")):
        group = shapes[name]
        assert json.loads(group["stored"].split(maxsplit=1)[1]) == stored[name]
        assert group["parameter"] == fqn
        assert json.loads(group["shape"]) == [stored[name][i] for i in (0, 2, 1)]  # rule 3
        assert (group["layout"], group["on_load"]) == ("grouped", "transposed")
    for width in report["load"]:
        first = run_ok("plan", mini, "--ranks", width["ep"], "--json").json["rank"][0]
        assert (width["bytes_read"], width["bytes_owned"]) == (first["bytes_read"], first["bytes_owned"])
    assert [width["ep"] for width in report["load"]] == [1, 2, 4]  # of 6 experts
    assert report["prefix"] == "model."


@pytest.mark.parametrize(("spelling", "module"), [("model.", "model"), ("", "layers")])
def test_inspect_sums_up_the_layers_of_a_text_model(spelling, module, tmp_path):
    ckpt = Variant("qwen3_moe", layers=3, spelling=spelling).write(tmp_path / "ckpt")
    groups = run_ok("inspect", ckpt, "--json").json["experts"]["groups"]
    assert [(group["layers_of"], group["layers"]) for group in groups] == [(module, 3), (module, 3)]


def test_inspect_takes_a_misplaced_mtp_for_no_prefix(broken):  # rules 32, 43
    def respell(entries):
        return {
            "model." + key if key.startswith("mtp.") else key.removeprefix("model."): entries[key] for key in entries
        }

    for path in broken.glob("*.safetensors"):
        checkpoints.edit_header(path, respell)
    index = broken / "model.safetensors.index.json"
    checkpoints.edit_json(index, lambda content: content.update(weight_map=respell(content["weight_map"])))
    assert any("model.mtp." in key for key in json.loads(index.read_text())["weight_map"])
    assert run_ok("inspect", broken, "--json").json["prefix"] == ""


def test_inspect_says_what_is_odd(broken):
    (broken / "model.safetensors.index.json").unlink(missing_ok=True)
    (broken / "config.json").unlink()
    problems = run_ok("inspect", broken, "--family", "qwen3_5_moe", "--json").json["problems"]
    assert any("no config.json" in problem for problem in problems)
    assert any("no index" in problem for problem in problems)


def test_inspect_says_what_a_folder_lacks_that_is_no_checkpoint(tmp_path, mini):
    (tmp_path / "snapshots").mkdir()
    shutil.copytree(mini, tmp_path / "snapshots" / "abc")
    expect(66, "inspect", tmp_path, says=f"did you mean {tmp_path}/snapshots/abc?")


def test_inspect_knows_a_pointer_of_git_lfs(tmp_path):
    (tmp_path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    expect(65, "inspect", tmp_path, says="git lfs pull")


def test_inspect_lists_files_that_are_not_carried_along(broken):
    (broken / "extra").mkdir()
    report = run_ok("inspect", broken, "--json").stdout
    assert "extra" in report


@pytest.mark.parametrize("mesh", [Mesh(1, 1), Mesh(1, 4), Mesh(1, 6), Mesh(1, 16), Mesh(8, 2)])
def test_plan_says_what_each_rank_reads_and_holds(mini, mini_tensors, mesh):
    report = run_ok("plan", mini, "--ranks", mesh.ranks, "--ep", mesh.ep, "--json").json
    assert report["mesh"] == {"ep_replicate": mesh.ep_replicate, "ep_shard": 1, "ep": mesh.ep}
    assert [entry["rank"] for entry in report["rank"]] == list(range(mesh.ranks))
    for entry in report["rank"]:
        held = reference.local_state(mini_tensors, mesh, entry["rank"])
        assert entry["bytes_owned"] == sum(value.nbytes for value in held.values())
        assert entry["bytes_read"] == reference.bytes_wanted(mini_tensors, mesh, entry["rank"])
    assert report["bytes"]["read"] == sum(entry["bytes_read"] for entry in report["rank"])
    assert report["bytes"]["owned"] == sum(entry["bytes_owned"] for entry in report["rank"])


def test_plan_is_what_load_does(mini):
    planned = run_ok("plan", mini, "--ranks", 3, "--json").json
    loaded = run_ok("load", mini, "--json", ranks=3).json
    for entry, done in zip(planned["rank"], loaded["rank"], strict=True):
        assert (entry["bytes_read"], entry["bytes_owned"]) == (done["bytes_read"], done["bytes_owned"])


# synth --------------------------------------------------------------------------------------------------------------


def synth(out, *options):
    run_ok("synth", out, "--family", "qwen3_5_moe", "--preset", "tiny", *options)
    return out


def test_synth_is_deterministic_and_seeded(tiny, tmp_path):
    assert not checkpoints.folder_differences(tiny, synth(tmp_path / "again"))
    other = synth(tmp_path / "other", "--seed", 5)
    assert [line for line in checkpoints.folder_differences(tiny, other) if "safetensors: differs" in line]


def test_synth_looks_like_the_hub(tiny, tiny_tensors):
    assert sum(value.nbytes for value in tiny_tensors.values()) <= 64 << 20
    config = json.loads((tiny / "config.json").read_text())
    assert config["model_type"] == "qwen3_5_moe" and config["text_config"]["num_experts"] == 8
    assert len(list(tiny.glob("model*-of-*.safetensors"))) > 1
    names = "|".join(tiny_tensors)
    for part in (
        "model.visual.",
        "lm_head.weight",
        "mtp.layers.0.mlp.experts.gate_up_proj",
        "mtp.fc.weight",
        ".linear_attn.A_log",
        ".self_attn.q_norm.weight",
        ".mlp.shared_expert.gate_proj.weight",
        ".mlp.shared_expert_gate.weight",
        ".mlp.gate.weight",
    ):
        assert part in names, part
    for key, value in tiny_tensors.items():
        wide = key.endswith(("A_log", "linear_attn.norm.weight"))
        assert value.dtype == ("F32" if wide else "BF16"), key
        exponent = value.bits >> (23 if wide else 7) & 0xFF
        assert (exponent != 0xFF).all(), f"{key} has infinities or NaNs"


def test_synth_takes_layers_and_experts(tmp_path):
    tensors = reference.read_folder(synth(tmp_path / "ckpt", "--layers", 2, "--experts", 3))
    stacked = {key: value for key, value in tensors.items() if reference.is_stacked(key)}
    assert {checkpoints.layer_of(key) for key in stacked if not key.startswith("mtp.")} == {0, 1}
    assert {value.shape[0] for value in stacked.values()} == {3}


def test_synth_makes_headers_only(tmp_path):
    """A model of any size to plan with, on a small disk."""
    out = tmp_path / "small"
    run_ok("synth", out, "--family", "qwen3_5_moe", "--preset", "small", "--headers-only")
    sizes = [path.stat() for path in out.glob("*.safetensors")]
    assert sum(size.st_size for size in sizes) > 1 << 30
    assert sum(size.st_blocks * 512 for size in sizes) < 4 << 20
    assert run_ok("plan", out, "--ranks", 8, "--json").json["ranks"] == 8


def test_synth_keeps_what_is_there(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious.txt").write_text("mine")
    expect(73, "synth", tmp_path / "out", "--family", "qwen3_5_moe", "--preset", "tiny")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["precious.txt"]


# Dry runs -----------------------------------------------------------------------------------------------------------


def test_a_dry_run_makes_nothing(mini, tmp_path):
    run_ok("load", mini, "--store", tmp_path / "s.h5", "--dry-run", ranks=2)
    run_ok("load", mini, "--save-shards", tmp_path / "shards", "--dry-run")
    run_ok("to-hf", mini, tmp_path / "out", "--dry-run")
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_says_what_would_be_read(mini, mini_tensors):
    report = run_ok("load", mini, "--dry-run", "--json", ranks=2).json
    assert [entry["bytes_read"] for entry in report["rank"]] == [
        reference.bytes_wanted(mini_tensors, Mesh(1, 2), rank) for rank in range(2)
    ]


# The environment ----------------------------------------------------------------------------------------------------


def test_the_environment_stands_behind_the_command_line(mini):
    plan = ["plan", mini, "--ranks", 4, "--json"]
    assert run_ok(*plan).json["mesh"]["ep"] == 4
    assert run_ok(*plan, env={"RANKSLICE_EP": "2"}).json["mesh"]["ep"] == 2
    assert run_ok(*plan, "--ep", 1, env={"RANKSLICE_EP": "2"}).json["mesh"]["ep"] == 1


def test_every_kind_of_option_has_an_environment_variable(mini, tmp_path):
    env = {"RANKSLICE_SAVE_SHARDS": str(tmp_path / "shards"), "RANKSLICE_JSON": "1", "RANKSLICE_VERIFY": "off"}
    report = run_ok("load", mini, env=env).json
    assert report["verify"]["level"] == "off"
    assert [path.name for path in (tmp_path / "shards").iterdir()] == ["rank-00000.safetensors"]


def test_a_wrong_value_in_the_environment_is_wrong_usage(mini):
    expect(2, "load", mini, env={"RANKSLICE_VERIFY": "nonsense"}, says="nonsense")


def test_the_environment_speaks_to_the_command_that_is_called(mini, tmp_path):
    """`--quantization` is a flag of one command and has a value in another."""
    run_ok("synth", tmp_path / "out", "--layers", 1, env={"RANKSLICE_QUANTIZATION": "fp8"})
    assert run_ok("inspect", tmp_path / "out", "--json").json["quantisation"]["method"] == "block-fp8"
    keys = run_ok("plan", mini, "--ranks", 2, "--json", env={"RANKSLICE_QUANTIZATION": "1"}).json
    assert keys["quantization"] is True


def test_help_names_the_environment():
    assert "RANKSLICE_EP" in run_ok("load", "--help").stdout


# verify -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ranks", [None, 3])
def test_verify_reads_a_checkpoint_against_a_store(mini, mini_store, mini_tensors, ranks):
    report = run_ok("verify", mini, "--against", mini_store, "--json", ranks=ranks).json
    stacked = [value for key, value in mini_tensors.items() if reference.is_stacked(key)]
    assert report["verify"]["tensors"] == len(mini_tensors)
    assert report["verify"]["experts"] == sum(value.shape[0] for value in stacked)
    assert report["verify"]["mismatches"] == []
    assert report["verify"]["unlisted_mismatches"] == 0


def test_verifying_can_be_left_out(mini):
    report = run_ok("load", mini, "--verify", "off", "--json").json
    assert report["verify"]["level"] == "off"
