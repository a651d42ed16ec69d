"""`rankslice.gather`: what comes to whom, and how a call ends that is not gone through to its end."""

import signal

import pytest
import torch

import expected


@pytest.fixture(scope="module", params=[(1, 1), (2, 1), (2, 2), (4, 2)], ids=str)
def gathered(request, run_ranks, tiny, tmp_path_factory):
    """What every rank was given each way, and what all reported."""
    ranks, ep_shard = request.param
    out = tmp_path_factory.mktemp("gathered")
    reports = run_ranks("gathering.py", ranks, tiny, ep_shard, out)
    return (lambda way: [torch.load(out / f"{way}-{rank}.pt") for rank in range(ranks)]), reports


def assert_given(given, tensors, receivers):
    """These ranks have all tensors bit by bit, in torch's dtypes; the others nothing."""
    for rank, found in enumerate(given):
        bits = {name: expected.bits(tensor) for name, tensor in found.items()}
        expected.assert_same(bits, tensors if rank in receivers else {})


@pytest.mark.parametrize("way", ["one", "hosts"])  # all ranks of the test share one host
def test_one_rank_is_given_every_tensor_as_the_files_have_it(gathered, tiny, way):
    assert_given(gathered[0](way), expected.stored(tiny), {0})


def test_any_rank_can_be_the_one(gathered, tiny):
    given = gathered[0]("last")
    assert_given(given, expected.stored(tiny), {len(given) - 1})


@pytest.mark.parametrize("way", ["all", "alone"])
def test_all_ranks_are_given_every_tensor(gathered, tiny, way):
    given = gathered[0](way)
    assert_given(given, expected.stored(tiny), range(len(given)))


@pytest.mark.parametrize("gathered", [(1, 1), (2, 1)], indirect=True, ids=str)
def test_a_plain_dict_is_gathered_with_the_checkpoint_that_it_is_of(gathered, tiny):
    given = gathered[0]("of_a_dict")
    assert_given(given, expected.stored(tiny), range(len(given)))


def test_a_selection_gives_its_tensors_alone(gathered, tiny):
    of_layers = {name: value for name, value in expected.stored(tiny).items() if ".mlp.experts" in name}
    wanted = {name: value for name, value in of_layers.items() if not name.startswith("mtp")}
    assert 0 < len(wanted) < len(of_layers)
    assert_given(gathered[0]("some"), wanted, {0})


def test_values_that_were_trained_are_given_as_they_are_now(gathered, tiny):
    give, reports = gathered
    changed = reports[0]["trained"].replace("down_projs", "down_proj")
    before = {name: value for name, value in expected.stored(tiny).items() if ".mlp.experts.down" in name}
    for given in give("trained"):
        assert given.keys() == before.keys()
        for name, value in given.items():
            old = before[name].view(torch.bfloat16)
            assert torch.equal(value, old + 1 if name == changed else old), name


def refused(gathered, way):
    """What all ranks were told alike."""
    first, *others = (report["refused"][way] for report in gathered[1])
    assert all(other == first for other in others)
    return first


def test_arguments_that_make_no_sense_are_refused_on_all_ranks(gathered):
    ranks = len(gathered[1])
    assert refused(gathered, "absent")["type"] == "UsageError"
    assert f"rank {ranks}" in refused(gathered, "absent")["message"]
    assert "takes none of" in refused(gathered, "nothing")["message"]
    assert "receivers: there is no some" in refused(gathered, "receivers")["message"]
    if ranks > 1:
        assert "would gather other tensors" in refused(gathered, "unlike")["message"]


def test_copies_that_differ_are_named_on_all_ranks(gathered):
    if len(gathered[1]) == 1:
        assert refused(gathered, "unequal") is None
        return
    error = refused(gathered, "unequal")
    assert error["type"] == "VerifyError" and "lm_head.weight" in error["message"]


