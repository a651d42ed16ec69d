"""`rankslice.load_into`: parameters that are there already, by their own placements."""

import json

import pytest
import torch
from torch import nn

import expected
import made
import rankslice
from modules import module_of
from ranks import run_ranks
from rankslice import _filling

HEADERS = 1 << 17
"""More than headers, index and config.json have in bytes."""


@pytest.fixture(scope="module")
def native(tiny):
    return rankslice.load(tiny, rank=0, world_size=1)


def bits_of(module):
    return {name: expected.bits(tensor) for name, tensor in module.state_dict().items()}


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("names", ["native", "transformers"])
def test_a_module_gets_all_values_in_place_or_from_the_meta_device(tiny, native, names, device):
    wanted = native.renamed(names)
    module = module_of(wanted, device)
    before = dict(module.named_parameters())
    filled = rankslice.load_into(module, tiny)
    expected.assert_same(bits_of(module), {name: expected.bits(tensor) for name, tensor in wanted.items()})
    assert filled.missing_keys == filled.unexpected_keys == filled.on_meta == []
    assert filled.bytes_owned == native.bytes_owned and filled.bytes_read == native.bytes_read
    assert all(parameter.is_contiguous() for parameter in module.parameters())
    if device == "cpu":
        assert all(parameter is before[name] for name, parameter in module.named_parameters())


def test_a_state_dict_gets_the_same(tiny, native):
    state = {name: torch.empty_like(tensor, device="meta") for name, tensor in native.items()}
    rankslice.load_into(state, tiny)
    expected.assert_same({name: expected.bits(t) for name, t in state.items()},
                         {name: expected.bits(t) for name, t in native.items()})  # fmt: skip


