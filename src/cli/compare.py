"""One rank's share of `rankslice bench --compare`: the same slices of the same checkpoint, loaded by another library.

compare.py JOB WAY imports a library and prints its version, or why that is not to be had, as JSON. For every line that
it reads then, a process that begins as a copy of this one loads once, and "done" is printed when that has ended:

check     prints what is not as JOB says
time      prints its number, waits for a line, loads, prints "loaded" and keeps all of it until the next line

JOB is a JSON file with the tensors that this rank has to end up with: names, dtypes, shapes, digests, and the parts of
the checkpoint's tensors that they are made of.
"""

import contextlib
import hashlib
import importlib
import importlib.metadata
import json
import os
import sys
import traceback
from pathlib import Path

DTYPES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "I16": "int16",
    "U16": "uint16",
    "I32": "int32",
    "U32": "uint32",
    "I64": "int64",
    "U64": "uint64",
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
    "C64": "complex64",
}
AUTOMODEL_READER = "nemo_automodel.components.checkpoint._backports.hf_storage"


def dtype_of(tensor):
    import torch

    if tensor["dtype"] not in DTYPES:
        raise TypeError(f"{tensor['dtype']} is no dtype of torch's")
    return getattr(torch, DTYPES[tensor["dtype"]])


def parts(ranges):
    return tuple(slice(begin, end) for begin, end in ranges)


def as_written_by_hand(job):
    """With safetensors: `get_slice`, transposed and made contiguous; memory of our own, not pages of the file."""
    from safetensors import safe_open

    with contextlib.ExitStack() as stack:
        files = {}

        def cut(piece):
            if piece["file"] not in files:
                files[piece["file"]] = stack.enter_context(safe_open(piece["file"], framework="pt"))
            if piece["whole"]:
                return files[piece["file"]].get_tensor(piece["key"])
            return files[piece["file"]].get_slice(piece["key"])[parts(piece["from"])]

        return {name: assembled(tensor, cut) for name, tensor in job["tensors"].items()}


def assembled(tensor, cut):
    import torch

    pieces, dtype = tensor["pieces"], dtype_of(tensor)
    if len(pieces) == 1 and pieces[0]["swapped"]:
        return cut(pieces[0]).to(dtype).transpose(-1, -2).contiguous().reshape(tensor["shape"])
    if len(pieces) == 1:
        return cut(pieces[0]).to(dtype, copy=True).contiguous().reshape(tensor["shape"])
    whole = torch.empty(tensor["shape"], dtype=dtype)
    for piece in pieces:
        target_of(whole, piece).copy_(cut(piece))
    return whole


def target_of(tensor, piece):
    """The view of a native tensor that a piece of the checkpoint fills, with the axes that it has there."""
    view = tensor[parts(piece["to"])]
    if len(piece["from"]) < view.ndim:  # one expert's matrix
        view = view[0]
    return view.transpose(-1, -2) if piece["swapped"] else view


def with_reader(make_reader):
    """By a storage reader of torch.distributed.checkpoint, into such views of our tensors as adapters make."""

    def load(job):
        import torch
        from torch.distributed.checkpoint.metadata import MetadataIndex
        from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, ReadItem

        reader = make_reader(job)
        reader.set_up_storage_reader(reader.read_metadata(), True)
        tensors, views, items = {}, [], []
        for name, tensor in job["tensors"].items():
            tensors[name] = torch.empty(tensor["shape"], dtype=dtype_of(tensor))
            for piece in tensor["pieces"]:
                index = MetadataIndex(piece["key"], [0] * len(piece["from"]))
                place = MetadataIndex(piece["key"], index.offset, len(views))
                views.append(target_of(tensors[name], piece))
                items.append(
                    ReadItem(
                        type=LoadItemType.TENSOR,
                        dest_index=place,
                        dest_offsets=torch.Size([0] * len(piece["from"])),
                        storage_index=index,
                        storage_offsets=torch.Size([begin for begin, _ in piece["from"]]),
                        lengths=torch.Size([end - begin for begin, end in piece["from"]]),
                    )
                )
        reader.read_data(LoadPlan(items), Places(views)).wait()
        return tensors

    return load


