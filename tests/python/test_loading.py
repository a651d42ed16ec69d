"""`rankslice.load` into fresh memory, on ranks that work alone and on those of a DeviceMesh."""

import copy
import gc
import os
import pickle
from collections import OrderedDict

import pytest
import torch

import expected
import made
import rankslice
from expected import reference
from ranks import run_ranks
from rankslice import _native, _threads

MESHES = [reference.Mesh(1, 1), reference.Mesh(1, 2), reference.Mesh(2, 3), reference.Mesh(1, 2, 2)]


@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_a_rank_alone_has_its_part_of_every_tensor(tiny, mesh):
    whole = expected.whole_state(tiny)
    for rank in range(mesh.ranks):
        state = rankslice.load(tiny, rank=rank, world_size=mesh.ranks, ep=mesh.ep, ep_shard=mesh.ep_shard)
        found = {name: expected.bits(tensor) for name, tensor in state.items()}
        expected.assert_same(found, expected.part(mesh, rank, whole))
        assert state.bytes_owned == sum(tensor.nbytes for tensor in state.values())


def test_the_names_and_axes_of_transformers_are_views_of_the_same_memory(tiny):
    native = rankslice.load(tiny, rank=0, world_size=1)
    state = native.renamed("transformers")
    expected.assert_same({key: expected.bits(tensor) for key, tensor in state.items()}, stored_as_held(tiny))
    assert {t.untyped_storage().data_ptr() for t in state.values()} == {
        t.untyped_storage().data_ptr() for t in native.values()
    }
    again = state.renamed("native")
    assert again.keys() == native.keys() and all(again[name].is_contiguous() for name in native)


def stored_as_held(folder):
    """What grouped files hold, as training needs it: dt_bias in float32."""
    values = reference.held_values(reference.read_folder(folder), reference.Model.of(folder))
    return {key: expected.bits(value) for key, value in values.items()}


def test_a_selection_has_only_the_tensors_whose_names_in_the_files_match(tiny):
    state = rankslice.load(tiny, rank=0, world_size=1, include=r"model\.", exclude=r"model\.visual")
    assert state and all(name.startswith("model.language_model.") for name in state)


def test_floating_tensors_come_in_the_dtype_that_is_asked_for(tiny):
    state = rankslice.load(tiny, rank=0, world_size=1, dtype=torch.float32, include=r"model\.language_model\.norm")
    as_stored = rankslice.load(tiny, rank=0, world_size=1, include=r"model\.language_model\.norm")
    name = "model.language_model.norm.weight"
    assert torch.equal(state[name], as_stored[name].float()) and state[name].dtype == torch.float32


def test_copies_and_pickles_of_a_state_are_such_dicts_as_modules_have(tiny, tmp_path):
    state = rankslice.load(tiny, rank=0, world_size=1)
    torch.save(state, tmp_path / "state.pt")
    for other in (torch.load(tmp_path / "state.pt"), copy.deepcopy(state), pickle.loads(pickle.dumps(state))):
        assert type(other) is OrderedDict
        expected.assert_same(*({key: expected.bits(t) for key, t in tensors.items()} for tensors in (other, state)))
        assert all(other[name].data_ptr() != state[name].data_ptr() for name in state)


def test_a_checkpoint_and_a_mesh_say_what_they_are(tiny):
    state = rankslice.load(tiny, rank=1, world_size=4, ep=2, ep_shard=1)
    assert repr(state.checkpoint) == f"<Checkpoint {tiny}: qwen3_5_moe, {len(state)} tensors>"
    assert repr(state.place.mesh) == "<Mesh ep_replicate=2 ep_shard=1 ep=2>"


def test_the_parameters_of_a_checkpoint_are_the_same_ones_every_time_and_outlive_it(tiny):
    checkpoint = rankslice.open(tiny)
    one, other = checkpoint.parameters, checkpoint.parameters
    assert one and all(a is b for a, b in zip(one, other, strict=True))
    names = [parameter.fqn for parameter in one]
    del checkpoint, other
    gc.collect()
    assert [parameter.fqn for parameter in one] == names


def test_each_tensor_has_memory_of_its_own(tiny):
    state = rankslice.load(tiny, rank=0, world_size=1)
    assert len({tensor.untyped_storage().data_ptr() for tensor in state.values()}) == len(state)
    assert all(tensor.untyped_storage().nbytes() == tensor.nbytes for tensor in state.values())


