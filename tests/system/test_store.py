"""The native store is an ordinary HDF5 file: h5py finds the documented things in it, with the right bits."""

import json

import h5py
import numpy as np
import pytest

import checkpoints
import program
import reference
from program import run_ok
from reference import Mesh


def escaped(name):
    """How a name is spelled in HDF5."""
    name = name.replace("%", "%25").replace("/", "%2F")
    return "%2E" if name == "." else name


def raw_bits(dataset, dtype):
    """The elements as they lie in the file, past HDF5: contiguous at the dataset's address."""
    bits = np.dtype(reference.BITS[dtype])
    count = int(np.prod(dataset.shape, dtype=np.uint64))
    offset = dataset.id.get_offset()
    if count == 0:
        return np.empty(dataset.shape, bits)
    assert offset is not None
    return np.fromfile(dataset.file.filename, bits, count, offset=offset).reshape(dataset.shape)


def text(value):
    return value.decode() if isinstance(value, bytes) else str(value)


def stored_state(file):
    found = {}
    for name, dataset in file["state_dict"].items():
        dtype = text(dataset.attrs["safetensors_dtype"])
        found[name] = reference.Tensor(dtype, raw_bits(dataset, dtype))
    return found


@pytest.fixture(scope="module")
def tiny_store(tiny, tmp_path_factory):
    path = tmp_path_factory.mktemp("store") / "tiny.h5"
    run_ok("load", tiny, "--store", path, ranks=4)
    return path


@pytest.fixture(scope="module")
def opened(tiny_store):
    with h5py.File(tiny_store, "r") as file:
        yield file


def test_the_root_says_what_it_is(opened):
    assert text(opened.attrs["rankslice_format"]) == "native/1"
    assert text(opened.attrs["family"]) == "qwen3_5_moe"
    assert "complete" in opened.attrs


def test_every_tensor_is_whole_and_native_bit_for_bit(opened, tiny_tensors):
    wrong = reference.differences(
        {escaped(name): value for name, value in reference.global_state(tiny_tensors).items()}, stored_state(opened)
    )
    assert not wrong, "\n".join(wrong[:20])


def test_nothing_is_chunked_or_filtered(opened):
    for dataset in opened["state_dict"].values():
        assert dataset.chunks is None and dataset.compression is None and not dataset.external


def test_h5py_reads_bf16_as_numbers(opened, tiny_tensors):
    key = "model.language_model.layers.0.mlp.experts.down_proj"
    native = reference.native(key, tiny_tensors[key])
    expected = (native.bits.astype("<u4") << 16).view("<f4")
    found = opened["state_dict"][reference.fqn(key, "model.")]
    assert np.array_equal(found[...].astype("<f4"), expected)


def test_the_digests_of_the_source_are_recorded(opened, tiny_tensors):
    recorded = {name: [int(v) for v in dataset[...].ravel()] for name, dataset in opened["digest/source"].items()}
    assert recorded.keys() == {escaped(key) for key in tiny_tensors}
    for key, value in tiny_tensors.items():
        assert recorded[escaped(key)] == reference.digest(value), key


def test_axes_of_a_tensor_without_elements_cost_nothing(broken, tmp_path):
    key, shape = "model.visual.nothing", [2**40, 0, 1]
    path = sorted(broken.glob("*.safetensors"))[-1]

    def add(entries):
        end = max(entry["data_offsets"][1] for name, entry in entries.items() if name != "__metadata__")
        return entries | {key: {"dtype": "BF16", "shape": shape, "data_offsets": [end, end]}}

    checkpoints.edit_header(path, add)
    index = broken / "model.safetensors.index.json"
    checkpoints.edit_json(index, lambda content: content["weight_map"].update({key: path.name}))
    run_ok("load", broken, "--store", tmp_path / "store.h5", ranks=2)
    with h5py.File(tmp_path / "store.h5") as file:
        assert list(file["digest/source"][key]) == [0]
    run_ok("verify", tmp_path / "store.h5", "--against", broken)
    run_ok("to-hf", tmp_path / "store.h5", tmp_path / "back")
    assert not checkpoints.folder_differences(broken, tmp_path / "back")


def test_digests_of_stored_values_are_recorded_for_converted_tensors_only(opened, tiny_tensors):
    converted = {
        key: native
        for key, value in tiny_tensors.items()
        if (native := reference.native(key, value)).dtype != value.dtype
    }
    assert converted, "the preset has BF16 dt_bias, which is held in F32"
    recorded = {name: [int(v) for v in dataset[...].ravel()] for name, dataset in opened["digest/stored"].items()}
    assert recorded == {escaped(key): reference.digest(native) for key, native in converted.items()}


