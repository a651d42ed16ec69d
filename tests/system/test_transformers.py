"""Models that transformers made, not ours: what it saves is loaded on every mesh, comes back byte for byte, and is the
same model to it."""

import pytest
import torch
from torch.distributed.checkpoint import HuggingFaceStorageWriter

import checkpoints
import reference
import transformers_models
from program import run_ok
from reference import Mesh
from shards import assert_shards

pytestmark = pytest.mark.usefixtures("transformers")

MESHES = [Mesh(1, ep, ep_shard) for ep_shard in (1, 2) for ep in (1, 2, 3, 4)]


@pytest.fixture(scope="module")
def qwen3_vl(tmp_path_factory):
    folder = tmp_path_factory.mktemp("qwen3_vl") / "ckpt"
    return transformers_models.save_qwen3_vl(folder), folder


@pytest.fixture(scope="module")
def qwen3_5(made_by_transformers):
    return made_by_transformers


@pytest.fixture(scope="module")
def qwen3_5_per_expert(tmp_path_factory):
    folder = tmp_path_factory.mktemp("per_expert") / "ckpt"
    model = transformers_models.save_qwen3_5(folder, per_expert=True)
    assert any(reference.is_split(key) for key in reference.read_folder(folder))
    return model, folder


def text_model(save, per_expert):
    """A fixture: (model, folder), saved in one of the two ways that transformers has."""

    @pytest.fixture(scope="module")
    def saved(tmp_path_factory):
        folder = tmp_path_factory.mktemp("text_model") / "ckpt"
        model = save(folder, per_expert=per_expert)
        assert any(".mlp.experts.5.up_proj." in key for key in reference.read_folder(folder)) == per_expert
        return model, folder

    return saved


qwen3_moe = text_model(transformers_models.save_qwen3_moe, per_expert=True)
qwen3_moe_grouped = text_model(transformers_models.save_qwen3_moe, per_expert=False)
qwen3_next = text_model(transformers_models.save_qwen3_next, per_expert=True)
qwen3_next_grouped = text_model(transformers_models.save_qwen3_next, per_expert=False)
qwen3_5_text = text_model(transformers_models.save_qwen3_5_text, per_expert=True)
qwen3_5_text_grouped = text_model(transformers_models.save_qwen3_5_text, per_expert=False)

TEXT_MODELS = [
    "qwen3_moe", "qwen3_moe_grouped", "qwen3_next", "qwen3_next_grouped", "qwen3_5_text", "qwen3_5_text_grouped",
]  # fmt: skip
MODELS = ["qwen3_vl", "qwen3_5", "qwen3_5_per_expert"]


def models_on_meshes():
    """Every model on every mesh; those of Qwen3.5 on most of them only when there is time."""
    return [
        pytest.param(which, mesh, id=f"{which}-on-{mesh}", marks=[] if short else pytest.mark.long)
        for which in MODELS
        for mesh in MESHES
        for short in [which == "qwen3_vl" or mesh in (Mesh(1, 3), Mesh(1, 1, 2), Mesh(1, 4, 2))]
    ]


# rules 5a, 9, 13, 14, 57, 61
@pytest.mark.parametrize(("which", "mesh"), models_on_meshes())
def test_a_store_of_any_mesh_gives_the_source_back(which, mesh, request, tmp_path):
    _, ckpt = request.getfixturevalue(which)
    options = ["--ep", mesh.ep, "--ep-shard", mesh.ep_shard]
    run_ok("load", ckpt, *options, "--store", tmp_path / "s.h5", "--save-shards", tmp_path / "shards", ranks=mesh.ranks)
    assert_shards(tmp_path / "shards", reference.read_folder(ckpt), mesh, reference.Model.of(ckpt))
    run_ok("to-hf", tmp_path / "s.h5", tmp_path / "out", ranks=1 + mesh.ep % 3)
    assert not checkpoints.folder_differences(ckpt, tmp_path / "out")


# rules 5a, 9, 14, 57
@pytest.mark.parametrize("which", TEXT_MODELS)
def test_a_store_of_a_text_model_gives_the_source_back(which, request, tmp_path):
    _, ckpt = request.getfixturevalue(which)
    run_ok("load", ckpt, "--ep", 3, "--ep-shard", 2, "--store", tmp_path / "s.h5", ranks=6)
    run_ok("verify", tmp_path / "s.h5", "--against", ckpt)
    run_ok("to-hf", tmp_path / "s.h5", tmp_path / "out", ranks=2)
    assert not checkpoints.folder_differences(ckpt, tmp_path / "out")


