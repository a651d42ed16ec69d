"""Manifests: what they say, and what is found with one that is not found without."""

import json
import os
import shutil
import signal

import pytest

import checkpoints
import reference
from manifests import EXPERTS, INDEX, NAME, copy_with_one, reference_of, written
from program import OnRank, Run, expect, leftovers, run_ok
from variants import Variant

VARIANTS = {
    "qwen3_5": Variant("qwen3_5_moe"),
    "split": Variant("qwen3_5_moe", split_decoder=True, split_mtp=True, layers=2),
    "text": Variant("qwen3_5_moe", text=True, layers=2),
    "vl": Variant("qwen3_vl_moe"),
    "vl_transformers": Variant("qwen3_vl_moe", layout="transformers"),
    "qwen3": Variant("qwen3_moe"),
    "next": Variant("qwen3_next"),
    "one_file": Variant("qwen3_moe", files=1),
    "fp8": Variant("qwen3_5_moe", layers=2, fp8="decoder dense", scales="F32"),
    "fp8_split": Variant("qwen3_moe", fp8="decoder dense"),
}


def expected_tensors(ckpt):
    return {
        key: {
            "dtype": value.dtype,
            "shape": list(value.shape),
            "digests": [f"{number:016x}" for number in reference.digest(value)],
        }
        for key, value in reference.read_folder(ckpt).items()
    }


def flip_bit(ckpt, key, at=0):
    """One bit of the first file's data changes; nothing else of the file does."""
    file, begin, _ = reference.extents(ckpt)[key]
    data = bytearray((ckpt / file).read_bytes())
    data[begin + at] ^= 4
    (ckpt / file).write_bytes(data)
    return ckpt / file


@pytest.fixture
def ckpt(mini, tmp_path):
    return copy_with_one(mini, tmp_path / "ckpt")


# What it says -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", VARIANTS)
def test_it_has_what_the_reference_computes(which, tmp_path):
    ckpt = VARIANTS[which].write(tmp_path / "ckpt")
    manifest = written(ckpt, ranks=2)
    assert manifest["schema"] == "rankslice.manifest/1"
    assert manifest["digest"] == "digest/1"
    assert manifest["created_by"].startswith("rankslice ")
    assert manifest["tensors"] == expected_tensors(ckpt)
    assert {name: file["size"] for name, file in manifest["files"].items()} == {
        path.name: path.stat().st_size for path in reference.shard_files(ckpt)
    }
    has_index = (ckpt / INDEX).exists()
    assert (manifest["index"]["name"] if has_index else manifest["index"]) == (INDEX if has_index else None)


def test_its_bytes_are_the_same_whoever_writes_it(mini, tmp_path):
    texts = set()
    for ranks in (None, 1, 2, 3, 4):
        out = tmp_path / f"{ranks}.json"
        run_ok("verify", mini, "--write-manifest", out, ranks=ranks)
        texts.add(out.read_bytes())
    run_ok("verify", mini, "--dtype", "float16", "--write-manifest", tmp_path / "f16.json")
    assert texts == {(tmp_path / "f16.json").read_bytes()}


def test_the_report_says_where_it_is(mini, tmp_path):
    out = tmp_path / "m.json"
    result = run_ok("verify", mini, "--write-manifest", out, "--json")
    assert result.json["manifest"] == {"path": str(out), "written": True}
    assert "--write-manifest" not in result.stderr, "advice to do what is being done"


# What it is used for ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", VARIANTS)
def test_load_verify_and_to_hf_compare_with_it(which, tmp_path):
    ckpt = VARIANTS[which].write(tmp_path / "ckpt")
    written(ckpt)
    keys = ["--include", r"model\."]
    for arguments in (
        ["load", ckpt],
        ["load", ckpt, *keys],
        ["load", ckpt, "--dtype", "float32"],
        ["verify", ckpt],
        ["to-hf", ckpt, tmp_path / "out"],
        ["to-hf", ckpt, tmp_path / "f32", "--dtype", "float32"],
    ):
        assert reference_of(run_ok(*arguments, "--json", ranks=2)) == "manifest", arguments
    assert reference_of(run_ok("load", ckpt, "--rank", 1, "--ranks", 3, "--json")) == "manifest"
    if which in ("qwen3_5", "vl", "fp8"):
        assert reference_of(run_ok("load", ckpt, "--text-only", "--json", ranks=2)) == "manifest"


def test_it_is_no_part_of_the_checkpoint(ckpt, mini, tmp_path):
    """Not exported, not in a store, not in the fingerprint that shards remember their source by."""
    run_ok("to-hf", ckpt, tmp_path / "out")
    assert not (tmp_path / "out" / NAME).exists()
    run_ok("load", ckpt, "--store", tmp_path / "with.h5", "--save-shards", tmp_path / "shards")
    (ckpt / NAME).unlink()
    run_ok("load", ckpt, "--store", tmp_path / "without.h5")
    assert (tmp_path / "with.h5").read_bytes() == (tmp_path / "without.h5").read_bytes()
    run_ok("to-hf", tmp_path / "shards", tmp_path / "from_shards")
    assert sorted(os.listdir(tmp_path / "from_shards")) == sorted(os.listdir(mini))


