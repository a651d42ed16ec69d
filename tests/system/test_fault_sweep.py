"""Whatever system call of whatever rank fails: one code, one message, and nothing half-made (fault_sweep.py)."""

import pytest

import fault_sweep


@pytest.mark.usefixtures("strace")
def test_a_sample_of_failed_calls():
    assert fault_sweep.main(97) == 0
