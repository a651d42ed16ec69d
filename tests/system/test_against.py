"""`verify --against` where the two sides have converted the same checkpoint differently, or know less of it."""

import pytest

from program import expect, run_ok
from variants import Variant

FP8 = Variant("qwen3_5_moe", layers=2, fp8="decoder dense", scales="F32")


@pytest.fixture(scope="module")
def fp8(tmp_path_factory):
    return FP8.write(tmp_path_factory.mktemp("fp8") / "ckpt")


def test_a_selection_of_a_store_without_codes_has_none_either(fp8, tmp_path):
    run_ok("load", fp8, "--verify", "off", "--store", tmp_path / "s1.h5")
    keys = ["--include", r"model\..*"]
    run_ok("load", tmp_path / "s1.h5", *keys, "--store", tmp_path / "s2.h5")
    run_ok("verify", fp8, *keys, "--against", tmp_path / "s2.h5", ranks=2)
    run_ok("verify", tmp_path / "s2.h5", "--against", fp8, *keys)