@pytest.mark.parametrize("which", MODELS + TEXT_MODELS)
def test_transformers_finds_the_same_model_in_the_export(which, request, tmp_path):
    model, ckpt = request.getfixturevalue(which)
    run_ok("load", ckpt, "--ep", 3, "--ep-shard", 2, "--save-shards", tmp_path / "shards", ranks=6)
    run_ok("to-hf", tmp_path / "shards", tmp_path / "out", ranks=2)
    assert not checkpoints.folder_differences(ckpt, tmp_path / "out")
    transformers_models.assert_same_model(model, tmp_path / "out")


def write_in_hub_layout(source, target):
    """A copy whose expert tensors have the axis order of the Hub's files (rule 2)."""
    checkpoints.copy(source, target)
    for path in target.glob("*.safetensors"):
        tensors = [
            (key, value.dtype, value.bits.transpose(0, 2, 1) if reference.is_stacked(key) else value.bits)
            for key, value in reference.read_file(path).items()
        ]
        checkpoints.write_safetensors(path, tensors, {"format": "pt"})
    return target


def test_rule61_both_layouts_hold_the_same_qwen3_vl_moe(qwen3_vl, tmp_path):
    """transformers reads the Hub's layout as the same model, so the shards of both are the same too."""
    model, saved = qwen3_vl
    hub = write_in_hub_layout(saved, tmp_path / "hub")
    transformers_models.assert_same_model(model, hub)
    mesh = Mesh(1, 2, 2)
    for folder in (saved, hub):
        run_ok("load", folder, "--ep", 2, "--ep-shard", 2, "--save-shards", tmp_path / f"shards-{folder.name}", ranks=4)
        of_saved = reference.read_folder(saved), mesh, reference.Model.of(saved)
        assert_shards(tmp_path / f"shards-{folder.name}", *of_saved)
    run_ok("to-hf", tmp_path / "shards-hub", tmp_path / "out")
    assert not checkpoints.folder_differences(hub, tmp_path / "out")


@pytest.mark.parametrize("which", MODELS + TEXT_MODELS)
def test_rule1_native_experts_are_used_as_x_times_w(which, request, tmp_path):
    """Whatever the layout of the files, the native tensors are the transposes of what transformers multiplies with."""
    model, ckpt = request.getfixturevalue(which)
    run_ok("load", ckpt, "--save-shards", tmp_path / "shards", ranks=1)
    state = reference.read_file(tmp_path / "shards" / "rank-00000.safetensors")
    names = {name: value for name, value in model.named_parameters() if name.endswith(("gate_up_proj", "down_proj"))}
    assert len(names) >= 4
    for name, value in names.items():
        held = state[name.replace("gate_up_proj", "gate_and_up_projs").replace("down_proj", "down_projs")]
        expected = value.detach().transpose(1, 2).contiguous().view(torch.int16).numpy().view("<u2")
        assert not reference.difference(reference.Tensor("BF16", expected), held), name


def write_with_torch(model, config, folder):
    """What training with torch's distributed checkpoints leaves: consolidated files whose headers end anywhere and hold
    no metadata, beside a folder of shards."""
    names = sorted(model.state_dict())
    writer = HuggingFaceStorageWriter(
        str(folder),
        fqn_to_index_mapping={name: 1 + n % 5 for n, name in enumerate(names)},
        save_distributed=True,
        enable_consolidation=True,
    )
    torch.distributed.checkpoint.save(model.state_dict(), storage_writer=writer, no_dist=True)
    (folder / "config.json").write_bytes(config.read_bytes())
    return folder


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("which", ["qwen3_vl", "qwen3_5"])
def test_files_of_torchs_own_writer_begin_their_data_anywhere(which, request, tmp_path):
    model, saved = request.getfixturevalue(which)
    ckpt, mesh = write_with_torch(model, saved / "config.json", tmp_path / "ckpt"), Mesh(1, 2, 2)
    starts = [len(reference.raw_header(path)) for path in reference.shard_files(ckpt)]
    assert any(start % 2 for start in starts), starts
    run_ok("load", ckpt, "--ep", 2, "--ep-shard", 2, "--save-shards", tmp_path / "shards", ranks=mesh.ranks)
    assert_shards(tmp_path / "shards", reference.read_folder(ckpt), mesh, reference.Model.of(ckpt))
    run_ok("to-hf", tmp_path / "shards", tmp_path / "out", ranks=3)
    assert not checkpoints.folder_differences(ckpt, tmp_path / "out")
