"""Slurm with four nodes that are one machine, as people try it: the same host name and the same network."""

import pytest
from hosts import Hosts
from slurm import Slurm

import checkpoints

# The nodes share one host name, and so the names of Open MPI's shared-memory files: ranks would write into those of
# another node.
ONE_HOST = {"OMPI_MCA_pml": "ob1", "OMPI_MCA_btl": "self,tcp"}


@pytest.fixture
def slurm():
    cluster = Slurm(Hosts(1), nodes=4)
    yield cluster
    cluster.wait_until_idle()


def test_a_checkpoint_goes_through_four_nodes_byte_for_byte(slurm, tiny, tmp_path):
    store = tmp_path / "tiny.h5"
    loaded = slurm.run_ok("load", tiny, "--store", store, "--json", nodes=4, per_node=1, env=ONE_HOST).json
    assert loaded["ranks"] == 4 and loaded["mesh"] == {"ep_replicate": 1, "ep_shard": 1, "ep": 4}
    slurm.run_ok("verify", store, "--against", tiny, nodes=4, per_node=2, env=ONE_HOST)
    slurm.run_ok("to-hf", store, tmp_path / "out", nodes=4, per_node=1, env=ONE_HOST)
    assert not checkpoints.folder_differences(tiny, tmp_path / "out")
