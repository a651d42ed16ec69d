"""Which group carries the messages, what a progress may be, what runs meanwhile, and that nothing stays behind."""

import gc
import signal
import sys
import threading
import time
import weakref
from _thread import interrupt_main
from functools import partial
from operator import methodcaller

import pytest
import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

import rankslice
from rankslice import _native, _progress, _world, errors


@pytest.mark.parametrize(
    ("config", "backend"),
    [
        ("cpu:gloo,cuda:gloo", "gloo"),
        ("cpu:gloo,cuda:nccl", "gloo"),
        ("cpu:mpi,cuda:mpi", "mpi"),
        ("cuda:nccl", None),
        ("xpu:xccl", None),
    ],
)
def test_messages_go_through_what_a_group_has_for_the_cpu(config, backend):
    assert _world.cpu_backend(config) == backend


class Companion:
    """A group that was made for one without the CPU."""


@pytest.fixture
def ranks_of_nothing():
    """Rank 1 of 4, of a group in which nothing is sent."""
    dist.init_process_group("fake", rank=1, world_size=4, store=FakeStore())
    yield
    dist.destroy_process_group()


def test_a_group_without_the_cpu_gets_one_companion_of_the_ranks_that_work_together(ranks_of_nothing, monkeypatch):
    made = []

    def new_group(ranks, backend, use_local_synchronization):
        made.append((ranks, backend, use_local_synchronization))
        return Companion()

    monkeypatch.setattr(dist, "get_backend_config", lambda group: "cuda:nccl")
    monkeypatch.setattr(dist, "new_group", new_group)
    first, kind = _world._with_cpu(dist.group.WORLD, [3, 1])
    assert kind == "gloo" and made == [((1, 3), "gloo", True)]
    assert _world._with_cpu(dist.group.WORLD, [1, 3])[0] is first, "another order of the same ranks has the same group"
    assert _world._with_cpu(dist.group.WORLD, [0, 1])[0] is not first and len(made) == 2


def test_a_companion_goes_with_its_group(ranks_of_nothing, monkeypatch):
    monkeypatch.setattr(dist, "get_backend_config", lambda group: "cuda:nccl")
    group = dist.new_group()
    monkeypatch.setattr(dist, "new_group", lambda *_, **__: Companion())
    companion = weakref.ref(_world._with_cpu(group, [0, 1])[0])
    assert companion() is not None
    dist.destroy_process_group(group)
    del group
    gc.collect()
    assert companion() is None


def test_ranks_that_a_group_does_not_have_are_refused_before_anything_is_sent(ranks_of_nothing):
    with pytest.raises(errors.UsageError, match=r"ranks \[4, 7\] of \[1, 4, 7\] are not in the process group"):
        _world.communicator(None, [1, 4, 7])
    with pytest.raises(errors.UsageError, match="rank 1 is none of the ranks that work together"):
        _world.communicator(None, [0, 2])


def test_one_rank_needs_no_messages(ranks_of_nothing):
    assert (_world.communicator(None, [1]).kind, _world.communicator(None, [1]).size) == ("none", 1)


def test_without_torch_distributed_there_is_nobody_to_work_with():
    with pytest.raises(errors.UsageError, match="torch.distributed is not initialised"):
        _world.communicator()


def test_progress_is_called_with_phase_and_bytes_up_to_all_of_them(tiny):
    calls = []
    rankslice.load(tiny, rank=0, world_size=1, progress=lambda *call: calls.append(call))
    phases = {phase for phase, _, _ in calls}
    assert "load" in phases
    for phase in phases:
        done, total = zip(*((done, total) for name, done, total in calls if name == phase), strict=True)
        assert list(done) == sorted(done) and done[-1] == total[-1] > 0


def test_what_a_progress_raises_leaves_the_call_as_it_is(tiny):
    class OutOfPatience(Exception):
        pass

    def raise_(*_):
        raise OutOfPatience

    with pytest.raises(OutOfPatience):
        rankslice.load(tiny, rank=0, world_size=1, progress=raise_)


def test_progress_true_is_a_bar_on_the_first_rank_alone(tiny, capfd):
    rankslice.load(tiny, rank=0, world_size=1, progress=True)
    assert "load: 100%" in capfd.readouterr().err
    with _progress.reporting(True, None, first_rank=False) as report:
        assert report is None


