"""Rows of experts that ranks of several hosts share: each reads its part of them, and the network carries the rest."""

import mpirun
from test_hosts import OVERHEAD, assert_as_planned, network_bytes, on_each_host

from program import run_ok

# Six ranks, two on each host: rank 0 shares its experts with rank 3, 1 with 4, 2 with 5, all of them on another host.
OPTIONS = ["--ep", 3, "--ep-shard", 2]


def test_rows_that_are_read_once_go_over_the_network_as_planned(hosts, tiny):
    plan = run_ok("plan", tiny, "--ranks", 6, *OPTIONS, "--dense", "once", "--json").json
    planned = {}
    of_hosts = zip(
        hosts.names, on_each_host(plan["rows"]["rank"], 2), on_each_host(plan["dense"]["rank"], 2), strict=True
    )
    for host, rows, dense in of_hosts:
        planned[host] = (
            sum(rank["bytes_received"] for rank in rows) + dense[0]["bytes_received"],
            sum(rank["bytes_sent"] for rank in rows) + dense[-1]["bytes_sent"],
        )
    once = network_bytes(hosts, "load", tiny, *OPTIONS, "--dense", "once", per_host=2)
    each = network_bytes(hosts, "load", tiny, *OPTIONS, "--dense", "each-rank", per_host=2)
    assert_as_planned(planned, once, each)
    rows = sum(rank["bytes_sent"] for rank in plan["rows"]["rank"])
    assert rows > OVERHEAD * sum(sent for _, sent in planned.values()), "they would not be missed"


def test_three_hosts_read_every_byte_once_where_they_share_experts(hosts, tiny):
    loaded = mpirun.run_ok(hosts, "load", tiny, *OPTIONS, "--verify", "reread", "--json").json
    assert loaded["choices"]["dense"] == "once"
    assert loaded["bytes"]["read"] == loaded["bytes"]["checkpoint"]
    assert loaded["verify"]["mismatches"] == []