def bytes_of_datasets(group):
    """Name -> content of every dataset below a group, as bytes."""
    found = {}

    def visit(name, item):
        if isinstance(item, h5py.Dataset):
            found[name] = np.asarray(item[...]).tobytes() if item.dtype.kind != "O" else bytes(item[()])

    group.visititems(visit)
    return found


@pytest.mark.parametrize("which", ["tiny", "mini"])
def test_the_source_is_kept_without_its_tensor_bytes(which, request):
    ckpt = request.getfixturevalue(which)
    store = request.getfixturevalue(f"{which}_store")
    shards = reference.shard_files(ckpt)
    wanted = {path.name: reference.raw_header(path) for path in shards}
    wanted |= {path.name: path.read_bytes() for path in ckpt.iterdir() if path not in shards}
    with h5py.File(store, "r") as file:
        found = bytes_of_datasets(file["source"])
    for name, content in wanted.items():
        assert content in found.values(), f"{name} ({len(content)} bytes) is not in /source"
    spare = 4096 + 256 * len(wanted)  # checksums, sizes and names
    assert sum(map(len, found.values())) <= sum(map(len, wanted.values())) + spare


def test_a_store_is_loaded_like_its_checkpoint(mini_store, mini_tensors, tmp_path):
    """On another mesh than it was written on, and its own digests are the reference."""
    mesh, report = Mesh(1, 3), tmp_path / "report.json"
    run_ok("load", mini_store, "--save-shards", tmp_path / "shards", "--report", report, ranks=3)
    for rank in range(mesh.ranks):
        found = reference.read_file(tmp_path / "shards" / f"rank-{rank:05}.safetensors")
        wrong = reference.differences(reference.local_state(mini_tensors, mesh, rank), found)
        assert not wrong, f"rank {rank}:\n" + "\n".join(wrong[:20])
    verify = json.loads(report.read_text())["verify"]
    assert (verify["reference"], verify["mismatches"]) == ("store", [])


def test_stores_of_all_meshes_hold_the_same(mini, mini_store, tmp_path):
    run_ok("load", mini, "--ep", 2, "--store", tmp_path / "other.h5", ranks=4)
    with h5py.File(mini_store) as one, h5py.File(tmp_path / "other.h5") as other:
        assert not reference.differences(stored_state(one), stored_state(other))


def test_a_store_of_a_store_is_whole(mini, mini_store, tmp_path):
    run_ok("load", mini_store, "--store", tmp_path / "again.h5")
    with h5py.File(mini_store) as one, h5py.File(tmp_path / "again.h5") as other:
        assert not reference.differences(stored_state(one), stored_state(other))
        assert bytes_of_datasets(one["digest"]) == bytes_of_datasets(other["digest"])
        assert bytes_of_datasets(one["source"]) == bytes_of_datasets(other["source"])


def test_verify_accepts_an_untouched_store_and_compares_with_a_checkpoint(mini, mini_store):
    run_ok("verify", mini_store)
    result = run_ok("verify", mini, "--against", mini_store, "--json", ranks=2)
    assert (result.json["verify"]["reference"], result.json["verify"]["mismatches"]) == ("against", [])


def test_an_existing_store_is_kept_unless_overwriting_is_asked_for(mini, tmp_path):
    path = tmp_path / "s.h5"
    path.write_text("precious")
    program.expect(73, "load", mini, "--store", path, says=path)
    assert path.read_text() == "precious"
    run_ok("load", mini, "--store", path, "--overwrite")
    run_ok("verify", path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["s.h5"]


def test_a_store_without_its_last_mark_is_refused(mini_store, tmp_path):
    path = tmp_path / "half.h5"
    path.write_bytes(mini_store.read_bytes())
    with h5py.File(path, "r+") as file:
        del file.attrs["complete"]
    program.expect(65, "verify", path, says="complete")


@pytest.mark.parametrize("options", [{"chunks": (2, 4)}, {"chunks": (2, 4), "compression": "gzip"}])
def test_datasets_without_a_fixed_address_are_refused(mini_store, options, tmp_path):
    path = tmp_path / "chunked.h5"
    path.write_bytes(mini_store.read_bytes())
    with h5py.File(path, "r+") as file:
        old = file["state_dict/lm_head.weight"]
        values, dtype = old[...], old.dtype
        mark = old.attrs["safetensors_dtype"]
        del file["state_dict/lm_head.weight"]
        new = file["state_dict"].create_dataset("lm_head.weight", data=values, dtype=dtype, **options)
        new.attrs["safetensors_dtype"] = mark
    program.expect(65, "verify", path, says="lm_head.weight")
