"""What rankslice must compute for every family, written a second time from the rules, in plain numpy and torch.

Nothing here comes from the program's code: files are parsed by the safetensors package, tensors are sliced,
transposed and converted by torch, digests are computed with numpy's wrapping integers. Rule numbers are those of the
adapter rules that the project follows.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path

from reference_digest import digest, entry_factor, row_factors, word_factors  # noqa: F401
from reference_names import (  # noqa: F401
    STACKED,
    fqn,
    is_native_experts,
    is_split,
    is_stacked,
    is_tracked,
    place,
    prefix,
    scale_keys,
    text_only,
)
from reference_tensors import (  # noqa: F401
    BITS,
    Tensor,
    difference,
    differences,
    extents,
    metadata,
    raw_header,
    read_file,
    read_folder,
    shard_files,
    tensor,
)
from reference_values import assemble, cast, dequantised, swapped  # noqa: F401

# Who owns what ------------------------------------------------------------------------------------------------------


def owned_experts(experts, width, ep_rank):
    """Rule 9."""
    base, rest = divmod(experts, width)
    if ep_rank < rest:
        return range(ep_rank * (base + 1), (ep_rank + 1) * (base + 1))
    return range(ep_rank * base + rest, ep_rank * base + rest + base)


@dataclass(frozen=True)
class Mesh:
    ep_replicate: int
    ep: int
    ep_shard: int = 1

    @property
    def ranks(self):
        return self.ep_replicate * self.ep_shard * self.ep

    @property
    def sizes(self):
        return {"ep_replicate": self.ep_replicate, "ep_shard": self.ep_shard, "ep": self.ep}

    def coordinate(self, rank):
        """`ep` is the fastest (rule 13)."""
        of_replica, ep = divmod(rank, self.ep)
        replica, shard = divmod(of_replica, self.ep_shard)
        return {"ep_replicate": replica, "ep_shard": shard, "ep": ep}

    def __str__(self):
        return f"{self.ep_replicate}x{self.ep_shard}x{self.ep}"


def local_box(name, shape, mesh, rank):
    """The part of a native tensor that a rank holds, as a slice of each axis: of its experts (rule 9) its rows of
    axis 1 (rule 14), and all of a tensor that is not experts."""
    box = [slice(0, size) for size in shape]
    if is_native_experts(name):
        at = mesh.coordinate(rank)
        experts, rows = owned_experts(shape[0], mesh.ep, at["ep"]), shape[1] // mesh.ep_shard
        assert rows * mesh.ep_shard == shape[1], f"{name} {shape} on {mesh}"
        box[0] = slice(experts.start, experts.stop)
        box[1] = slice(at["ep_shard"] * rows, (at["ep_shard"] + 1) * rows)
    return tuple(box)


# The model ----------------------------------------------------------------------------------------------------------

DTYPES = {"preserve": "", "bfloat16": "BF16", "float16": "F16", "float32": "F32"}  # as options and configs say them


@dataclass(frozen=True)
class Model:
    """What must be known of a model to read its tensors."""

    family: str = "qwen3_5_moe"
    hidden: int = 0
    width: int = 0  # of an expert
    layout: str = "auto"  # of Qwen3-VL-MoE experts, where the shapes do not tell
    dtype: str = ""  # into which all floats are cast; empty: none
    trained: str = "BF16"  # what quantised weights become where `dtype` does not say so
    text_only: bool = False  # rule 43

    @classmethod
    def of(cls, folder, layout="auto", dtype="preserve", text_only=None):
        """`layout`, `dtype` and `text_only` are what the user asks for."""
        config = json.loads((Path(folder) / "config.json").read_text())
        text = config.get("text_config", config)
        dtypes = [source.get(name) for source in (text, config) for name in ("dtype", "torch_dtype")]
        trained = next((DTYPES[name] for name in dtypes if DTYPES.get(name)), "BF16")
        return cls(
            config["model_type"].removesuffix("_text"),
            text["hidden_size"],
            text["moe_intermediate_size"],
            layout,
            DTYPES[dtype],
            trained,
            config["model_type"].endswith("_text") if text_only is None else text_only,
        )

    def stores_swapped(self, hf_key, shape):
        """Whether axes 1 and 2 of stacked experts are exchanged in the file (rules 2, 3, 5a, 61)."""
        if self.family != "qwen3_vl_moe":
            return True
        native = {
            "gate_up_proj": (self.hidden, 2 * self.width),
            "down_proj": (self.width, self.hidden),
        }[hf_key.rsplit(".", 1)[1]]
        if native[0] == native[1]:
            return {"hub": False, "transformers": True}[self.layout]
        assert tuple(shape[1:]) in (native, native[::-1]), f"{hf_key} {shape}"
        return tuple(shape[1:]) != native

    def held_dtype(self, hf_key, dtype):
        """In which dtype the state dict holds what the checkpoint holds in `dtype`."""
        if dtype == "F8_E4M3":  # rules 58, 60
            return self.dtype or self.trained
        if dtype not in DTYPES.values():
            return dtype
        return "F32" if is_tracked(hf_key) else self.dtype or dtype  # rule 55

    def place(self, hf_key, model_prefix):
        """Nothing for what is left out."""
        found = place(hf_key, model_prefix, self.family)
        if not self.text_only:
            return found
        name = text_only(found.fqn)
        return name and replace(found, fqn=name)


QWEN3_5 = Model()


# Values -------------------------------------------------------------------------------------------------------------


def weights(checkpoint):
    """HF key -> (tensor, its block scales or nothing), of all but the scales (rules 4, 23, 60)."""
    found = {}
    for key, value in checkpoint.items():
        names = [name for name in scale_keys(key) if value.dtype == "F8_E4M3" and name in checkpoint]
        assert bool(names) == (value.dtype == "F8_E4M3"), key
        found[key] = value, names[0] if names else None
    scales = {name for _, name in found.values() if name}
    return {key: (value, checkpoint.get(name)) for key, (value, name) in found.items() if key not in scales}


def held_values(checkpoint, model=QWEN3_5):
    """HF key -> tensor in the shape of the file and the dtype of the state dict."""
    found = {}
    for key, (value, scales) in weights(checkpoint).items():
        dtype = model.held_dtype(key, value.dtype)
        found[key] = dequantised(value, scales, dtype) if scales else cast(value, dtype)
    return found


def native(hf_key, value, experts=None):
    """The native form of a Qwen3.5-MoE tensor, or of the given range of its experts."""
    if is_stacked(hf_key):
        return swapped(value if experts is None else value[experts.start : experts.stop])
    return cast(value, QWEN3_5.held_dtype(hf_key, value.dtype))


def global_state(checkpoint, model=QWEN3_5):
    """FQN -> whole native tensor, from HF key -> tensor."""
    model_prefix, state, split = prefix(checkpoint), {}, {}
    for key, value in held_values(checkpoint, model).items():
        at = model.place(key, model_prefix)
        if at is None:
            continue
        if at.kind == "split":
            split.setdefault(at.fqn, {})[at.expert, at.part] = value
        else:
            swap = at.kind == "grouped" and model.stores_swapped(key, value.shape)
            state[at.fqn] = swapped(value) if swap else value
    return state | {name: assemble(parts) for name, parts in split.items()}


def local_part(state, mesh, rank):
    """What a rank holds of whole native tensors."""
    return {name: value[local_box(name, value.shape, mesh, rank)] for name, value in state.items()}


def local_state(checkpoint, mesh, rank, model=QWEN3_5):
    """FQN -> the tensor that a rank holds."""
    return local_part(global_state(checkpoint, model), mesh, rank)


def local_places(state, mesh, rank):
    """FQN -> (global shape, where the local tensor begins in the global one)."""
    return {
        name: (list(value.shape), [part.start for part in local_box(name, value.shape, mesh, rank)])
        for name, value in state.items()
    }


def converted(checkpoint, model=QWEN3_5):
    """FQN -> dtype in the checkpoint, of tensors that are held in another one (rules 55, 58, `--dtype`)."""
    model_prefix, found = prefix(checkpoint), {}
    for key, (value, _) in weights(checkpoint).items():
        at = model.place(key, model_prefix)
        if at and model.held_dtype(key, value.dtype) != value.dtype:
            found[at.fqn] = value.dtype
    return found


def stored_digests(checkpoint, model=QWEN3_5):
    """HF key -> digest of the converted values, where they were converted."""
    held = held_values(checkpoint, model)
    return {key: digest(value) for key, value in held.items() if value.dtype != checkpoint[key].dtype}


def bytes_wanted(checkpoint, mesh, rank, model=QWEN3_5):
    """Bytes of the checkpoint that become a rank's tensors: its part of the experts, with all the scales of these, and
    all that is not experts."""
    state, model_prefix, wanted = global_state(checkpoint, model), prefix(checkpoint), 0
    for key, (value, scales) in weights(checkpoint).items():
        at, of_scales = model.place(key, model_prefix), scales.nbytes if scales else 0
        if at and at.kind == "dense":
            wanted += value.nbytes + of_scales
        elif at:
            experts = state[at.fqn].shape[0]
            owned = owned_experts(experts, mesh.ep, mesh.coordinate(rank)["ep"])
            if at.kind == "grouped":
                wanted += (value.nbytes // mesh.ep_shard + of_scales) // experts * len(owned)
            elif at.expert in owned:
                wanted += value.nbytes // mesh.ep_shard + of_scales
    return wanted


def dense(checkpoint, model=QWEN3_5):
    """The tensors that are not experts, by HF key, without scales."""
    return {key: value for key, (value, _) in weights(checkpoint).items() if model.place(key, "").kind == "dense"}
