"""The calls of a communicator over a process group of torch's, beside what they should give."""

import json

import pytest

# Ranks of the job, those that work together in their order, and whether these have a group of their own.
GROUPS = [(2, [0, 1], False), (4, [2, 0, 3, 1], False), (4, [3, 1], False), (4, [1, 2, 3], True)]


@pytest.fixture(scope="module", params=GROUPS, ids=str)
def called(request, run_ranks):
    """The order of the ranks, and what they reported, in this order."""
    ranks, order, own_group = request.param
    reports = run_ranks("communicator.py", ranks, 4096, json.dumps(order), json.dumps(own_group))
    assert [rank for rank, report in enumerate(reports) if report is not None] == sorted(order)
    return order, [reports[rank] for rank in order]


def test_the_ranks_are_numbered_in_the_order_that_was_given(called):
    order, reports = called
    for rank, report in enumerate(reports):
        assert (report["rank"], report["size"], report["kind"]) == (rank, len(order), "gloo")
        assert report["global_ranks"] == order and report["same_host"]


def test_broadcasts_give_the_roots_bytes_on_every_rank_whatever_a_message_may_have(called):
    for report in called[1]:
        assert report["wrong_broadcasts"] == []


def test_sums_are_modulo_two_to_the_sixtyfour(called):
    order, reports = called
    ranks = len(order)
    counted = sum(range(ranks))
    expected = [counted, (2**64 - 1) * ranks % 2**64, 2**63 * ranks % 2**64, *([counted + ranks] * 1000)]
    for report in reports:
        assert report["sum"] == expected


def test_the_root_alone_gathers_and_sizes_may_differ(called):
    order, reports = called
    *others, root = reports
    assert root["gathered"] == ["x" * rank for rank in range(len(order))]
    assert all(report["gathered"] == [] for report in others)


def test_parts_number_their_ranks_in_the_same_order_and_hear_nothing_of_each_other(called):
    _, reports = called
    for rank, report in enumerate(reports):
        members = range(rank % 2, len(reports), 2)
        assert report["part"] == [rank // 2, len(members), [sum(1 << member for member in members)]]
