"""Both families, in every form of checkpoint and on every kind of mesh: each rank holds, bit for bit, what a second
implementation of the rules says, and the way home gives the source back."""

import json

import pytest

import checkpoints
import reference
from program import run_ok
from reference import Mesh
from shards import assert_rank, assert_shards, shard_path
from variants import Variant

MESHES = [
    *(Mesh(1, ep, ep_shard) for ep_shard in (1, 2) for ep in (1, 2, 3, 4)),
    Mesh(2, 2),
    Mesh(2, 2, 2),
    Mesh(1, 1, 4),
]

FORMS = [  # of both families: 7 experts leave a remainder on 2, 3 and 4 ranks; 3 leave a rank without any
    {},
    {"experts": 7, "odd": True},
    {"experts": 3, "files": 1, "odd": True},
    {"experts": 7, "index": False, "odd": True},
    {"dtype": "F32"},
    {"dtype": "I8", "odd": True},
    {"dtype": "U8", "experts": 5, "files": 1},
    {"spelling": ""},
]
QWEN3_VL = [
    *(Variant("qwen3_vl_moe", layout=layout, **form) for layout in ("hub", "transformers") for form in FORMS),
    Variant("qwen3_vl_moe", layout="transformers", dtype="F16", experts=2, odd=True),
]
QWEN3_5 = [
    *(Variant("qwen3_5_moe", **form) for form in FORMS),
    Variant("qwen3_5_moe", spelling="model.layers"),
    # 11 experts: in the order of names, 10 comes before 2.
    Variant("qwen3_5_moe", split_mtp=True, experts=11),
    Variant("qwen3_5_moe", split_mtp=True, experts=3, files=1, odd=True),
    Variant("qwen3_5_moe", split_mtp=True, spelling="", index=False),
    Variant("qwen3_5_moe", split_decoder=True, experts=11, files=4, odd=True),
    Variant("qwen3_5_moe", split_decoder=True, split_mtp=True, experts=3, index=False),
    Variant("qwen3_5_moe", split_decoder=True, split_mtp=True, experts=7, dtype="F32", odd=True),
    Variant("qwen3_5_moe", split_decoder=True, split_mtp=True, dtype="I8", odd=True),
    Variant("qwen3_5_moe", split_decoder=True, split_mtp=True, dtype="U8", files=1),
    Variant("qwen3_5_moe", split_decoder=True, split_mtp=True, spelling="model.layers"),
    Variant("qwen3_5_moe", dtype="F16", odd=True),
]


def sweep(variants):
    """All variants on all meshes; a part of them covers every variant and mesh, and every rank without experts."""
    return [
        pytest.param(
            variant,
            mesh,
            id=f"{variant}-on-{mesh}",
            marks=[] if (n + m) % len(MESHES) == 0 or variant.experts < mesh.ep else pytest.mark.long,
        )
        for n, variant in enumerate(variants)
        for m, mesh in enumerate(MESHES)
    ]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Writes each variant once: variant -> (folder, its tensors, what must be known of its model)."""
    made = {}

    def write(variant):
        if variant not in made:
            folder = variant.write(tmp_path_factory.mktemp("ckpt") / "ckpt")
            made[variant] = folder, reference.read_folder(folder), reference.Model.of(folder)
        return made[variant]

    return write


def assert_conforms(written, variant, mesh, folder):
    ckpt, tensors, model = written(variant)
    options = ["--ep", mesh.ep, "--ep-shard", mesh.ep_shard]
    shards, store, report = folder / "shards", folder / "s.h5", folder / "report.json"
    run_ok("load", ckpt, *options, "--save-shards", shards, "--store", store, "--report", report, ranks=mesh.ranks)
    assert_shards(shards, tensors, mesh, model)
    assert_report(json.loads(report.read_text()), tensors, mesh, model)
    last = mesh.ranks - 1
    run_ok("load", ckpt, *options, "--rank", last, "--ranks", mesh.ranks, "--save-shards", folder / "alone")
    assert_rank(shard_path(folder / "alone", last), tensors, mesh, last, model)
    for source in (shards, store):
        out = folder / f"from-{source.name}"
        run_ok("to-hf", source, out)
        assert not checkpoints.folder_differences(ckpt, out)


def assert_report(report, tensors, mesh, model):
    assert (report["ok"], report["family"], report["mesh"]) == (True, model.family, mesh.sizes)
    assert (report["verify"]["level"], report["verify"]["mismatches"]) == ("full", [])
    assert report["verify"]["tensors"] == len(reference.global_state(tensors, model))
    for entry in report["rank"]:
        held = reference.local_state(tensors, mesh, entry["rank"], model)
        assert entry["bytes_owned"] == sum(value.nbytes for value in held.values())
        assert entry["bytes_wanted"] == reference.bytes_wanted(tensors, mesh, entry["rank"], model)
        assert entry["bytes_read"] >= entry["bytes_wanted"]


# rules 1, 2, 5a, 9, 13, 14, 19-22, 61
@pytest.mark.parametrize(("variant", "mesh"), sweep(QWEN3_VL))
def test_every_rank_of_qwen3_vl_moe_holds_its_slice(written, variant, mesh, tmp_path):
    assert_conforms(written, variant, mesh, tmp_path)


# rules 1, 3, 5, 5a, 9, 13, 14, 32-36, 38-42, 45, 53-55, 57
@pytest.mark.parametrize(("variant", "mesh"), sweep(QWEN3_5))
def test_every_rank_of_qwen3_5_moe_holds_its_slice(written, variant, mesh, tmp_path):
    assert_conforms(written, variant, mesh, tmp_path)


@pytest.mark.parametrize("mesh", [Mesh(1, 4, 2), Mesh(1, 3), Mesh(2, 2)], ids=str)
@pytest.mark.parametrize("form", ["--expert-layout hub", "--expert-layout transformers", "--mtp-experts split"])
def test_checkpoints_with_all_names_of_a_real_architecture(form, mesh, tmp_path):  # rules 2, 3, 5, 5a, 22, 38
    family = "qwen3_5_moe" if "mtp" in form else "qwen3_vl_moe"
    ckpt, ep = tmp_path / "ckpt", ["--ep", mesh.ep, "--ep-shard", mesh.ep_shard]
    run_ok("synth", ckpt, "--family", family, "--preset", "tiny", *form.split(), "--layers", 4)
    run_ok("load", ckpt, *ep, "--save-shards", tmp_path / "shards", ranks=mesh.ranks)
    assert_shards(tmp_path / "shards", reference.read_folder(ckpt), mesh, reference.Model.of(ckpt))
