"""Qwen3-VL-MoE lies on disk in two axis orders (rule 61). Where shapes cannot tell them apart, the person has to."""

import pytest

import checkpoints
import reference
import transformers_models
from checkpoints import HIDDEN, edit_header, edit_json, file_of
from program import OnRank, expect, run_ok
from reference import Mesh
from shards import assert_shards
from variants import Variant

FLAG = "--expert-layout"
LAYOUTS = ["hub", "transformers"]
SQUARE = {  # expert widths that make one of the two tensors square
    HIDDEN // 2: "gate_up_proj",
    HIDDEN: "down_proj",
}
GATE_UP = "model.language_model.layers.1.mlp.experts.gate_up_proj"
DOWN = "model.language_model.layers.1.mlp.experts.down_proj"


def write(folder, **form):
    return Variant("qwen3_vl_moe", **form).write(folder)


# Shapes that are no evidence ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", SQUARE)
@pytest.mark.parametrize("command", ["load", "plan", "to-hf", "verify"])
def test_rule61_square_experts_demand_the_flag(command, width, tmp_path):
    ckpt = write(tmp_path / "ckpt", width=width)
    arguments = {
        "load": [ckpt, "--store", tmp_path / "s.h5"],
        "plan": [ckpt, "--ranks", 4],
        "to-hf": [ckpt, tmp_path / "out"],
        "verify": [ckpt],
    }[command]
    expect(2, command, *arguments, says=[FLAG, SQUARE[width]])
    assert [path.name for path in tmp_path.iterdir()] == ["ckpt"]


def test_rule61_all_ranks_leave_with_the_same_code_and_one_message(tmp_path):
    ckpt = write(tmp_path / "ckpt", width=HIDDEN // 2)
    result = expect(0, "load", ckpt, ranks=3, on_rank=OnRank(tmp_path / "ranks", codes=True), says=FLAG)
    assert result.rank_codes == {0: 2, 1: 2, 2: 2}
    assert result.stderr.count(FLAG) == 1


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("width", SQUARE)
def test_rule61_with_the_flag_square_experts_are_loaded_as_it_says(width, layout, tmp_path):
    """What was written from them needs no flag any more."""
    ckpt = write(tmp_path / "ckpt", width=width, layout=layout)
    tensors, mesh, shards, store = reference.read_folder(ckpt), Mesh(1, 2, 2), tmp_path / "shards", tmp_path / "s.h5"
    options = ["--ep", 2, "--ep-shard", 2, FLAG, layout]
    run_ok("load", ckpt, *options, "--save-shards", shards, "--store", store, ranks=mesh.ranks)
    model = reference.Model.of(ckpt, layout)
    assert_shards(shards, tensors, mesh, model)
    for source in (shards, store):
        run_ok("to-hf", source, tmp_path / f"from-{source.name}", ranks=2)
        assert not checkpoints.folder_differences(ckpt, tmp_path / f"from-{source.name}")
    run_ok("load", store, "--save-shards", tmp_path / "again", ranks=2)
    assert_shards(tmp_path / "again", tensors, Mesh(1, 2), model)


@pytest.mark.parametrize("width", SQUARE)
def test_rule61_qwen3_5_moe_needs_no_flag(width, tmp_path):
    """All its layouts have the same axis order."""
    ckpt = Variant("qwen3_5_moe", width=width).write(tmp_path / "ckpt")
    run_ok("load", ckpt, "--save-shards", tmp_path / "shards", ranks=2)
    assert_shards(tmp_path / "shards", reference.read_folder(ckpt), Mesh(1, 2))


@pytest.mark.parametrize("width", [16, 32])
def test_rule61_a_model_that_transformers_saved_with_square_experts(transformers, width, tmp_path):
    ckpt, mesh = tmp_path / "ckpt", Mesh(1, 2)
    model = transformers_models.save_qwen3_vl(ckpt, width=width)
    expect(2, "load", ckpt, says=FLAG)
    run_ok("load", ckpt, FLAG, "transformers", "--save-shards", tmp_path / "shards", ranks=2)
    of_ckpt = reference.read_folder(ckpt), mesh, reference.Model.of(ckpt, "transformers")
    assert_shards(tmp_path / "shards", *of_ckpt)
    run_ok("to-hf", tmp_path / "shards", tmp_path / "out")
    assert not checkpoints.folder_differences(ckpt, tmp_path / "out")
    transformers_models.assert_same_model(model, tmp_path / "out")


# Shapes that are evidence -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rule61_a_flag_that_agrees_with_the_shapes_changes_nothing(layout, tmp_path):
    ckpt = write(tmp_path / "ckpt", layout=layout)
    run_ok("load", ckpt, FLAG, layout, "--save-shards", tmp_path / "shards", ranks=2)
    assert_shards(tmp_path / "shards", reference.read_folder(ckpt), Mesh(1, 2), reference.Model.of(ckpt))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rule61_a_flag_that_the_shapes_deny_is_refused(layout, tmp_path):
    ckpt = write(tmp_path / "ckpt", layout=layout)
    (other,) = set(LAYOUTS) - {layout}
    expect(65, "load", ckpt, FLAG, other, "--save-shards", tmp_path / "shards", says="mlp.experts.")
    assert not (tmp_path / "shards").exists()


def give_shape(ckpt, key, shape):
    edit_header(file_of(ckpt, key), lambda header: header | {key: header[key] | {"shape": shape}})


@pytest.mark.parametrize(
    ("key", "shape"), [(GATE_UP, [6, 12, 32]), (GATE_UP, [12, 16, 12]), (DOWN, [6, 8, 24]), (DOWN, [3, 24, 16])]
)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_rule61_shapes_that_config_json_denies_are_refused(layout, key, shape, tmp_path):
    """Of the right size, but of another E, H or I."""
    ckpt = write(tmp_path / "ckpt", layout=layout)
    give_shape(ckpt, key, shape)
    expect(65, "load", ckpt, "--rank", 0, "--ranks", 2, says=[key, *map(str, shape)])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["num_experts", "num_local_experts"])
