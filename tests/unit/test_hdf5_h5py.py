"""A native store as people see it who open it with h5py."""

import os
import subprocess

import h5py
import numpy
import pytest


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("store") / "example.h5"
    subprocess.run([os.environ["EXAMPLE_STORE_PROGRAM"], path], check=True)
    with h5py.File(path) as file:
        yield file


def test_root_attributes_say_what_it_is(store):
    assert store.attrs["rankslice_format"] == b"native/1"
    assert store.attrs["family"] == b"qwen3_5_moe"
    assert len(store.attrs["complete"]) == 32


def test_bf16_reads_as_numbers(store):
    dataset = store["state_dict/experts.down_projs"]
    bits = numpy.array([[0x3F80, 0xC000, 0x3E20], [0x7F80, 0x0001, 0x8000]], dtype=numpy.uint32)
    expected = (bits << 16).view(numpy.float32)  # bf16 is the upper half of a float32
    found = dataset.astype(numpy.float32)[...]
    assert dataset.shape == (2, 3)
    assert numpy.array_equal(found.view(numpy.uint32), expected.view(numpy.uint32))
    assert dataset[0, 1] == -2.0


def test_other_numbers_have_their_own_types(store):
    tensors = store["state_dict"]
    assert tensors["half"].dtype == numpy.float16
    assert tensors["half"][...].tolist() == [1.5, -65504.0]
    assert tensors["odd%2F100%25"].dtype == numpy.dtype("<f4")
    assert numpy.array_equal(tensors["odd%2F100%25"][...], numpy.array([0.1, -1e30], numpy.float32))
    assert tensors["steps"].shape == () and tensors["steps"].dtype == numpy.dtype("<i8")
    assert tensors["steps"][()] == -123456789012345


def test_every_tensor_names_its_dtype(store):
    found = {name: dataset.attrs["safetensors_dtype"].decode() for name, dataset in store["state_dict"].items()}
    assert found == {"experts.down_projs": "BF16", "half": "F16", "odd%2F100%25": "F32", "steps": "I64"}


def test_digests_and_source_are_there(store):
    assert store["digest/source/experts.down_proj"][...].tolist() == [5, 2, 2**64 - 1]
    assert list(store["digest/stored"]) == []
    header = store["source/files/model.safetensors"]
    assert header[...].tobytes() == b"\x07" * 4
    assert header.attrs["file_size"] == 99
    assert store["source/side_files/config.json"][...].tobytes() == b"{}"
    assert list(store["source/index"]) == []
