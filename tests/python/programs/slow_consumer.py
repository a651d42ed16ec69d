"""A rank of: a gather whose receiver takes its time with a tensor. Arguments: the checkpoint, the seconds of the
group's timeout, and those of the receiver. Reports what the loop raised, and how many tensors came."""

import os
import sys
import time

from process_group import join, raised_by, report

import rankslice

folder, timeout, seconds = sys.argv[1], float(sys.argv[2]), float(sys.argv[3])
rank, size = join(timeout=timeout)
state = rankslice.load(folder)
taken = []


def loop():
    for name, _ in rankslice.gather(state):
        taken.append(name)
        if len(taken) == 2:
            time.sleep(seconds)


raised = raised_by(loop)
report({"raised": raised, "taken": len(taken)})
os._exit(0)  # the end of torch's group may wait for others