def test_it_may_lie_elsewhere(mini, tmp_path):
    out = tmp_path / "elsewhere.json"
    run_ok("verify", mini, "--write-manifest", out)
    assert reference_of(run_ok("load", mini, "--manifest", out, "--json", ranks=2)) == "manifest"
    assert reference_of(run_ok("load", mini, "--json")) == "none"
    expect(66, "load", mini, "--manifest", tmp_path / "none.json", says=tmp_path / "none.json", ranks=2)


def test_inspect_tells_of_it(ckpt, mini, mini_store):
    for path, recorded in [(ckpt, "manifest"), (mini, None), (mini_store, "store")]:
        assert run_ok("inspect", path, "--json").json["digests"] == recorded
    (ckpt / NAME).write_text("{")
    result = expect(65, "inspect", ckpt, "--json", says=ckpt / NAME)
    assert result.json["family"] == "qwen3_5_moe"  # all else is still told


def test_stores_have_digests_of_their_own(ckpt, tmp_path):
    run_ok("load", ckpt, "--store", tmp_path / "s.h5", ranks=2)
    assert reference_of(run_ok("verify", tmp_path / "s.h5", "--json")) == "store"
    expect(2, "verify", tmp_path / "s.h5", "--manifest", ckpt / NAME, says="folders of safetensors files")
    assert reference_of(run_ok("verify", tmp_path / "s.h5", "--against", ckpt, "--json")) == "against"
    assert reference_of(run_ok("verify", ckpt, "--against", tmp_path / "s.h5", "--json")) == "against"


def test_a_store_that_was_made_without_verifying_does_not_borrow_its_digests(tmp_path):
    ckpt = VARIANTS["fp8"].write(tmp_path / "ckpt")
    run_ok("load", ckpt, "--verify", "off", "--store", tmp_path / "without.h5")
    written(ckpt)
    run_ok("load", ckpt, "--verify", "off", "--store", tmp_path / "with.h5")
    assert (tmp_path / "with.h5").read_bytes() == (tmp_path / "without.h5").read_bytes()


def test_values_that_a_manifest_does_not_know_are_read(tmp_path):
    """A store without codes can be compared by its values alone, which are not in a manifest."""
    ckpt = VARIANTS["fp8"].write(tmp_path / "ckpt")
    run_ok("load", ckpt, "--verify", "off", "--store", tmp_path / "s.h5")
    written(ckpt)
    for a, b in [(tmp_path / "s.h5", ckpt), (ckpt, tmp_path / "s.h5")]:
        result = run_ok("verify", a, "--against", b, "--json", ranks=2)
        assert result.json["verify"]["codes"] == "not compared"


@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize("which", ["fp8", "fp8_split"])
def test_what_is_copied_into_an_export_is_compared_with_it(which, ranks, tmp_path):
    """FP8 codes and their scales, which no values give back."""
    ckpt = VARIANTS[which].write(tmp_path / "ckpt")
    run_ok("load", ckpt, "--verify", "off", "--store", tmp_path / "s.h5")
    written(ckpt)
    source = ["--export-layout", "source"]
    for out, arguments in {
        "all": [ckpt],
        "some": [ckpt, "--include", r"model\."],
        "gathered": [ckpt, "--gather"],
        "reread": [ckpt, "--verify", "reread"],
        "stored": [tmp_path / "s.h5", "--source", ckpt],
    }.items():
        run_ok("to-hf", *arguments, tmp_path / out, *source, ranks=ranks)
        exported = reference.read_folder(tmp_path / out)
        kept = {key: value for key, value in reference.read_folder(ckpt).items() if key in exported}
        assert len(kept) == len(exported) and not reference.differences(kept, exported), out

    tensors = reference.read_folder(ckpt)
    scales = next(key for key in tensors if "scale" in key)
    weight = next(key for key, value in tensors.items() if value.dtype == "F8_E4M3")
    cases = [(scales, []), (weight, [])]
    if tensors[scales].dtype == "F32":  # whose lowest bits no value in BF16 shows
        cases.append((scales, [tmp_path / "s.h5", "--source"]))
    for key, arguments in cases:
        broken = checkpoints.copy(ckpt, tmp_path / "broken")
        flip_bit(broken, key)
        says = [key, f"manifest of {broken} digest"]
        expect(3, "to-hf", *arguments, broken, tmp_path / "no", *source, says=says, ranks=ranks)
        assert not (tmp_path / "no").exists()
        run_ok("to-hf", *arguments, broken, tmp_path / "off", *source, "--verify", "off", ranks=ranks)
        shutil.rmtree(broken)
        shutil.rmtree(tmp_path / "off")


