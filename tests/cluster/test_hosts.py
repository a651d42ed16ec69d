"""Ranks on three hosts: load, verify, store and to-hf, and what goes over their network."""

import mpirun

import checkpoints


def test_a_checkpoint_goes_through_three_hosts_byte_for_byte(hosts, tiny, tmp_path):
    store, out = tmp_path / "tiny.h5", tmp_path / "out"
    loaded = mpirun.run_ok(hosts, "load", tiny, "--ep", 2, "--store", store, "--json").json
    assert loaded["ranks"] == 6 and loaded["mesh"] == {"ep_replicate": 3, "ep_shard": 1, "ep": 2}
    assert [rank["host"] for rank in loaded["rank"]] == ["node1", "node1", "node2", "node2", "node3", "node3"]
    verified = mpirun.run_ok(hosts, "verify", store, "--against", tiny, "--json").json
    assert verified["verify"]["mismatches"] == []
    mpirun.run_ok(hosts, "to-hf", store, out)
    assert not checkpoints.folder_differences(tiny, out)
