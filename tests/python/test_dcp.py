"""torch.distributed.checkpoint reads what rankslice wrote, and the other way."""

import pytest

import made
from ranks import run_ranks


@pytest.mark.parametrize("kind", ["qwen3_5_moe, experts one by one", "qwen3_vl_moe"])
def test_two_ranks(kind, tmp_path):
    run_ranks("dcp_ranks.py", 2, made.saved_as(kind, tmp_path / "source"), tmp_path)