class Places:
    """What a storage reader asks its planner for."""

    def __init__(self, views):
        self.views = views

    def resolve_tensor(self, item):
        return self.views[item.dest_index.index]

    def commit_tensor(self, item, tensor):
        pass


def torch_reader(job):
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

    return HuggingFaceStorageReader(job["checkpoint"], thread_count=job["threads"])


def automodel_reader(job):
    return importlib.import_module(AUTOMODEL_READER)._HuggingFaceStorageReader(job["checkpoint"])


def with_rankslice(job):
    import rankslice

    keys = ("rank", "world_size", "ep", "ep_shard", "threads", "io", "cache", "hugepages")
    return dict(rankslice.load(job["checkpoint"], **{key: job[key] for key in keys}).items())


TORCH_READER = "torch.distributed.checkpoint.hf_storage"
WAYS = {  # what is loaded with, the modules that have to be there, and the package whose version is told
    "rankslice in Python": (with_rankslice, ["rankslice"], "rankslice"),
    "safetensors": (as_written_by_hand, ["safetensors.torch"], "safetensors"),
    "torch DCP": (with_reader(torch_reader), ["safetensors.torch", TORCH_READER], "torch"),
    "NeMo Automodel": (with_reader(automodel_reader), ["safetensors.torch", AUTOMODEL_READER], "nemo-automodel"),
}


def introduced(modules, package):
    try:
        for module in ["torch", *modules]:
            importlib.import_module(module)
        return {"version": version_of(package)}
    except Exception as error:  # noqa: BLE001 (whatever a library may not like about this place)
        return {"why_not": f"{type(error).__name__}: {error}"}


def version_of(package):
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def differences(job, loaded):
    """What is not what the checkpoint has: names, dtypes, shapes, layout and values."""
    import torch

    expected = job["tensors"]
    found = [f"{name}: not expected" for name in sorted(loaded.keys() - expected.keys())]
    for name, tensor in expected.items():
        theirs = loaded.get(name)
        if theirs is None:
            found.append(f"{name}: missing")
        elif (theirs.dtype, list(theirs.shape)) != (dtype_of(tensor), tensor["shape"]):
            found.append(f"{name}: {theirs.dtype} {list(theirs.shape)}, expected {tensor['dtype']} {tensor['shape']}")
        elif not theirs.is_contiguous():
            found.append(f"{name}: not contiguous")
        else:
            bytes_of = theirs.detach().reshape(-1).view(torch.uint8).numpy()
            if hashlib.sha256(bytes_of).hexdigest() != tensor["sha256"]:
                found.append(f"{name}: other values")
    return found


def timed(job, load, answer):
    answer(os.getpid())
    sys.stdin.readline()
    tensors = load(job)
    answer("loaded")
    sys.stdin.readline()
    del tensors


def loaded_once(request, job, load, answer):
    """In a process of its own, which begins with the libraries of this one and none of its memory used."""
    child = os.fork()
    if child > 0:
        return os.waitpid(child, 0)[1] == 0
    try:
        if request == "check":
            answer(differences(job, load(job)))
        else:
            timed(job, load, answer)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def main(arguments):
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer

    def answer(found):
        print(json.dumps(found), file=answers, flush=True)

    load, modules, package = WAYS[arguments[1]]
    answer(introduced(modules, package))
    for request in iter(sys.stdin.readline, ""):
        job = json.loads(Path(arguments[0]).read_text())
        importlib.import_module("torch").set_num_threads(job["threads"])
        if not loaded_once(request.strip(), job, load, answer):
            sys.exit(1)
        answer("done")


if __name__ == "__main__":
    main(sys.argv[1:])
