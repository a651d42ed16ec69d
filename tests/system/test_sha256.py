"""`verify --sha256`: whole files against SHA256SUMS, and against the names of blobs in a Hub cache."""

import hashlib
import json
import os
import re
import signal
import subprocess

import pytest

import checkpoints
import reference
from program import OnRank, Run, expect, run, run_ok

LIST = "SHA256SUMS"


def files_of(ckpt):
    return sorted(path.relative_to(ckpt) for path in ckpt.rglob("*") if path.is_file())


def sha256sum(ckpt, *names, options=()):
    """What the program of GNU coreutils prints."""
    names = [str(name) for name in names or files_of(ckpt)]
    return subprocess.run(["sha256sum", *options, *names], cwd=ckpt, capture_output=True, check=True).stdout


def git_sha1(data):
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def hub_cache(ckpt, root):
    """The same files as huggingface_hub keeps them: large ones by their SHA-256, others by git's SHA-1."""
    repo = root / "models--qwen--tiny"
    snapshot, blobs = repo / "snapshots" / ("c0ffee" * 7)[:40], repo / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for name in files_of(ckpt):
        data = (ckpt / name).read_bytes()
        is_large = name.suffix == ".safetensors"
        blob = blobs / (hashlib.sha256(data).hexdigest() if is_large else git_sha1(data))
        blob.write_bytes(data)
        link = snapshot / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return snapshot


