"""Tensors on a device of torch, whose part the CPU plays here: C++ reaches their memory through Python alone. The same
way it takes what lies in another order, or is of another dtype than it wants."""

import filecmp
import os
import subprocess

import pytest
import torch

import expected
import rankslice
from modules import module_of
from rankslice import _device, _filling, _mesh, _native, _state

ALONE = _mesh.place(rank=0, world_size=1)

CHECKPOINTS = {
    "grouped, turned": ["--decoder-experts", "grouped"],
    "grouped, as they are": ["--family", "qwen3_vl_moe"],
    "split": ["--decoder-experts", "split"],
    "FP8": ["--quantization", "fp8"],
}


@pytest.fixture(scope="module", params=CHECKPOINTS.values(), ids=CHECKPOINTS)
def folder(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints") / "small"
    options = ["--layers", "1", "--experts", "4", *request.param]
    subprocess.run([os.environ["SYSTEM_TEST_PROGRAM"], "synth", folder, *options, "--quiet"], check=True)
    return folder


@pytest.fixture
def cpu_as_device(monkeypatch):
    monkeypatch.setattr(_device, "HOST", set())


def bits(state):
    return {name: expected.bits(tensor) for name, tensor in state.items()}


@pytest.mark.parametrize("rank", range(4))
def test_a_device_gets_what_the_host_would(folder, rank, monkeypatch):
    part = {"rank": rank, "world_size": 4, "ep": 2, "ep_shard": 2}
    on_host = rankslice.load(folder, **part)
    monkeypatch.setattr(_device, "HOST", set())
    on_device = rankslice.load(folder, **part)
    expected.assert_same(bits(on_device), bits(on_host))
    assert on_device.bytes_read == on_host.bytes_read


def test_what_a_device_holds_is_digested_and_saved_from_there(folder, cpu_as_device, tmp_path):
    state = rankslice.load(folder, rank=0, world_size=1)
    adopted = _state.adopt(state, None, ALONE)
    assert not _native.verify(adopted, None, "full", None, 1, None).mismatches
    _native.save_shards(adopted, str(tmp_path / "shards"), None, False, None)
    expected.assert_same(bits(rankslice.load(tmp_path / "shards", rank=0, world_size=1)), bits(state))
    name = next(name for name in state if name.endswith("experts.down_projs"))
    state[name].view(torch.int16)[2, 1, 1] ^= 1
    (mismatch,) = _native.verify(adopted, None, "full", None, 1, None).mismatches
    assert mismatch.expert == 2


def test_elements_of_eight_bytes_are_digested_from_a_device_as_from_the_host(tiny, cpu_as_device, tmp_path):
    state = {"model.language_model.layers.0.mlp.experts.down_projs": torch.rand(3, 6, 4, dtype=torch.float64),
             "model.language_model.norm.weight": torch.rand(5, dtype=torch.float64)}  # fmt: skip
    adopted = _state.adopt(state, None, ALONE, family="qwen3_5_moe", partial=True)
    _native.save_shards(adopted, str(tmp_path / "shards"), None, False, None)
    again = rankslice.load(tmp_path / "shards", rank=0, world_size=1)
    assert not _native.verify(_state.adopt(again, None, ALONE), None, "full", None, 1, None).mismatches


def test_what_the_device_raises_is_told_with_its_name(tiny, cpu_as_device, monkeypatch):
    def refuse(*_):
        raise RuntimeError("out of memory on purpose")

    monkeypatch.setattr(_device._Memory, "staging", refuse)
    with pytest.raises(rankslice.errors.DeviceError, match="cpu: RuntimeError: out of memory on purpose") as raised:
        rankslice.load(tiny, rank=0, world_size=1)
    assert isinstance(raised.value.__cause__, RuntimeError)


def test_ctrl_c_on_the_way_to_a_device_stays_what_it_is(tiny, cpu_as_device, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(_device._Memory, "upload", interrupt)
    with pytest.raises(KeyboardInterrupt):
        rankslice.load(tiny, rank=0, world_size=1)


def test_load_into_fills_a_device_where_it_is(folder, monkeypatch):
    wanted = rankslice.load(folder, rank=0, world_size=1)
    monkeypatch.setattr(_device, "HOST", set())
    monkeypatch.setattr(_filling.Filling, "_fill_box", None)  # through other memory
    module = module_of(wanted)
    rankslice.load_into(module, folder)
    expected.assert_same(bits(module.state_dict()), bits(wanted))


@pytest.mark.parametrize("names", ["native", "transformers"])
def test_exports_from_a_device_are_the_same_files(folder, names, monkeypatch, tmp_path):
    state = rankslice.load(folder, rank=0, world_size=1).renamed(names)
    rankslice.to_hf(state, tmp_path / "host")
    monkeypatch.setattr(_device, "HOST", set())
    rankslice.to_hf(state, tmp_path / "device")
    files = sorted(path.name for path in (tmp_path / "host").iterdir())
    assert filecmp.cmpfiles(tmp_path / "host", tmp_path / "device", files, shallow=False)[0] == files


def test_a_device_digests_tensors_of_more_than_a_block_as_the_host_does(monkeypatch, tmp_path):
    rows = torch.arange(2 * 700 * 4100, dtype=torch.int32).view(2, 700, 4100)
    state = {"model.language_model.layers.0.mlp.experts.down_projs": rows.to(torch.float32),
             "model.language_model.embed_tokens.weight": rows[0].view(1400, 2050).to(torch.bfloat16)}  # fmt: skip
    adopted = _state.adopt(state, None, ALONE, family="qwen3_5_moe", partial=True)
    _native.save_shards(adopted, str(tmp_path / "shards"), None, False, None)
    again = rankslice.load(tmp_path / "shards", rank=0, world_size=1)
    monkeypatch.setattr(_device, "HOST", set())
    adopted = _state.adopt(again, None, ALONE)
    assert not _native.verify(adopted, None, "full", None, 1, None).mismatches
    again["model.language_model.layers.0.mlp.experts.down_projs"][1, 600, 4000] += 1
    (mismatch,) = _native.verify(adopted, None, "full", None, 1, None).mismatches
    assert mismatch.expert == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_gpu_gets_what_the_host_would(folder):
    on_host, on_gpu = (rankslice.load(folder, rank=0, world_size=1, device=device) for device in ("cpu", "cuda"))
    assert all(tensor.is_cuda for tensor in on_gpu.values())
    assert not _native.verify(_state.adopt(on_gpu, None, ALONE), None, "full", None, 1, None).mismatches
    expected.assert_same(bits({name: tensor.cpu() for name, tensor in on_gpu.items()}), bits(on_host))
