"""Ranks that ask for pages of different kinds, or for huge ones where some have a device. Arguments: a checkpoint."""

import sys

from process_group import group_works, join, raised_by, report

import rankslice

rank, size = join()


def load(**options):
    return raised_by(lambda: rankslice.load(sys.argv[1], ep=size, **options) and None)


told = {
    "one asks for huge pages": load(hugepages="on" if rank == 0 else "auto"),
    "one has a device": load(hugepages="on", device="cuda" if rank == 0 else "cpu"),
}
report({"told": told, "group_works": group_works()})
