"""A rank of: saving a store, loading from it, exporting what was loaded. Arguments: the checkpoint, and a folder."""

import sys
from pathlib import Path

import torch.distributed as dist

import rankslice

folder, out = sys.argv[1], Path(sys.argv[2])
dist.init_process_group("gloo")
rankslice.save_store(rankslice.load(folder), out / "saved.h5")
rankslice.to_hf(rankslice.load(out / "saved.h5", verify="full"), out / "back")
dist.destroy_process_group()
