"""A training program as launch/slurm/train.sbatch starts it: `train.py SHARDS` doubles all weights of experts."""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import save_file

dist.init_process_group("gloo")
path = Path(sys.argv[1]) / f"rank-{dist.get_rank():05}.safetensors"
with safe_open(path, "pt") as shard:
    metadata = shard.metadata()
    tensors = {name: shard.get_tensor(name) for name in shard.keys()}

for name, tensor in tensors.items():
    if ".experts." in name:
        tensor *= 2
save_file(tensors, path, metadata)

ranks = torch.ones(1)
dist.all_reduce(ranks)
print(f"rank {dist.get_rank()} on {os.uname().nodename}: trained with {int(ranks)} ranks", flush=True)
dist.destroy_process_group()