LEFT = "the loop over gather() was left after 3 tensors"
WAYS = {
    "left_by_break": (None, LEFT),
    "left_by_exception": ("LookupError", LEFT),
    "left_in_a_context": ("LookupError", f"{LEFT}, by LookupError: no room for it"),
    "forgotten_in_a_cycle": (None, LEFT),
}


@pytest.fixture(scope="module", params=[("one", 0), ("all", 0), ("all", 1)], ids=str)
def left(request, run_ranks, tiny):
    """The rank that leaves, and for each rank what came of each way to leave."""
    receivers, leaver = request.param
    return leaver, run_ranks("leaving_gather.py", 2, tiny, receivers, leaver)


@pytest.mark.parametrize("how", WAYS)
def test_a_loop_that_is_left_ends_on_all_ranks(left, how):
    leaver, reports = left
    own, told = WAYS[how]
    of_leaver, of_other = reports[leaver][how], reports[1 - leaver][how]
    assert of_leaver["taken"] == 3
    assert (of_leaver["raised"] and of_leaver["raised"]["type"]) == own
    error = of_other["raised"]
    assert (error["type"], error["rank"]) == ("UnexpectedError", leaver)
    assert error["message"].endswith(told)


def test_a_progress_function_that_raises_ends_the_loop_on_all_ranks(left):
    leaver, reports = left
    for rank, report in enumerate(reports):
        error = report["failing_progress"]["raised"]
        assert error["type"] == ("LookupError" if rank == leaver else "UnexpectedError")
        assert "nowhere to show it" in error["message"]


def test_ranks_whose_loops_were_left_can_work_together(left, tiny):
    for report in left[1]:
        for outcome in report.values():
            assert outcome["again"] == len(expected.stored(tiny)) and outcome["group_works"]


@pytest.mark.parametrize("interrupted", [0, 1])
def test_ctrl_c_ends_the_loop_on_all_ranks(start_ranks, tiny, interrupted):
    job = start_ranks("interrupted_gather.py", 2, tiny, interrupted)
    job.wait_for(interrupted, "here")
    job.send(interrupted, signal.SIGINT)
    for rank, ended in enumerate(job.end(60)):
        assert ended.code == 0, ended.output
        assert ended.result["raised"]["type"] == ("KeyboardInterrupt" if rank == interrupted else "Interrupted")
        assert ended.result["group_works"]


def test_the_others_wait_for_a_slow_loop_while_the_timeout_of_the_group_lasts(run_ranks, tiny):
    of_receiver, of_other = run_ranks("slow_consumer.py", 2, tiny, 30, 2)
    assert of_receiver == {"raised": None, "taken": len(expected.stored(tiny))}
    assert of_other == {"raised": None, "taken": 0}


def test_past_the_timeout_of_the_group_the_call_ends_on_all_ranks(run_ranks, tiny):
    of_receiver, of_other = run_ranks("slow_consumer.py", 2, tiny, 3, 10)
    assert of_receiver["raised"]["type"] == of_other["raised"]["type"] == "CommError"
    assert of_receiver["taken"] < len(expected.stored(tiny))


def test_the_next_tensor_is_gathered_while_one_is_used_and_no_further_one(run_ranks, tiny):
    happened, _ = run_ranks("overlapping_gather.py", 2, tiny, len(expected.stored(tiny)))
    names, used = ([name for event, name in happened if event == which] for which in ("gathered", "used"))
    assert names == used and set(names) == expected.stored(tiny).keys()
    for this, after in zip(names, names[1:], strict=False):
        assert happened.index(["gathered", after]) < happened.index(["used", this])
    for this, after_next in zip(names, names[2:], strict=False):
        assert happened.index(["use", this]) < happened.index(["gathered", after_next])


def test_training_ranks_pass_their_weights_on_to_ranks_that_infer(run_ranks, tiny, tmp_path):
    run_ranks("weight_transfer.py", 4, tiny, tmp_path)
    given = [torch.load(tmp_path / f"{rank}.pt") for rank in (2, 3)]
    assert_given(given, expected.stored(tiny), {0, 1})