def flip_last_bit(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.resolve().write_bytes(data)


def sha256(*arguments, **how):
    return run_ok("verify", *arguments, "--json", **how).json["verify"]["sha256"]


@pytest.fixture
def ckpt(mini, tmp_path):
    return checkpoints.copy(mini, tmp_path / "ckpt")


@pytest.fixture
def listed(ckpt):
    (ckpt / LIST).write_bytes(sha256sum(ckpt))
    return ckpt


@pytest.fixture
def snapshot(mini, tmp_path):
    return hub_cache(mini, tmp_path / "hub")


# Files that are as they should be -----------------------------------------------------------------------------------


@pytest.mark.parametrize("ranks", [None, 1, 2, 3, 4])
def test_the_ranks_share_the_files_of_a_list(listed, mini, ranks):
    found = sha256(listed, "--sha256", ranks=ranks)
    assert found == {
        "source": str(listed / LIST),
        "files": len(files_of(mini)),
        "bytes": sum((mini / name).stat().st_size for name in files_of(mini)),
        "mismatches": [],
        "not_listed": [],
    }


@pytest.mark.parametrize("ranks", [None, 2, 4])
def test_the_blobs_of_a_cache_tell_their_sums(snapshot, mini, ranks):
    found = sha256(snapshot, "--sha256", ranks=ranks)
    assert (found["source"], found["files"], found["not_listed"]) == ("blobs", len(files_of(mini)), [])


def test_each_file_is_read_by_one_rank_from_its_first_byte_to_its_last(listed, mini, tmp_path, strace):
    on_rank = OnRank(tmp_path / "ranks", traced="all", strace="-e trace=pread64")
    run_ok("verify", listed, "--sha256", "--verify", "off", ranks=3, on_rank=on_rank)
    readers = {}
    for rank in range(3):
        text = "".join(path.read_text() for path in on_rank.traces(rank))
        for path in map(listed.__truediv__, files_of(mini)):
            if f'<{path}>, ""..., {path.stat().st_size}, 0) = {path.stat().st_size}' in text:
                readers.setdefault(path.name, set()).add(rank)
    large = [path.name for path in reference.shard_files(mini)]
    assert all(len(readers[name]) == 1 for name in large), readers
    assert {rank for name in large for rank in readers[name]} == {0, 1, 2}


def test_a_list_may_have_any_name_and_place(ckpt, tmp_path):
    other = tmp_path / "list"
    other.write_bytes(sha256sum(ckpt))
    assert sha256(ckpt, "--sha256", other, ranks=2)["source"] == str(other)
    expect(66, "verify", ckpt, "--sha256", tmp_path / "none", says=tmp_path / "none", ranks=2)


def test_a_list_as_coreutils_write_it(ckpt, tmp_path):
    """Binary marks, escaped names, names that begin with ./, capitals, comments."""
    names = files_of(ckpt)
    (ckpt / "sub").mkdir()
    (ckpt / "sub/a\\b\nc\r").write_text("x")
    escaped = sha256sum(ckpt, "sub/a\\b\nc\r")
    assert escaped.startswith(b"\\")
    text = b"# a comment\n\n" + escaped + sha256sum(ckpt, *names[:2], options=["--binary"])
    text += b"".join(
        hashlib.sha256((ckpt / name).read_bytes()).hexdigest().upper().encode() + b"  ./" + bytes(name) + b"\n"
        for name in names[2:]
    )
    (tmp_path / "list").write_bytes(text)
    assert sha256(ckpt, "--sha256", tmp_path / "list")["files"] == len(names) + 1


def test_it_goes_with_a_manifest_in_one_command(listed, tmp_path):
    result = run_ok("verify", listed, "--sha256", "--write-manifest", "--json", ranks=2).json
    assert result["verify"]["sha256"]["mismatches"] == []
    assert result["manifest"]["written"]
    assert sha256(listed, "--sha256", "--verify", "off")["not_listed"] == []  # the manifest is nobody's but ours


def test_a_dry_run_reads_nothing(listed):
    flip_last_bit(reference.shard_files(listed)[0])
    run_ok("verify", listed, "--sha256", "--dry-run")


# Files that are not -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize("which", ["model", "config.json", "tokenizer.json"])
def test_a_changed_file_is_named_with_both_sums(listed, tmp_path, which, ranks):
    path = reference.shard_files(listed)[1] if which == "model" else listed / which
    before = hashlib.sha256(path.read_bytes()).hexdigest()
    path.write_bytes(
        path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1]) if which == "model" else path.read_bytes() + b"\n"
    )
    after = hashlib.sha256(path.read_bytes()).hexdigest()
    out = tmp_path / "m.json"
    says = [f"{path.name}: SHA-256 expected {before}, found {after}"]
    arguments = ["verify", listed, "--sha256", "--write-manifest", out, "--json"]
    found = expect(3, *arguments, says=says, ranks=ranks).json["verify"]["sha256"]["mismatches"]
    assert [(item["file"], item["expected"], item["found"]) for item in found] == [(path.name, before, after)]
    assert 0 <= found[0]["rank"] < ranks
    assert not out.exists()


@pytest.mark.parametrize("suffix", [".safetensors", ".json"])
def test_a_changed_blob_is_named_with_both_sums(snapshot, suffix):
    path = next(path for path in sorted(snapshot.iterdir()) if path.suffix == suffix and "index" not in path.name)
    data = path.read_bytes()
    changed = data[:-1] + bytes([data[-1] ^ 1]) if suffix == ".safetensors" else data + b" "
    path.resolve().write_bytes(changed)
    after = hashlib.sha256(changed).hexdigest() if suffix == ".safetensors" else git_sha1(changed)
    kind = "SHA-256" if suffix == ".safetensors" else "SHA-1 of the git blob"
    before = os.path.basename(os.readlink(path))
    expect(3, "verify", snapshot, "--sha256", says=f"{path.name}: {kind} expected {before}, found {after}", ranks=2)


def test_a_listed_file_that_is_missing_is_missing_input(listed, snapshot):
    (listed / "tokenizer.json").unlink()
    expect(66, "verify", listed, "--sha256", says=[listed / "tokenizer.json", LIST], ranks=2)
    (snapshot / "tokenizer.json").resolve().unlink()
    expect(66, "verify", snapshot, "--sha256", says="tokenizer.json", ranks=2)