def test_rule61_the_number_of_experts_is_read_under_either_name(name, layout, tmp_path):
    ckpt = write(tmp_path / "ckpt", layout=layout, experts=5)

    def rename(config):
        text = config["text_config"]
        count = [text.pop(old) for old in ("num_experts", "num_local_experts") if old in text]
        text[name] = count[0]

    edit_json(ckpt / "config.json", rename)
    run_ok("load", ckpt, "--save-shards", tmp_path / "shards", ranks=2)
    assert_shards(tmp_path / "shards", reference.read_folder(ckpt), Mesh(1, 2), reference.Model.of(ckpt))
    edit_json(ckpt / "config.json", lambda config: config["text_config"].update({name: 4}))
    expect(65, "load", ckpt, "--rank", 0, "--ranks", 2, says=["mlp.experts.", "4", "5"])


def test_rule61_a_checkpoint_in_both_layouts_is_refused(tmp_path):
    """No tool writes one; whoever swapped some tensors only should know."""
    ckpt = write(tmp_path / "ckpt")
    down = reference.read_folder(ckpt)[DOWN]
    checkpoints.replace_tensor(ckpt, DOWN, reference.Tensor("BF16", down.bits.transpose(0, 2, 1)))
    expect(65, "load", ckpt, "--rank", 0, "--ranks", 2, says=[DOWN, "hub", "transformers"])


# Names (rules 19-23) ------------------------------------------------------------------------------------------------


def test_rule22_names_without_prefix_get_it_beside_names_that_have_it(tmp_path):
    ckpt = write(tmp_path / "ckpt")
    for key in ("model.visual.pos_embed.weight", "model.language_model.norm.weight", DOWN):
        checkpoints.rename_tensor(ckpt, key, key.removeprefix("model."))
    run_ok("load", ckpt, "--save-shards", tmp_path / "shards", ranks=2)
    tensors, model = reference.read_folder(ckpt), reference.Model.of(ckpt)
    assert {name.split(".")[0] for name in reference.global_state(tensors, model)} == {"model", "lm_head"}
    assert_shards(tmp_path / "shards", tensors, Mesh(1, 2), model)
    run_ok("to-hf", tmp_path / "shards", tmp_path / "out")
    assert not checkpoints.folder_differences(ckpt, tmp_path / "out")


@pytest.mark.parametrize("key", ["model.language_model.norm.weight", GATE_UP])
def test_rule23_two_spellings_of_one_name_are_an_error(key, tmp_path):
    ckpt, other = write(tmp_path / "ckpt"), key.removeprefix("model.")
    checkpoints.add_tensor(ckpt, key, other, reference.read_folder(ckpt)[key])
    expect(65, "load", ckpt, "--rank", 0, "--ranks", 2, says=[f" {other}", key])
