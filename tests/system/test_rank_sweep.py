"""Every layout of every family, on every mesh, in every dtype: what a rank holds is, bit for bit, what a second
implementation of the rules says. One rank at a time, without MPI, so that the full product takes minutes."""

import functools
import itertools

import h5py
import pytest

import reference
from program import run_ok
from reference import Mesh
from shards import Expected, shard_path
from variants import Variant

MESHES = [Mesh(1, ep, ep_shard) for ep_shard in (1, 2) for ep in (1, 2, 3, 4)]
DTYPES = list(reference.DTYPES)
# Matrices of two by two blocks of 128, none of which is full in both directions when ep_shard halves them.
BLOCKS = {"hidden": 160, "width": 136, "layers": 2, "experts": 5}
SPLIT = {"split_decoder": True, "split_mtp": True}

LAYOUTS = [
    Variant("qwen3_vl_moe", experts=7, odd=True),
    Variant("qwen3_vl_moe", layout="transformers", experts=3, dtype="F32"),
    Variant("qwen3_vl_moe", fp8="decoder", **BLOCKS),
    Variant("qwen3_vl_moe", layout="transformers", fp8="decoder dense", scale_names=1, odd=True, **BLOCKS),
    Variant("qwen3_5_moe", experts=7),
    Variant("qwen3_5_moe", dtype="F16", spelling=""),
    Variant("qwen3_5_moe", dtype="F32", split_mtp=True, experts=3, odd=True),
    Variant("qwen3_5_moe", **SPLIT, experts=11, files=4),
    Variant("qwen3_5_moe", dtype="I8", split_decoder=True),
    Variant("qwen3_5_moe", text=True, experts=5),
    Variant("qwen3_5_moe", text=True, **SPLIT, index=False),
    Variant("qwen3_5_moe", **SPLIT, fp8="decoder mtp dense", **BLOCKS),
    Variant("qwen3_5_moe", **SPLIT, fp8="decoder mtp dense", odd=True, hidden=288, width=130, experts=3, layers=1),
    Variant("qwen3_5_moe", split_decoder=True, fp8="decoder", nan=True, files=1, **BLOCKS),
    Variant("qwen3_5_moe", **SPLIT, fp8="decoder dense", scales="F32", trained="float32", **BLOCKS),
    Variant("qwen3_5_moe", fp8="decoder mtp dense", scale_names=1, trained="float16", **BLOCKS),
    Variant("qwen3_5_moe", fp8="dense", scales="F16", odd=True),
    Variant("qwen3_5_moe", text=True, **SPLIT, fp8="decoder mtp dense", spelling="", **BLOCKS),
    Variant("qwen3_moe", split_decoder=True, experts=11),
    Variant("qwen3_moe", experts=7, odd=True),
    Variant("qwen3_moe", split_decoder=True, fp8="decoder dense", **BLOCKS),
    Variant("qwen3_next", **SPLIT, experts=7, index=False),
    Variant("qwen3_next", experts=3),
    Variant("qwen3_next", **SPLIT, fp8="decoder mtp dense", scales="F32", odd=True, **BLOCKS),
]


