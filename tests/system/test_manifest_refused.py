"""Manifests that do not match, or are broken, foreign or hostile."""

import pytest

import checkpoints
import reference
from manifests import EXPERTS, INDEX, NAME, copy_with_one, edit, reference_of
from program import expect


@pytest.fixture
def ckpt(mini, tmp_path):
    return copy_with_one(mini, tmp_path / "ckpt")


# When it does not match ---------------------------------------------------------------------------------------------


def longer(ckpt):
    path = reference.shard_files(ckpt)[0]
    checkpoints.edit_header(path, lambda header: header | {"__metadata__": {"note": "somebody was here"}})
    return path.name


def other_header(ckpt):
    """Of the same size."""
    path = reference.shard_files(ckpt)[0]
    header = reference.raw_header(path)
    data = path.read_bytes()
    path.write_bytes(header.replace(b", ", b" ,", 1) + data[len(header) :])
    return path.name


def other_index(ckpt):
    (ckpt / INDEX).write_bytes((ckpt / INDEX).read_bytes() + b"\n")
    return INDEX


def no_index(ckpt):
    (ckpt / INDEX).unlink()
    return INDEX


def one_file_more(ckpt):
    edit(ckpt, lambda manifest: manifest["files"].pop(reference.shard_files(ckpt)[1].name))
    return reference.shard_files(ckpt)[1].name


def one_file_less(ckpt):
    extra = {"model-9.safetensors": {"size": 8, "header": "0" * 32}}
    edit(ckpt, lambda manifest: manifest["files"].update(extra))
    return "model-9.safetensors"


@pytest.mark.parametrize("change", [longer, other_header, other_index, no_index, one_file_more, one_file_less])
def test_a_manifest_of_other_files_is_not_used_and_that_is_said(ckpt, change, tmp_path):
    file = change(ckpt)
    says = [ckpt / NAME, file]
    result = expect(0, "load", ckpt, "--json", says=[*says, "is not used"], ranks=2)
    assert reference_of(result) == "none"
    assert any(file in warning for warning in result.json["warnings"])
    other = tmp_path / "other.json"
    (ckpt / NAME).rename(other)
    expect(65, "load", ckpt, "--manifest", other, says=[other, "does not match", file], ranks=2)


# Broken, foreign and hostile ones -----------------------------------------------------------------------------------


def first_tensor(manifest):
    return manifest["tensors"][EXPERTS]


OTHER_VERSIONS = {"schema": "rankslice.manifest/2", "digest": "digest/2"}


@pytest.mark.parametrize("member", OTHER_VERSIONS)
def test_one_of_a_newer_program_does_not_stop_this_one(ckpt, member, tmp_path):
    version = OTHER_VERSIONS[member]
    edit(ckpt, lambda manifest: manifest.update({member: version}))
    result = expect(0, "load", ckpt, "--json", says=[ckpt / NAME, version, "is not used"], ranks=2)
    assert reference_of(result) == "none"
    expect(73, "verify", ckpt, "--write-manifest", says=[ckpt / NAME, version, "--overwrite"])
    other = tmp_path / "other.json"
    (ckpt / NAME).rename(other)
    expect(65, "load", ckpt, "--manifest", other, says=[other, version])


BROKEN = {
    "another schema": (lambda m: m.update(schema="rankslice.report/1"), "schema"),
    "another digest": (lambda m: m.update(digest="sha256"), "digest"),
    "no schema": (lambda m: m.pop("schema"), "schema"),
    "no tensors": (lambda m: m.pop("tensors"), "tensors"),
    "tensors as a list": (lambda m: m.update(tensors=[]), "tensors"),
    "a size below zero": (lambda m: next(iter(m["files"].values())).update(size=-1), "size"),
    "a hash too short": (lambda m: next(iter(m["files"].values())).update(header="12"), "header"),
    "a tensor too few": (lambda m: m["tensors"].pop(EXPERTS), EXPERTS),
    "a tensor too many": (lambda m: m["tensors"].update(x=first_tensor(m)), "x"),
    "another dtype": (lambda m: first_tensor(m).update(dtype="F16"), EXPERTS),
    "no dtype": (lambda m: first_tensor(m).update(dtype="BF17"), "BF17"),
    "another shape": (lambda m: first_tensor(m).update(shape=[6, 16, 24]), EXPERTS),
    "a huge shape": (lambda m: first_tensor(m).update(shape=[2**63, 2, 3]), EXPERTS),
    "a digest too few": (lambda m: first_tensor(m)["digests"].pop(), EXPERTS),
    "digests that do not add up": (lambda m: first_tensor(m)["digests"].__setitem__(0, "0" * 16), EXPERTS),
    "digests as numbers": (lambda m: first_tensor(m).update(digests=[1] * 7), EXPERTS),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_manifest_is_refused_by_name(ckpt, what, tmp_path):
    """Also one that nobody asked for: to leave it aside would be silent."""
    change, word = BROKEN[what]
    edit(ckpt, change)
    expect(65, "load", ckpt, says=[ckpt / NAME, word, "remove it, or let verify --write-manifest"], ranks=2)
    other = tmp_path / "other.json"
    (ckpt / NAME).rename(other)
    expect(65, "verify", ckpt, "--manifest", other, says=[other, word])


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "JSON"),
        ("[]", "object"),
        ('{"schema": "rankslice.report/1"}', "rankslice.report/1"),
        ('{"schema": "rankslice.manifest/1", "schema": "rankslice.manifest/1"}', "twice"),
        ('{"a":' * 2000 + "1" + "}" * 2000, "nested"),
        ("\0", "NUL"),
    ],
)
def test_what_is_no_manifest_is_refused_by_name(ckpt, text, word):
    (ckpt / NAME).write_text(text)
    expect(65, "load", ckpt, says=[ckpt / NAME, word])


def test_a_cut_off_manifest_is_refused_by_name(ckpt):
    text = (ckpt / NAME).read_bytes()
    (ckpt / NAME).write_bytes(text[: len(text) // 2])
    expect(65, "load", ckpt, says=ckpt / NAME)


def test_what_is_no_file_is_refused_by_name(mini, tmp_path):
    ckpt = checkpoints.copy(mini, tmp_path / "ckpt")
    (ckpt / NAME).mkdir()
    expect(65, "load", ckpt, says=ckpt / NAME)
    (ckpt / NAME).rmdir()
    (ckpt / NAME).symlink_to("nowhere")
    expect(66, "load", ckpt, says=ckpt / NAME)
    (ckpt / NAME).unlink()
    with (ckpt / NAME).open("wb") as huge:
        huge.truncate(2**29)
    expect(65, "load", ckpt, says=ckpt / NAME)