def test_a_file_that_is_not_listed_is_said(ckpt, snapshot, tmp_path):
    shards = [path.name for path in reference.shard_files(ckpt)]
    (ckpt / LIST).write_bytes(sha256sum(ckpt, *shards))
    says = ["not checked", "config.json"]
    result = expect(0, "verify", ckpt, "--sha256", "--json", says=says, ranks=2)
    assert result.json["verify"]["sha256"]["not_listed"] == [
        str(name) for name in files_of(ckpt) if str(name) not in [*shards, LIST]
    ]
    (snapshot / "own.txt").write_text("mine")
    result = expect(0, "verify", snapshot, "--sha256", "--json", says=["not checked", "own.txt"])
    assert result.json["verify"]["sha256"]["not_listed"] == ["own.txt"]


@pytest.mark.parametrize("which", ["listed", "snapshot"])
def test_a_link_to_a_folder_is_said_and_not_followed(which, request, tmp_path):
    folder = request.getfixturevalue(which)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "weights.bin").write_bytes(b"unknown")
    for name in ["linked", ".hidden"]:
        (folder / name).symlink_to(elsewhere)
    result = expect(0, "verify", folder, "--sha256", "--json", says=["1 file not checked", "linked/"])
    assert result.json["verify"]["sha256"]["not_listed"] == ["linked/"]


def test_without_any_list_there_is_advice(mini, mini_store):
    expect(66, "verify", mini, "--sha256", says=[LIST, "--sha256 FILE", "Hub cache"], ranks=2)
    expect(2, "verify", mini_store, "--sha256", says="--sha256")


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "found none"),
        ("hello\n", "line 1"),
        ("0" * 63 + "  a\n", "line 1"),
        ("0" * 128 + "  a\n", "line 1"),
        ("0" * 64 + " a\n", "line 1"),
        ("# x\n" + "0" * 64 + "  /etc/passwd\n", "line 2"),
        ("0" * 64 + "  ../a\n", "../a"),
        ("\\" + "0" * 64 + "  a\\x\n", "line 1"),
        ("0" * 64 + "  a\n" + "1" * 64 + "  ./a\n", "twice"),
    ],
)
def test_what_is_no_list_is_refused_by_its_line(ckpt, text, word):
    (ckpt / LIST).write_text(text)
    expect(65, "verify", ckpt, "--sha256", says=[ckpt / LIST, word])


# Faults -------------------------------------------------------------------------------------------------------------


def test_a_read_that_fails_on_one_rank_is_everyones(listed, tmp_path, strace):
    paths = " ".join(f"-P {path}" for path in reference.shard_files(listed))
    fault = f"-e trace=pread64 -e inject=pread64:error=EIO {paths}"
    on_rank = OnRank(tmp_path / "ranks", traced="1", strace=fault, codes=True)
    result = run("verify", listed, "--sha256", "--verify", "off", ranks=3, on_rank=on_rank)
    assert result.rank_codes == dict.fromkeys(range(3), 74), result.stderr
    assert re.search(r"rank 1: .*\.safetensors.*Input/output error", result.stderr), result.stderr


def test_a_signal_ends_it(listed, tmp_path, strace):
    shards = reference.shard_files(listed)
    slow = f"-e trace=pread64 -e inject=pread64:delay_enter=300ms {' '.join(f'-P {path}' for path in shards)}"
    largest = max(path.stat().st_size for path in shards)  # is read first
    on_rank = OnRank(tmp_path / "ranks", traced="0", strace=slow)
    with Run("verify", listed, "--sha256", "--verify", "off", on_rank=on_rank) as job:
        on_rank.wait_for_call(0, rf", {largest}, 0\)")
        os.kill(on_rank.pid(0), signal.SIGTERM)
        result = job.finish()
    assert result.code == 143, result.stderr


def test_progress_is_shown(listed):
    assert "sha256" in run_ok("verify", listed, "--sha256", "--verify", "off", "--progress", "on").stderr
    assert json.loads(run_ok("verify", listed, "--sha256", "--json").stdout)["seconds"]["sha256"] >= 0