# What is found with it ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ranks", [1, 3])
def test_a_flipped_bit_is_found_and_nothing_is_written(ckpt, tmp_path, ranks):
    value = reference.read_folder(ckpt)[EXPERTS]
    flip_bit(ckpt, EXPERTS, at=4 * value.nbytes // value.shape[0])
    says = [f"layer 2, expert 4 of {EXPERTS}: manifest digest"]
    expect(3, "load", ckpt, "--store", tmp_path / "s.h5", "--save-shards", tmp_path / "d", says=says, ranks=ranks)
    expect(3, "to-hf", ckpt, tmp_path / "out", says=says, ranks=ranks)
    expect(3, "verify", ckpt, says=says, ranks=ranks)
    assert sorted(os.listdir(tmp_path)) == ["ckpt"]
    run_ok("load", ckpt, "--verify", "off", "--store", tmp_path / "s.h5", ranks=ranks)


def test_a_flipped_bit_of_any_kind_of_tensor_is_found(tmp_path):
    ckpt = VARIANTS["fp8"].write(tmp_path / "ckpt")
    written(ckpt)
    tensors = reference.read_folder(ckpt)
    scales = next(key for key in tensors if "scale" in key)
    for key in (scales, EXPERTS.replace(".2.", ".1."), "lm_head.weight"):
        broken = checkpoints.copy(ckpt, tmp_path / "broken")
        flip_bit(broken, key)
        expect(3, "load", broken, says=[key, "manifest digest"], ranks=2)
        shutil.rmtree(broken)


def test_a_file_swapped_for_another_of_the_same_header_is_found(tmp_path):
    """Two checkpoints of one model have the same headers and sizes."""
    ours = VARIANTS["qwen3"].write(tmp_path / "ours")
    theirs = checkpoints.copy(ours, tmp_path / "theirs")
    path = reference.shard_files(ours)[1]
    header = len(reference.raw_header(path))
    data = path.read_bytes()
    (theirs / path.name).write_bytes(data[:header] + data[header:][::-1])
    written(ours)
    (ours / path.name).write_bytes((theirs / path.name).read_bytes())
    result = expect(3, "verify", ours, "--json", says="manifest digest", ranks=2)
    found = {mismatch["tensor"] for mismatch in result.json["verify"]["mismatches"]}
    assert found == set(reference.read_file(path))


def test_a_read_that_lies_is_found(ckpt, tmp_path, strace):
    """The system gives other bytes than are in the file: after the header, 8 bytes of a read are none of the disk's."""
    lie = "-e trace=pread64 -e inject=pread64:poke_exit=@arg2=deadbeefdeadbeef:when=3"
    path = ckpt / reference.extents(ckpt)[EXPERTS][0]
    on_rank = OnRank(tmp_path / "ranks", traced="0", strace=f"{lie} -P {path}")
    expect(3, "load", ckpt, "--store", tmp_path / "s.h5", says="manifest digest", on_rank=on_rank)
    assert not (tmp_path / "s.h5").exists()
    (ckpt / NAME).unlink()  # without it nobody can know
    on_rank = OnRank(tmp_path / "again", traced="0", strace=f"{lie} -P {path}")
    run_ok("load", ckpt, on_rank=on_rank)


# When it is written -------------------------------------------------------------------------------------------------


def test_nothing_is_written_when_a_reference_differs(mini, tmp_path):
    ckpt = checkpoints.copy(mini, tmp_path / "ckpt")
    flip_bit(ckpt, EXPERTS)
    expect(3, "verify", ckpt, "--against", mini, "--write-manifest", says=EXPERTS, ranks=2)
    assert not (ckpt / NAME).exists()


def test_one_that_holds_is_left_alone(ckpt):
    before = (ckpt / NAME).stat()
    result = run_ok("verify", ckpt, "--write-manifest", "--json", ranks=2)
    assert result.json["manifest"] == {"path": str(ckpt / NAME), "written": False}
    assert (ckpt / NAME).stat().st_mtime_ns == before.st_mtime_ns


def test_one_that_does_not_hold_is_replaced_only_when_asked(ckpt, mini):
    text = (ckpt / NAME).read_bytes()
    flip_bit(ckpt, EXPERTS)
    expect(3, "verify", ckpt, "--write-manifest", says=EXPERTS)
    assert (ckpt / NAME).read_bytes() == text
    run_ok("verify", ckpt, "--write-manifest", "--overwrite", ranks=2)
    assert json.loads((ckpt / NAME).read_text())["tensors"] == expected_tensors(ckpt)
    run_ok("verify", ckpt)


@pytest.mark.parametrize("text", ["{", "no manifest at all"])
def test_a_broken_one_is_replaced_only_when_asked(ckpt, text):
    (ckpt / NAME).write_text(text)
    expect(65, "verify", ckpt, "--write-manifest", says=ckpt / NAME)
    assert (ckpt / NAME).read_text() == text
    run_ok("verify", ckpt, "--write-manifest", "--overwrite")
    assert json.loads((ckpt / NAME).read_text())["tensors"] == expected_tensors(ckpt)


def test_one_of_other_files_is_replaced_only_when_asked(ckpt):
    checkpoints.edit_header(reference.shard_files(ckpt)[0], lambda header: header | {"__metadata__": {"a": "b"}})
    expect(73, "verify", ckpt, "--write-manifest", says=[ckpt / NAME, "--overwrite"], ranks=2)
    run_ok("verify", ckpt, "--write-manifest", "--overwrite", ranks=2)
    assert reference_of(run_ok("verify", ckpt, "--json")) == "manifest"


def test_it_replaces_nothing_else(mini, tmp_path):
    ckpt = checkpoints.copy(mini, tmp_path / "ckpt")
    there = tmp_path / "there"
    there.write_text("precious")
    expect(73, "verify", ckpt, "--write-manifest", there, says=there)
    for name in ("config.json", INDEX, "other.json"):
        expect(73, "verify", ckpt, "--write-manifest", ckpt / name, "--overwrite", says=NAME)
    assert there.read_text() == "precious"
    new = tmp_path / "new.json"
    expect(73, "verify", ckpt, "--write-manifest", new, "--report", new, "--overwrite", says="two outputs")
    assert sorted(os.listdir(ckpt)) == sorted(os.listdir(mini))


@pytest.mark.parametrize("where", [[], ["m.json"]])
def test_what_is_no_folder_of_safetensors_files_gets_none_and_is_not_read_for_it(mini_store, where, tmp_path):
    output = [tmp_path / name for name in where]
    result = expect(
        2, "verify", mini_store, "--write-manifest", *output, "--json", says=["--write-manifest", mini_store]
    )
    assert "verify" not in result.json["seconds"]
    expect(66, "verify", tmp_path / "none", "--write-manifest", *output, says=tmp_path / "none")


@pytest.mark.parametrize("level", ["off", "coverage"])
@pytest.mark.parametrize("command", ["load", "verify", "to-hf"])
def test_levels_that_do_not_compare_refuse_one_that_is_named(ckpt, command, level, tmp_path):
    output = [tmp_path / "out"] if command == "to-hf" else []
    says = [f"--manifest {ckpt / NAME}", level]
    expect(2, command, ckpt, *output, "--manifest", ckpt / NAME, "--verify", level, says=says)
    run_ok(command, ckpt, *output, "--verify", level)


@pytest.mark.parametrize(
    "options", [["--verify", "off"], ["--include", r"model\."], ["--exclude", "mtp"], ["--text-only"]]
)
def test_a_part_of_a_checkpoint_gets_none(mini, options, tmp_path):
    expect(2, "verify", mini, "--write-manifest", tmp_path / "m.json", *options, says="--write-manifest", ranks=2)
    assert not (tmp_path / "m.json").exists()


def test_a_dry_run_writes_none(mini, tmp_path):
    run_ok("verify", mini, "--write-manifest", tmp_path / "m.json", "--dry-run")
    assert not (tmp_path / "m.json").exists()


def test_a_signal_leaves_none(mini, tmp_path, strace):
    out = tmp_path / "m.json"
    slow = "-e trace=pread64 -e inject=pread64:delay_enter=100ms"
    paths = " ".join(f"-P {path.resolve()}" for path in reference.shard_files(mini))
    on_rank = OnRank(tmp_path / "ranks", traced="0", strace=f"{slow} {paths}")
    with Run("verify", mini, "--write-manifest", out, on_rank=on_rank) as job:
        on_rank.wait_for_call(0, r"pread64\(\d+<[^>]*\.safetensors>")
        os.kill(on_rank.pid(0), signal.SIGINT)
        result = job.finish()
    assert result.code == 130, result.stderr
    assert not out.exists()
    assert not leftovers(out)


@pytest.mark.parametrize("fault", ["write:error=ENOSPC", "fsync:error=EIO"])
def test_a_disk_that_fails_leaves_none(mini, tmp_path, strace, fault):
    call, _, what = fault.partition(":")
    call = {"write": "pwrite64", "fsync": "fsync,fdatasync"}[call]
    on_rank = OnRank(tmp_path / "ranks", traced="0", strace=f"-e trace={call} -e inject={call}:{what}")
    out = tmp_path / "m.json"
    expect(74, "verify", mini, "--write-manifest", out, says=out, ranks=2, on_rank=on_rank)
    assert not out.exists()
    assert not leftovers(out)
