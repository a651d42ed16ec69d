"""`rankslice.inspect` and `rankslice.plan`: what the program prints."""

import json
import os
import pickle
import shutil
import subprocess
from pathlib import Path

import pytest

import rankslice


def printed(*arguments):
    command = [os.environ["SYSTEM_TEST_PROGRAM"], *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def fp8(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fp8") / "fp8"
    printed("synth", folder, "--family", "qwen3_moe", "--preset", "tiny", "--quantization", "fp8", "--quiet")
    return str(folder)


def assert_same(told, *arguments):
    assert told == json.loads(printed(*arguments, "--json"))
    assert f"{told}\n" == printed(*arguments)


INSPECTIONS = [
    ({}, []),
    ({"dtype": "float32"}, ["--dtype", "float32"]),
    ({"include": r".*\.experts\."}, ["--include", r".*\.experts\."]),
    ({"exclude": "mtp"}, ["--exclude", "mtp"]),
    ({"family": "qwen3_5_moe"}, ["--family", "qwen3_5_moe"]),
]


@pytest.mark.parametrize("arguments, options", INSPECTIONS, ids=str)
def test_inspect_gives_what_the_program_prints(tiny, arguments, options):
    assert_same(rankslice.inspect(tiny, **arguments), "inspect", tiny, *options)


@pytest.mark.parametrize("dtype", [None, "float16"])
def test_inspect_says_of_quantised_weights_what_the_program_says(fp8, dtype):
    options = ["--dtype", dtype] if dtype else []
    assert_same(rankslice.inspect(fp8, dtype=dtype), "inspect", fp8, *options)


def test_an_opened_checkpoint_is_inspected_as_it_was_opened(fp8):
    opened = rankslice.open(fp8, dtype="float16", include="model.layers.0")
    options = ["--dtype", "float16", "--include", "model.layers.0"]
    assert_same(rankslice.inspect(opened), "inspect", fp8, *options)


PLANS = [
    ({"ranks": 1}, ["--ranks", 1]),
    ({"ranks": 4}, ["--ranks", 4]),
    ({"ranks": 8, "ep": 2, "ep_shard": 2}, ["--ranks", 8, "--ep", 2, "--ep-shard", 2]),
    ({"ranks": 4, "ep": 2, "rank": 3}, ["--ranks", 4, "--ep", 2, "--rank", 3]),
    ({"ranks": 2, "dtype": "float32"}, ["--ranks", 2, "--dtype", "float32"]),
    ({"ranks": 2, "exclude": "mtp"}, ["--ranks", 2, "--exclude", "mtp"]),
    ({"ranks": 4, "quantization": True}, ["--ranks", 4, "--quantization"]),
    (
        {"ranks": 4, "rank": 1, "quantization": True, "include": r".*\.experts\.2\."},
        ["--ranks", 4, "--rank", 1, "--quantization", "--include", r".*\.experts\.2\."],
    ),
]


@pytest.mark.parametrize("arguments, options", PLANS, ids=str)
def test_plan_gives_what_the_program_prints(tiny, arguments, options):
    assert_same(rankslice.plan(tiny, **arguments), "plan", tiny, *options)


def test_plan_knows_of_block_scales(fp8):
    assert_same(rankslice.plan(fp8, ranks=2, rank=1), "plan", fp8, "--ranks", 2, "--rank", 1)


def test_facts_go_to_other_processes_with_their_text(tiny):
    told = rankslice.inspect(tiny)
    other = pickle.loads(pickle.dumps(told))
    assert (other, str(other)) == (told, str(told))


def test_a_broken_checkpoint_raises_what_the_program_says(tiny, tmp_path):
    broken = shutil.copytree(tiny, tmp_path / "broken")
    first = sorted(Path(broken).glob("*.safetensors"))[0]
    first.write_bytes(first.read_bytes()[:-8])
    command = [os.environ["SYSTEM_TEST_PROGRAM"], "inspect", str(broken)]
    failed = subprocess.run(command, capture_output=True, text=True)
    with pytest.raises(rankslice.Error) as raised:
        rankslice.inspect(broken)
    assert raised.value.code == failed.returncode
    assert raised.value.file == str(first)
    assert str(raised.value) in failed.stderr


@pytest.mark.parametrize("arguments", [{"ranks": 4, "ep": 3}, {"ranks": 0}, {"ranks": 2, "rank": 2}], ids=str)
def test_plan_refuses_ranks_that_cannot_be(tiny, arguments):
    with pytest.raises(rankslice.Error, match="rank"):
        rankslice.plan(tiny, **arguments)