def test_a_wrong_call_is_refused_by_name(tiny):
    with pytest.raises(rankslice.Error, match='names: expected "native" or "transformers"'):
        rankslice.load(tiny, rank=0, world_size=1, names="hf")
    with pytest.raises(rankslice.Error, match="there is no dtype"):
        rankslice.load(tiny, rank=0, world_size=1, dtype="bfloat17")
    with pytest.raises(rankslice.Error, match="give dtype to rankslice.open"):
        rankslice.load(rankslice.open(tiny), rank=0, world_size=1, dtype="float32")


@pytest.mark.parametrize(
    ("ranks", "dims"),
    [
        (2, {"ep": 2}),
        (2, {"ep_shard": 1, "ep": 2}),
        (4, {"ep_shard": 2, "ep": 2}),
        (4, {"ep": 2, "ep_replicate": 2}),
        (4, {"ep_replicate": 1, "ep": 2, "ep_shard": 2}),
    ],
    ids=str,
)
def test_dtensors_of_a_mesh_are_placed_by_its_dims_and_make_up_the_checkpoint(tiny, ranks, dims):
    run_ranks("load_over_mesh.py", ranks, tiny, *(f"{name}={size}" for name, size in dims.items()))


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_that_read_dense_tensors_once_have_the_same_and_read_less(tiny, ranks):
    run_ranks("load_dense_once.py", ranks, tiny)


def test_a_rank_alone_shares_no_reading(tiny):
    with pytest.raises(rankslice.errors.UsageError, match="not by one alone"):
        rankslice.load(tiny, rank=0, world_size=2, dense="once")
    with pytest.raises(rankslice.errors.UsageError, match="dense: expected one of auto, each-rank, once, got 'all'"):
        rankslice.load(tiny, rank=0, world_size=2, dense="all")


def test_experts_that_a_dtensor_cannot_divide_are_refused_on_every_rank_with_advice(tiny):
    run_ranks("load_uneven.py", 3, tiny)


def test_a_flipped_bit_is_found_while_loading_unless_nothing_is_to_be_proved(tiny, tmp_path):
    flipped = made.with_flipped_bit(tiny, tmp_path / "flipped")
    for level in ("full", "reread"):
        with pytest.raises(rankslice.VerifyError, match="manifest digest .*, read") as caught:
            rankslice.load(flipped, rank=0, world_size=1, verify=level)
        assert caught.value.report.reference == "manifest" and len(caught.value.report.mismatches) > 0
    rankslice.load(flipped, rank=0, world_size=1, verify="off")


def test_ranks_that_load_together_find_a_flipped_bit_together(tiny, tmp_path):
    run_ranks("load_flipped.py", 2, made.with_flipped_bit(tiny, tmp_path / "flipped"))


@pytest.mark.parametrize("level", [True, "ful", None])
def test_what_is_no_level_of_proof_is_refused_before_anything_is_opened(level):
    for call in (rankslice.load, lambda *args, **more: rankslice.load_into({}, *args, **more)):
        with pytest.raises(rankslice.UsageError, match="verify: expected one of off, coverage, full, reread"):
            call("no such folder", rank=0, world_size=1, verify=level)


def test_the_meta_device_has_no_values_to_load():
    for call in (rankslice.load, lambda *args, **more: rankslice.load_into({}, *args, **more)):
        with pytest.raises(rankslice.UsageError, match="device: values cannot be loaded onto the meta device"):
            call("no such folder", rank=0, world_size=1, device="meta")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_is_named(tiny):
    with pytest.raises(rankslice.DeviceError, match="^cuda:0: ") as refused:
        rankslice.load(tiny, rank=0, world_size=2, device="cuda:0")
    assert refused.value.code == 69


def huge_kib_of(state):
    """What stands on huge pages in the mappings that tensors are in."""
    places = [(t.data_ptr(), t.data_ptr() + t.nbytes) for t in state.values() if t.nbytes]
    found, is_ours = 0, False
    with open("/proc/self/smaps") as smaps:
        for line in smaps:
            word = line.split()[0]
            if not word.endswith(":"):
                begin, end = (int(address, 16) for address in word.split("-"))
                is_ours = any(begin < last and first < end for first, last in places)
            elif is_ours and word == "AnonHugePages:":
                found += int(line.split()[1])
    return found


