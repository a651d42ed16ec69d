"""A rank that works alone loads a checkpoint again and again, until it is interrupted. Argument: the checkpoint."""

import sys

from process_group import raised_by, report

import rankslice


def load():
    print("here", flush=True)
    while True:
        rankslice.load(sys.argv[1], rank=0, world_size=1)


report(raised_by(load))