def in_sample(n, mesh, dtype):
    """Of each layout one run for each dtype and `ep`, half of them with `ep_shard`."""
    k = (DTYPES.index(dtype) - n) % len(DTYPES)
    return (mesh.ep, mesh.ep_shard) == (k + 1, 1 + (k + n // len(DTYPES)) % 2)


PRODUCT = list(itertools.product(range(len(LAYOUTS)), MESHES, DTYPES))
SAMPLE = [point for point in PRODUCT if in_sample(*point)]


def test_the_sample_meets_every_pair_of_layout_mesh_and_dtype():
    factors = [(LAYOUTS[n], mesh.ep, mesh.ep_shard, dtype) for n, mesh, dtype in SAMPLE]
    levels = [LAYOUTS, (1, 2, 3, 4), (1, 2), DTYPES]
    for a, b in itertools.combinations(range(len(levels)), 2):
        assert {(point[a], point[b]) for point in factors} == set(itertools.product(levels[a], levels[b]))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Writes each layout once: variant -> (folder, its tensors)."""

    @functools.lru_cache(maxsize=2)
    def write(variant):
        folder = variant.write(tmp_path_factory.mktemp("ckpt") / "ckpt")
        return folder, reference.read_folder(folder)

    return write


@pytest.fixture(scope="module")
def expected(written):
    @functools.lru_cache(maxsize=4)
    def of(variant, dtype):
        folder, tensors = written(variant)
        return Expected.of(tensors, reference.Model.of(folder, dtype=dtype))

    return of


def load_rank(ckpt, mesh, rank, out, *options):
    """The shard that one rank writes, and its report."""
    place = ["--rank", rank, "--ranks", mesh.ranks, "--ep", mesh.ep, "--ep-shard", mesh.ep_shard]
    report = run_ok("load", ckpt, *place, *options, "--save-shards", out, "--json").json
    return shard_path(out, rank), report


# rules 1-5a, 9, 14, 19-23, 32-43, 53-55, 58-61
@pytest.mark.parametrize(
    ("n", "mesh", "dtype"),
    [
        pytest.param(*point, id=f"{LAYOUTS[point[0]]}-on-{point[1]}-{point[2]}", marks=marks)
        for point in PRODUCT
        for marks in [[] if in_sample(*point) else pytest.mark.long]
    ],
)
def test_every_rank_holds_what_the_reference_says(written, expected, n, mesh, dtype, tmp_path):
    ckpt, tensors = written(LAYOUTS[n])
    model = reference.Model.of(ckpt, dtype=dtype)
    for rank in range(mesh.ranks):
        shard, report = load_rank(ckpt, mesh, rank, tmp_path / str(rank), "--dtype", dtype)
        expected(LAYOUTS[n], dtype).assert_rank(shard, mesh, rank)
        (of_rank,) = report["rank"]
        assert report["family"] == model.family + "_text" * model.text_only
        assert of_rank["bytes_wanted"] == reference.bytes_wanted(tensors, mesh, rank, model)


# What was converted, on its way on ----------------------------------------------------------------------------------

QUANTISED = [layout for layout in LAYOUTS if layout.fp8 and not layout.nan]


# Dtypes whose NaNs have but one way to be written, with meshes to load on.
STORED = [("preserve", 1, 1), ("float32", 1, 1), ("float32", 1, 2), ("preserve", 2, 2), ("preserve", 1, 4)]


def digests_of(group):
    return {key: [int(value) for value in dataset[...].ravel()] for key, dataset in group.items()}


# rules 55, 58-60, 62: where `ep_shard` cuts blocks, each scale counts once
@pytest.mark.parametrize(
    ("layout", "dtype", "ep", "ep_shard"),
    [
        pytest.param(layout, *stored, id=f"{layout}-{'-'.join(map(str, stored))}")
        for layout, stored in itertools.product(QUANTISED, STORED)
        if layout.width % stored[-1] == 0
    ],
)
def test_a_store_has_digests_of_codes_and_scales_and_of_the_values_they_become(
    written, expected, layout, dtype, ep, ep_shard, tmp_path
):
    ckpt, tensors = written(layout)
    store, mesh = tmp_path / "s.h5", Mesh(1, 2, 2)
    options = ["--dtype", dtype, "--ep", ep, "--ep-shard", ep_shard]
    run_ok("load", ckpt, *options, "--store", store, ranks=ep * ep_shard)
    with h5py.File(store) as file:
        assert digests_of(file["digest/source"]) == {key: reference.digest(value) for key, value in tensors.items()}
        model = reference.Model.of(ckpt, dtype=dtype)
        assert digests_of(file["digest/stored"]) == reference.stored_digests(tensors, model)
    for rank in range(mesh.ranks):
        shard, _ = load_rank(store, mesh, rank, tmp_path / str(rank))
        expected(layout, dtype).assert_rank(shard, mesh, rank)


@pytest.mark.parametrize("dtype", ["preserve", "float16"])
@pytest.mark.parametrize("layout", QUANTISED[::3], ids=str)
def test_shards_of_converted_values_are_loaded_on_another_mesh(written, expected, layout, dtype, tmp_path):
    ckpt, _ = written(layout)
    run_ok("load", ckpt, "--dtype", dtype, "--ep-shard", 2, "--ep", 1, "--save-shards", tmp_path / "first", ranks=2)
    mesh = Mesh(1, 3)
    for rank in range(mesh.ranks):
        shard, _ = load_rank(tmp_path / "first", mesh, rank, tmp_path / str(rank))
        expected(layout, dtype).assert_rank(shard, mesh, rank)


@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if layout.fp8 == "decoder mtp dense"][:2], ids=str)
def test_rule43_the_language_model_of_a_quantised_checkpoint(written, layout, tmp_path):
    ckpt, tensors = written(layout)
    mesh = Mesh(1, 2, 2)
    for rank in range(mesh.ranks):
        shard, _ = load_rank(ckpt, mesh, rank, tmp_path / str(rank), "--text-only")
        Expected.of(tensors, reference.Model.of(ckpt, text_only=True)).assert_rank(shard, mesh, rank)