def test_views_with_the_axes_of_transformers_are_filled_where_they_are(tiny, native):
    state = rankslice.load(tiny, rank=0, world_size=1, names="transformers")
    places = {name: tensor.data_ptr() for name, tensor in state.items()}
    for tensor in state.values():
        tensor.zero_()
    rankslice.load_into(state, tiny)
    assert places == {name: tensor.data_ptr() for name, tensor in state.items()}
    wanted = native.renamed("transformers")
    assert all(torch.equal(state[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
def test_values_come_in_the_dtype_of_the_parameters(tiny, native, dtype):
    module = module_of(native, dtype=dtype)
    rankslice.load_into(module, tiny)
    for name, parameter in module.named_parameters():
        assert torch.equal(parameter, native[name].to(dtype)), name


def test_plain_parameters_may_be_the_part_of_a_rank(tiny, native):
    part = rankslice.load(tiny, rank=1, world_size=4, ep=2, ep_shard=2)
    module = module_of(part)
    filled = rankslice.load_into(module, tiny, rank=1, world_size=4, ep=2, ep_shard=2)
    expected.assert_same(bits_of(module), {name: expected.bits(tensor) for name, tensor in part.items()})
    assert filled.bytes_owned == part.bytes_owned


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_ties_and_what_needs_no_gradient_stay(tiny, native, device):
    module = module_of({name: t for name, t in native.items() if name != "lm_head.weight"}, device)
    embedding = module.model.language_model.embed_tokens
    embedding.weight.requires_grad_(False)
    module.lm_head = nn.Module()
    module.lm_head.weight = embedding.weight
    rankslice.load_into(module, tiny, exclude="lm_head")
    assert module.lm_head.weight is module.model.language_model.embed_tokens.weight
    assert not module.lm_head.weight.requires_grad and module.model.language_model.norm.weight.requires_grad
    assert torch.equal(module.lm_head.weight, native["model.language_model.embed_tokens.weight"])


def test_names_that_one_side_has_not_are_listed_or_left(tiny, native):
    module = module_of({name: t for name, t in native.items() if not name.startswith("mtp.")})
    module.register_parameter("extra", nn.Parameter(torch.ones(3)))
    with pytest.raises(rankslice.Error, match=r"has not extra; was not asked for mtp\.[^:]*: .*exclude=.*strict=False"):
        rankslice.load_into(module, tiny)
    filled = rankslice.load_into(module, tiny, strict=False)
    assert filled.missing_keys == ["extra"] and torch.equal(module.extra, torch.ones(3))
    assert filled.unexpected_keys == [name for name in native if name.startswith("mtp.")]


def test_buffers_that_no_checkpoint_has_are_told_when_they_stay_on_the_meta_device(tiny, native):
    module = module_of(native, "meta")
    module.register_buffer("inv_freq", torch.empty(4, device="meta"), persistent=False)
    assert rankslice.load_into(module, tiny).on_meta == ["inv_freq"]


def test_a_wrong_shape_is_refused_by_name(tiny, native):
    name = "model.language_model.norm.weight"
    state = {**native, name: torch.empty(7, dtype=torch.bfloat16)}
    with pytest.raises(rankslice.Error, match=rf"{name}: expected \[256\].*found \[7\]"):
        rankslice.load_into(state, tiny)


@pytest.mark.parametrize(("ranks", "layout"), [(2, "fsdp"), (4, "fsdp"), (4, "hsdp"), (4, "fsdp_tp"), (4, "ep_fsdp")])
def test_a_divided_model_reads_only_its_slices(tiny, tmp_path, ranks, layout):
    run_ranks("load_into_divided.py", ranks, tiny, layout, tmp_path)
    reports = [json.loads(path.read_text()) for path in tmp_path.iterdir()]
    assert len(reports) == 4 * ranks
    for report in reports:
        assert report["told"] == report["expected"]
        assert report["expected"] <= report["of_process"] <= report["expected"] + HEADERS


def test_when_one_rank_fails_all_raise_the_same(tiny):
    run_ranks("load_into_fails.py", 2, tiny)


def test_progress_is_of_all_bytes_also_of_those_that_go_through_other_memory(tiny, native):
    module, reports = module_of(native.renamed("transformers")), []
    rankslice.load_into(module, tiny, progress=lambda *report: reports.append(report))
    phases, done, totals = zip(*reports)
    assert set(phases) == {"load"} and list(done) == sorted(done)
    assert set(totals) == {done[-1]} and len(done) > len([name for name in native if "mlp.experts." in name])


def test_experts_go_through_other_memory_one_by_one_where_that_is_all_there_may_be(tiny, native, monkeypatch):
    monkeypatch.setattr(_filling, "_AT_A_TIME", 1)
    sizes = []
    monkeypatch.setattr(_filling, "_cut", lambda values, *rest: sizes.append(values.shape) or cut(values, *rest))
    wanted = native.renamed("transformers")
    module = module_of(wanted)
    rankslice.load_into(module, tiny)
    expected.assert_same(bits_of(module), {name: expected.bits(tensor) for name, tensor in wanted.items()})
    assert sizes and all(shape[0] == 1 for shape in sizes)


cut = _filling._cut


@pytest.mark.parametrize("names", ["native", "transformers"])
def test_a_flipped_bit_is_found_whether_memory_is_filled_directly_or_not(tiny, native, tmp_path, names):
    flipped = made.with_flipped_bit(tiny, tmp_path / "flipped")
    module = module_of(native.renamed(names))
    with pytest.raises(rankslice.VerifyError, match="manifest digest .*, read"):
        rankslice.load_into(module, flipped)
    rankslice.load_into(module, flipped, verify="off")


@pytest.mark.parametrize("rows_at_a_time", [None, 1])
def test_tied_tensors_must_be_the_same_in_the_checkpoint(tiny, tmp_path, monkeypatch, rows_at_a_time):
    if rows_at_a_time:
        monkeypatch.setattr(_filling, "_AT_A_TIME", rows_at_a_time)
    names = "model.language_model.layers.0.input_layernorm.weight", "model.language_model.norm.weight"
    folder = made.copied(tiny, tmp_path / "tied")
    state = dict(rankslice.load(folder, rank=0, world_size=1))
    state[names[1]] = state[names[0]]
    value = made.tensors_of(folder)[names[0]]
    different = value.clone()
    different[-1] += 1
    made.replace_tensor(folder, names[1], different)
    with pytest.raises(rankslice.Error, match=f"{names[0]} and {names[1]}: are one tensor here, .* different values"):
        rankslice.load_into(state, folder)
    made.replace_tensor(folder, names[1], value)
    state[names[0]].zero_()
    rankslice.load_into(state, folder)
    assert torch.equal(state[names[1]], value)


def test_a_loaded_state_that_is_filled_again_is_of_the_other_checkpoint_then(tiny, tmp_path):
    shape = "--experts", "8", "--layers", "2", "--decoder-experts", "grouped", "--mtp-experts", "grouped"
    other = made.synth(tmp_path / "other", *shape, "--seed", "7")
    state = rankslice.load(tiny, rank=1, world_size=2)
    rankslice.load_into(state, other)
    assert state.checkpoint.path == str(other)
    wanted = rankslice.load(other, rank=1, world_size=2)
    assert all(torch.equal(state[name], wanted[name]) for name in wanted)
    assert rankslice.verify(state).ok


def test_what_trainers_mark_meta_parameters_with_stays(tiny, native):
    module = module_of(native, "meta")
    module.lm_head.weight.no_weight_decay = True
    rankslice.load_into(module, tiny)
    assert module.lm_head.weight.no_weight_decay and not module.lm_head.weight.is_meta
