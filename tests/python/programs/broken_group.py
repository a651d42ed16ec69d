"""Rank 1 does not come along. The others report what a broadcast from it raises, and where that comes from."""

import os
import signal

import numpy
from process_group import described, join, report

from rankslice import _world, errors

rank, size = join(timeout=5)
world = _world.communicator()
if rank == 1:
    print("here", flush=True)
    signal.pause()
try:
    world.broadcast(numpy.zeros(1000, numpy.uint8), 1)
except errors.CommError as error:
    again = None
    try:
        world.sum([1])
    except errors.CommError as second:
        again = str(second)
    report({**described(error), "cause": described(error.__cause__), "again": again})
os._exit(0)  # the end of torch's group may wait for rank 1
