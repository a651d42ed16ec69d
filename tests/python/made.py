"""Tiny models that transformers made and saved: everything that the tests of other libraries begin with."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

sys.path.append(str(Path(__file__).resolve().parents[1] / "system"))
import program  # noqa: E402
import transformers_models  # noqa: E402

INDEX = "model.safetensors.index.json"
logits = transformers_models.logits


def save_vl_hub(folder):
    """Qwen3-VL-MoE with its experts as on the Hub, axes 1 and 2 exchanged against what transformers writes."""
    transformers_models.save_qwen3_vl(folder)
    for path in folder.glob("*.safetensors"):
        tensors = load_file(path)
        for key in [key for key in tensors if ".mlp.experts." in key]:
            tensors[key] = tensors[key].transpose(1, 2).contiguous()
        save_file(tensors, path, {"format": "pt"})


SAVERS = {
    "qwen3_5_moe, experts grouped": lambda folder: transformers_models.save_qwen3_5(folder),
    "qwen3_5_moe, experts one by one": lambda folder: transformers_models.save_qwen3_5(folder, per_expert=True),
    "qwen3_vl_moe": transformers_models.save_qwen3_vl,
    "qwen3_vl_moe as on the Hub": save_vl_hub,
    "qwen3_moe": lambda folder: transformers_models.save_qwen3_moe(folder, per_expert=True),
    "qwen3_next": lambda folder: transformers_models.save_qwen3_next(folder, per_expert=True),
}


def saved_as(kind, folder):
    folder.mkdir()
    SAVERS[kind](folder)
    return folder


def synth(folder, *options):
    """A checkpoint with the names and files of one on the Hub."""
    subprocess.run([program.PROGRAM, "synth", folder, "--preset", "tiny", "-q", *options], check=True)
    return folder


def config_of(folder):
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(folder)


def class_of(folder):
    import transformers

    return getattr(transformers, json.loads((folder / "config.json").read_text())["architectures"][0])


def on_meta(folder):
    """The model of a checkpoint, in its dtype, without memory."""
    with torch.device("meta"):
        return built(folder)


def built(folder):
    """The model of a checkpoint, in its dtype, with values of its own."""
    return class_of(folder)._from_config(config_of(folder), dtype=torch.bfloat16).eval()


def pretrained(folder, **how):
    """The model as transformers loads it by itself."""
    return class_of(folder).from_pretrained(folder, **how).eval()


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def differences(expected, found):
    """Names of tensors that are not the same, or not there."""
    return sorted(
        name
        for name in expected.keys() | found.keys()
        if name not in expected or name not in found or not is_same(expected[name], found[name])
    )


def is_same(a, b):
    """Bit for bit, and of the same dtype and shape."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return torch.equal(bits(a), bits(b))


def bits(tensor):
    return tensor.detach().contiguous().flatten().view(torch.uint8)


def add_tensor(folder, key, value):
    """One more tensor, in a file of its own."""
    save_file({key: value}, folder / "more.safetensors", {"format": "pt"})
    edit_index(folder, lambda files: files | {key: "more.safetensors"})


def replace_tensor(folder, key, value):
    path = folder / files_of(folder)[key]
    save_file(load_file(path) | {key: value}, path, {"format": "pt"})


def remove_tensors(folder, is_removed):
    for path in folder.glob("*.safetensors"):
        save_file({key: value for key, value in load_file(path).items() if not is_removed(key)}, path, {"format": "pt"})
    edit_index(folder, lambda files: {key: file for key, file in files.items() if not is_removed(key)})


def files_of(folder):
    """HF key -> name of its file."""
    return json.loads((folder / INDEX).read_text())["weight_map"]


def edit_index(folder, edit):
    """Gives the index the weight map that `edit` makes of its own."""
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"] = edit(index["weight_map"])
    (folder / INDEX).write_text(json.dumps(index, indent=2))


def tensors_of(folder):
    """HF key -> tensor, of all files."""
    return {key: value for path in sorted(folder.glob("*.safetensors")) for key, value in load_file(path).items()}


def copied(folder, target):
    shutil.copytree(folder, target)
    return target


def with_flipped_bit(folder, target):
    """A copy with a manifest, of which then one bit changes: in the last tensor of its first file."""
    copied(folder, target)
    subprocess.run([program.PROGRAM, "verify", target, "--write-manifest", "-q"], check=True)
    path = min(target.glob("*.safetensors"))
    data = bytearray(path.read_bytes())
    data[-1] ^= 4
    path.write_bytes(data)
    return target
