"""Manifests for the tests about them."""

import json

import checkpoints
from program import run_ok

NAME = "rankslice.manifest.json"
INDEX = "model.safetensors.index.json"
EXPERTS = "model.language_model.layers.2.mlp.experts.gate_up_proj"


def written(ckpt, *arguments, **how):
    run_ok("verify", ckpt, "--write-manifest", *arguments, **how)
    return json.loads((ckpt / NAME).read_text())


def copy_with_one(ckpt, folder):
    """A copy of a checkpoint, with its manifest."""
    copied = checkpoints.copy(ckpt, folder)
    written(copied)
    return copied


def edit(ckpt, change):
    content = json.loads((ckpt / NAME).read_text())
    change(content)
    (ckpt / NAME).write_text(json.dumps(content))


def reference_of(result):
    return result.json["verify"]["reference"]