@pytest.mark.parametrize("cache", ["keep", "drop"])
def test_tensors_are_the_same_however_files_are_read(tiny, cache):
    expected = rankslice.load(tiny, rank=1, world_size=2)
    for io in ("pread", "direct"):
        found = rankslice.load(tiny, rank=1, world_size=2, io=io, cache=cache)
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
        into = {name: torch.zeros_like(tensor) for name, tensor in expected.items()}
        rankslice.load_into(into, tiny, rank=1, world_size=2, io=io, cache=cache)
        assert all(torch.equal(into[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("threads", [1, 3, 16])
def test_tensors_are_the_same_with_any_number_of_threads(tiny, threads, monkeypatch):
    expected = rankslice.load(tiny, rank=1, world_size=2, threads=2)
    used, fill = set(), _native.fill

    def noting(*arguments):
        used.add(arguments[-2])
        return fill(*arguments)

    monkeypatch.setattr(_native, "fill", noting)
    found = rankslice.load(tiny, rank=1, world_size=2, threads=threads)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    into = {name: torch.zeros_like(tensor) for name, tensor in expected.items()}
    rankslice.load_into(into, tiny, rank=1, world_size=2, threads=threads)
    assert all(torch.equal(into[name], tensor) for name, tensor in expected.items())
    assert used == {threads}
    assert not rankslice.verify(found, level="full", threads=threads).mismatches


@pytest.mark.parametrize(
    ("variable", "says"),
    [("LOCAL_WORLD_SIZE", "{}"), ("OMPI_COMM_WORLD_LOCAL_SIZE", "{}"), ("SLURM_STEP_TASKS_PER_NODE", "1(x3),{}")],
)
def test_ranks_that_load_alone_share_the_processors_of_their_host(variable, says, monkeypatch):
    processors = len(os.sched_getaffinity(0))
    monkeypatch.setenv(variable, says.format(processors))
    assert _threads.decided(None, None) == 1
    assert _threads.decided(5, None) == 5
    monkeypatch.setenv(variable, "some")
    assert 1 <= _threads.decided(None, None) <= processors


def test_calls_of_a_rank_alone_that_have_no_threads_argument_take_its_share(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(len(os.sched_getaffinity(0))))
    used = {}

    def noting(name, called):
        def call(*arguments):
            used.setdefault(name, set()).add(arguments[-1])
            return called(*arguments)

        return call

    for name in ("open_checkpoint", "save_shards", "to_hf", "gather"):
        monkeypatch.setattr(_native, name, noting(name, getattr(_native, name)))
    state = rankslice.load(tiny, rank=0, world_size=1)
    rankslice.save_shards(state, tmp_path / "shards")
    rankslice.to_hf(state, tmp_path / "hf")
    assert dict(rankslice.gather(state))
    assert used == {"open_checkpoint": {1}, "save_shards": {1}, "to_hf": {1}, "gather": {1}}


def test_no_thread_at_all_is_refused(tiny):
    with pytest.raises(rankslice.errors.UsageError, match="threads: expected 1 or more, got 0"):
        rankslice.load(tiny, rank=0, world_size=1, threads=0)


def test_a_way_of_reading_that_there_is_not_is_refused(tiny):
    with pytest.raises(rankslice.errors.UsageError, match="io: there is no mmap"):
        rankslice.load(tiny, rank=0, world_size=1, io="mmap")
    with pytest.raises(rankslice.errors.UsageError, match="cache: there is no forget"):
        rankslice.load(tiny, rank=0, world_size=1, cache="forget")


def test_tensors_stand_on_huge_pages_or_small_ones_as_asked_for(tiny):
    with open("/sys/kernel/mm/transparent_hugepage/enabled") as enabled:
        if "[never]" in enabled.read():
            with pytest.raises(rankslice.errors.UsageError, match="says never"):
                rankslice.load(tiny, rank=0, world_size=1, hugepages="on")
            return
    on = rankslice.load(tiny, rank=0, world_size=1, hugepages="on")
    large = sum(t.nbytes for t in on.values() if t.nbytes >= 128 << 10)
    assert large >= 4 << 20 and huge_kib_of(on) << 10 >= large - (2 << 20)  # all but the end of the mapping
    off = rankslice.load(tiny, rank=0, world_size=1, hugepages="off")
    assert huge_kib_of(off) == 0 and all(torch.equal(off[name], tensor) for name, tensor in on.items())


def test_pages_of_a_kind_that_there_is_not_are_refused(tiny):
    with pytest.raises(rankslice.errors.UsageError, match="hugepages: there is no 1GB"):
        rankslice.load(tiny, rank=0, world_size=1, hugepages="1GB")


def test_ranks_that_ask_for_different_pages_are_told_the_same(tiny, run_ranks):
    reports = run_ranks("hugepages.py", 2, tiny)
    first, second = (report["told"] for report in reports)
    assert first == second and all(report["group_works"] for report in reports)
    assert first["one has a device"]["type"] == "UsageError"
    assert "the tensors are to be on cuda" in first["one has a device"]["message"]