def test_a_bar_without_tqdm_and_a_progress_that_is_none_are_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    for progress, message in [(True, "pip install tqdm"), ("yes", "got 'yes'")]:
        with pytest.raises(errors.UsageError, match=message), _progress.reporting(progress):
            pass


def test_a_bar_without_tqdm_on_the_first_rank_is_the_same_error_on_all(run_ranks, tiny, tmp_path):
    for report in run_ranks("without_tqdm.py", 2, tiny, tmp_path):
        assert {"load", "load_into", "to_hf", "save_shards", "verify", "gather"} <= report["raised"].keys()
        for error in report["raised"].values():
            assert (error["type"], error["rank"]) == ("UsageError", 0) and "pip install tqdm" in error["message"]
        assert report["group_works"]


def test_other_threads_run_while_a_state_is_filled(tiny, monkeypatch):
    counted, ran, stop = [0], [False], threading.Event()
    fill = _native.fill

    def count():
        while not stop.is_set():
            counted[0] += 1
            time.sleep(0)  # gives way

    def observed(*arguments):
        before = counted[0]
        report = fill(*arguments)
        ran.append(counted[0] > before)
        return report

    monkeypatch.setattr(_native, "fill", observed)
    thread = threading.Thread(target=count, daemon=True)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1000)  # from here on a thread runs only when another gives way
    try:
        thread.start()
        while not any(ran) and len(ran) < 100:  # for the system may run the thread a little later
            rankslice.load(tiny, rank=0, world_size=1)
        assert any(ran)
    finally:
        sys.setswitchinterval(interval)
        stop.set()
        thread.join()


def resident():
    with open("/proc/self/statm") as pages:
        return int(pages.read().split()[1]) * 4096


def test_memory_goes_with_the_last_tensor_over_it():
    size = 256 << 20
    before = resident()
    whole = torch.from_dlpack(_native.allocate([size], "auto")[0]).fill_(1)
    part = whole[size // 2 :].view(torch.float32)
    assert resident() - before > size // 2
    del whole
    gc.collect()
    assert part.view(torch.uint8)[-1] == 1 and resident() - before > size // 2
    del part
    gc.collect()
    assert resident() - before < size // 2


@pytest.fixture
def flags(monkeypatch):
    """Those of three ranks, and the store in which they stand."""
    store = dist.HashStore()
    monkeypatch.setattr(dist.distributed_c10d, "_get_default_store", lambda: store)
    return [_world._Flag(rank, 3) for rank in range(3)], store


def test_a_flag_is_seen_by_those_that_have_its_name(flags):
    (one, other, stranger), _ = flags
    one.named("ours")
    other.named("ours")
    stranger.named("theirs")
    one.raise_here()
    assert (other.raised_by(), stranger.raised_by()) == (0, None)


def test_a_flag_that_was_raised_before_it_had_a_name_is_seen_as_soon_as_it_has_one(flags):
    (_, raised, other), _ = flags
    raised.raise_here()
    for flag in (raised, other):
        flag.named("ours")
    assert other.raised_by() == 1


def test_a_flag_stands_until_the_last_rank_has_seen_it_and_then_nothing_of_it_is_left(flags):
    ranks, store = flags
    keys = store.num_keys()
    for flag in ranks:
        flag.named("ours")
    ranks[2].raise_here()
    for flag in reversed(ranks):
        assert flag.raised_by() == 2
        flag.leave()
    assert store.num_keys() == keys


class Alone:
    """What C++ has of a group of one rank, in which nothing is sent."""

    rank, size, kind, largest_message, between_looks = 0, 1, "none", 1 << 20, 0.0

    def name_flag(self, name):
        pass

    def stopped_by(self):
        return None


def test_what_a_signal_raises_outside_any_call_is_raised_by_the_next_line():
    class Hangup(Exception):
        pass

    def hang_up(*_):
        raise Hangup

    world = _native.make_communicator(Alone())
    handler = signal.signal(signal.SIGHUP, hang_up)
    steps = [partial(interrupt_main, signal.SIGHUP), partial(_native.still_alive, world)]
    try:
        with pytest.raises(Hangup):  # no line of Python is between the signal and the call
            list(map(methodcaller("__call__"), steps))
            time.sleep(0)
    finally:
        signal.signal(signal.SIGHUP, handler)


def test_a_communicator_leaves_neither_threads_nor_references_behind(run_ranks):
    for left in run_ranks("left_behind.py", 2):
        assert left == {"messages": 0, "threads": [], "memory": 0}
