"""`verify --against` where the two sides have converted the same checkpoint differently, or know less of it."""

import pytest

import checkpoints
import reference
from program import expect, run_ok
from shards import shard_path
from variants import Variant

FP8 = Variant("qwen3_5_moe", layers=2, fp8="decoder dense", scales="F32")


@pytest.fixture(scope="module")
def fp8(tmp_path_factory):
    return FP8.write(tmp_path_factory.mktemp("fp8") / "ckpt")


@pytest.mark.parametrize("level", ["off", "coverage"])
def test_levels_that_compare_no_values_refuse_a_reference(fp8, level):
    expect(2, "verify", fp8, "--against", fp8, "--verify", level, says=[f"--against {fp8}", level], ranks=2)


def test_of_a_folder_with_a_manifest_the_bytes_are_compared(fp8, tmp_path):
    rotten = checkpoints.copy(fp8, tmp_path / "rotten")
    run_ok("verify", rotten, "--write-manifest")
    key = "lm_head.weight"
    file, begin, _ = reference.extents(rotten)[key]
    data = bytearray((rotten / file).read_bytes())
    data[begin] ^= 1
    (rotten / file).write_bytes(data)
    says = [f"{key}: manifest of {rotten} digest", f"{key}: against digest"]
    expect(3, "verify", fp8, "--against", rotten, says=says, ranks=2)


def test_a_selection_of_a_store_without_codes_has_none_either(fp8, tmp_path):
    run_ok("load", fp8, "--verify", "off", "--store", tmp_path / "s1.h5")
    keys = ["--include", r"model\..*"]
    run_ok("load", tmp_path / "s1.h5", *keys, "--store", tmp_path / "s2.h5")
    run_ok("verify", fp8, *keys, "--against", tmp_path / "s2.h5", ranks=2)
    run_ok("verify", tmp_path / "s2.h5", "--against", fp8, *keys)


def verified(*args, **options):
    """What the report and people are told."""
    result = run_ok("verify", *args, "--json", **options)
    return result.json["verify"].get("codes"), "codes and scales not compared" in result.stderr


CASES = {"bf16": Variant("qwen3_5_moe", layers=2), "fp8": FP8}


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("which", CASES)
def test_of_other_dtypes_what_they_were_loaded_from_is_compared(which, dtype, tmp_path):
    source = CASES[which].write(tmp_path / "ckpt")
    run_ok("load", source, "--dtype", dtype, "--store", tmp_path / "cast.h5")
    run_ok("load", source, "--store", tmp_path / "as_is.h5")
    for a, b in [("ckpt", "cast.h5"), ("cast.h5", "ckpt"), ("as_is.h5", "cast.h5"), ("cast.h5", "as_is.h5")]:
        assert verified(tmp_path / a, "--against", tmp_path / b) == (None, False), (a, b)

    other = checkpoints.copy(source, tmp_path / "other")
    key = "lm_head.weight"
    file, begin, _ = reference.extents(other)[key]
    data = bytearray((other / file).read_bytes())
    data[begin] ^= 1
    (other / file).write_bytes(data)
    expect(3, "verify", other, "--against", tmp_path / "cast.h5", says=key)
    expect(3, "verify", tmp_path / "cast.h5", "--against", other, says=key)


def test_values_in_other_dtypes_whose_codes_nobody_knows_are_not_comparable(fp8, tmp_path):
    run_ok("load", fp8, "--dtype", "float16", "--verify", "off", "--store", tmp_path / "f16.h5")
    key = "model.language_model.layers.1.mlp.experts.down_proj"
    store = tmp_path / "f16.h5"
    expect(3, "verify", fp8, "--against", store, says=f"{key}: held as BF16 here, as F16 in {store}: not comparable")
    expect(3, "verify", store, "--against", fp8, says=f"{key}: held as F16 here, as BF16 in {fp8}: not comparable")


def test_it_is_said_when_only_values_were_compared(fp8, tmp_path):
    run_ok("load", fp8, "--store", tmp_path / "known.h5")
    run_ok("load", fp8, "--verify", "off", "--store", tmp_path / "unknown.h5")
    for a, b in [(fp8, tmp_path / "unknown.h5"), (tmp_path / "unknown.h5", fp8)]:
        assert verified(a, "--against", b, ranks=2) == ("not compared", True)
    for a, b in [(fp8, tmp_path / "known.h5"), (tmp_path / "known.h5", fp8)]:
        assert verified(a, "--against", b) == (None, False)


def test_a_shard_with_another_dtype_than_all_others_is_refused(fp8, tmp_path):
    run_ok("load", fp8, "--save-shards", tmp_path / "shards")
    fqn = "model.language_model.layers.1.self_attn.o_proj.weight"
    shard = shard_path(tmp_path / "shards", 0)

    def as_f16(entries):
        assert entries[fqn]["dtype"] == "BF16"
        return {**entries, fqn: {**entries[fqn], "dtype": "F16"}}

    checkpoints.edit_header(shard, as_f16)
    expect(65, "verify", tmp_path / "shards", says=[shard, fqn, "expected BF16", "found F16"])
