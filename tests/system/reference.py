"""What rankslice must compute for both families, written a second time from the rules, in plain numpy and torch.

Nothing here comes from the program's code: files are parsed by the safetensors package, tensors are sliced,
transposed and converted by torch, digests are computed with numpy's wrapping integers. Rule numbers are those of the
adapter rules that the project follows.
"""

import json
import re
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors
import torch

# An element's bits are handled as an unsigned number of its size, so that the payload of a NaN counts.
BITS = {
    "BOOL": "<u1", "U8": "<u1", "I8": "<u1", "F8_E5M2": "<u1", "F8_E4M3": "<u1", "F8_E8M0": "<u1",
    "I16": "<u2", "U16": "<u2", "F16": "<u2", "BF16": "<u2",
    "I32": "<u4", "U32": "<u4", "F32": "<u4",
    "I64": "<u8", "U64": "<u8", "F64": "<u8",
}  # fmt: skip
TORCH_FLOATS = {"F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}
SIGNED = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class Tensor:
    dtype: str  # as safetensors spells it
    bits: np.ndarray  # unsigned, in the tensor's shape

    @property
    def shape(self):
        return self.bits.shape

    @property
    def nbytes(self):
        return self.bits.nbytes


def tensor(dtype, shape, data):
    return Tensor(dtype, np.frombuffer(data, BITS[dtype]).reshape(shape))


# Reading ------------------------------------------------------------------------------------------------------------


def read_file(path):
    """All tensors of one safetensors file, by name."""
    entries = safetensors.deserialize(Path(path).read_bytes())
    return {name: tensor(entry["dtype"], entry["shape"], entry["data"]) for name, entry in entries}


def shard_files(folder):
    """The files with weights: those that the index names, or all when there is no index."""
    indexes = sorted(Path(folder).glob("*.safetensors.index.json"))
    if not indexes:
        return sorted(Path(folder).glob("*.safetensors"))
    names = {name for index in indexes for name in json.loads(index.read_text())["weight_map"].values()}
    return [Path(folder) / name for name in sorted(names)]


def read_folder(folder):
    """All tensors of a Hugging Face checkpoint, by HF key."""
    found = {}
    for path in shard_files(folder):
        found.update(read_file(path))
    return found


def raw_header(path):
    """Length field, JSON and padding, as in the file."""
    with open(path, "rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        file.seek(0)
        return file.read(8 + size)


def metadata(path):
    return json.loads(raw_header(path)[8:]).get("__metadata__", {})


def extents(folder):
    """HF key -> (file name, first byte in the file, one past the last)."""
    found = {}
    for path in shard_files(folder):
        header = raw_header(path)
        for name, entry in json.loads(header[8:]).items():
            if name != "__metadata__":
                begin, end = entry["data_offsets"]
                found[name] = (path.name, len(header) + begin, len(header) + end)
    return found


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


# Names (rules 19-22, 32-39, 53-54) ----------------------------------------------------------------------------------

STACKED = re.compile(r"(?:model\.)?(?:language_model\.)?layers\.(\d+)\.mlp\.experts\.(gate_up_proj|down_proj)")
STACKED_MTP = re.compile(r"(?:model\.)?mtp\.layers\.(\d+)\.mlp\.experts\.(gate_up_proj|down_proj)")
STACKED_VL = re.compile(r"(?:model\.)?language_model\.layers\.(\d+)\.mlp\.experts\.(gate_up_proj|down_proj)")
PER_EXPERT = r"layers\.(\d+)\.mlp\.experts\.(\d+)\.(gate|up|down)_proj\.weight"
SPLIT = re.compile(rf"(?:model\.)?(?:language_model\.)?{PER_EXPERT}")
SPLIT_MTP = re.compile(rf"(?:model\.)?mtp\.{PER_EXPERT}")
STACKED_NAMES = {"gate_up_proj": "gate_and_up_projs", "down_proj": "down_projs"}
MTP_NAMES = {
    "mtp.fc.weight": "mtp.layers.0.eh_proj.weight",
    "mtp.pre_fc_norm_embedding.weight": "mtp.layers.0.enorm.weight",
    "mtp.pre_fc_norm_hidden.weight": "mtp.layers.0.hnorm.weight",
    "mtp.norm.weight": "mtp.layers.0.final_layernorm.weight",
}


def prefix(hf_keys):
    """Rule 32."""
    return "model." if any(key.startswith("model.") and not key.startswith("model.mtp.") for key in hf_keys) else ""


def is_stacked(hf_key):
    return bool(STACKED.fullmatch(hf_key) or STACKED_MTP.fullmatch(hf_key))


def is_split(hf_key):
    return bool(SPLIT.fullmatch(hf_key) or SPLIT_MTP.fullmatch(hf_key))


def is_native_experts(name):
    return name.endswith((".mlp.experts.gate_and_up_projs", ".mlp.experts.down_projs"))


def is_tracked(hf_key):
    """Rule 53: what the GDN holder keeps in F32."""
    return ".linear_attn." in hf_key and hf_key.endswith(("A_log", "dt_bias"))


def fqn(hf_key, model_prefix):
    """The native name in Qwen3.5-MoE. First match wins."""
    if match := STACKED.fullmatch(hf_key):  # rule 35
        layer, name = match.groups()
        return f"{model_prefix}language_model.layers.{layer}.mlp.experts.{STACKED_NAMES[name]}"
    if match := STACKED_MTP.fullmatch(hf_key):
        layer, name = match.groups()
        return f"mtp.layers.{layer}.mlp.experts.{STACKED_NAMES[name]}"
    if hf_key in MTP_NAMES:  # rule 34
        return MTP_NAMES[hf_key]
    name = hf_key.replace(".mlp.shared_expert.", ".mlp.shared_experts.")  # rule 38
    if name.startswith(("model.lm_head.", "model.mtp.")):
        name = name.removeprefix("model.")
    elif not name.startswith(("mtp.", "lm_head.", "model.")):
        name = model_prefix + name
    if is_tracked(name) and "._fp32_params." not in name:  # rule 54
        before, after = name.rsplit(".linear_attn.", 1)
        name = f"{before}.linear_attn._fp32_params.{after}"
    return name


def fqn_vl(hf_key, model_prefix):
    """The native name in Qwen3-VL-MoE."""
    if match := STACKED_VL.fullmatch(hf_key):  # rule 20
        layer, name = match.groups()
        return f"{model_prefix}language_model.layers.{layer}.mlp.experts.{STACKED_NAMES[name]}"
    return hf_key if hf_key.startswith(("model.", "lm_head.")) else model_prefix + hf_key  # rule 22


# Values (rules 1-5a, 35, 36, 39-41, 55, 61) -------------------------------------------------------------------------


@dataclass(frozen=True)
class Model:
    """What must be known of a model to read its tensors."""

    family: str = "qwen3_5_moe"
    hidden: int = 0
    width: int = 0  # of an expert
    layout: str = "auto"  # of Qwen3-VL-MoE experts, where the shapes do not tell

    @classmethod
    def of(cls, folder, layout="auto"):
        config = json.loads((Path(folder) / "config.json").read_text())
        text = config["text_config"]
        return cls(config["model_type"], text["hidden_size"], text["moe_intermediate_size"], layout)

    def stores_swapped(self, hf_key, shape):
        """Whether axes 1 and 2 of stacked experts are exchanged in the file (rules 2, 3, 5a, 61)."""
        if self.family == "qwen3_5_moe":
            return True
        native = {
            "gate_up_proj": (self.hidden, 2 * self.width),
            "down_proj": (self.width, self.hidden),
        }[hf_key.rsplit(".", 1)[1]]
        if native[0] == native[1]:
            return {"hub": False, "transformers": True}[self.layout]
        assert tuple(shape[1:]) in (native, native[::-1]), f"{hf_key} {shape}"
        return tuple(shape[1:]) != native


QWEN3_5 = Model()


def _to_torch(value):
    bits = value.bits if value.bits.flags.writeable else value.bits.copy()
    return torch.from_numpy(bits.view(f"<i{bits.itemsize}"))


def _from_torch(dtype, value):
    bits = value.contiguous().view(SIGNED[value.element_size()]).numpy()
    return Tensor(dtype, bits.view(BITS[dtype]))


def _swapped(value):
    return _from_torch(value.dtype, _to_torch(value).transpose(1, 2))


def native(hf_key, value, experts=None):
    """The native form of a Qwen3.5-MoE tensor, or of the given range of its experts."""
    if is_stacked(hf_key):
        held = value.bits if experts is None else value.bits[experts.start : experts.stop]
        return _swapped(Tensor(value.dtype, held))
    if is_tracked(hf_key) and value.dtype in TORCH_FLOATS:
        return _from_torch("F32", _to_torch(value).view(TORCH_FLOATS[value.dtype]).to(torch.float32))
    return value


def _assemble(split):
    """Stacked native experts from {(expert, projection): tensor} (rules 40, 41): gate | up side by side, and down."""
    experts = range(len(split) // 3)
    assert split.keys() == {(x, which) for x in experts for which in ("gate", "up", "down")}
    (dtype,) = {value.dtype for value in split.values()}
    turned = {at: value.bits.T for at, value in split.items()}
    both = [np.concatenate([turned[x, "gate"], turned[x, "up"]], axis=1) for x in experts]
    return Tensor(dtype, np.stack(both)), Tensor(dtype, np.stack([turned[x, "down"] for x in experts]))


def _global_qwen3_5(checkpoint):
    model_prefix, state, split = prefix(checkpoint), {}, {}
    for key, value in checkpoint.items():
        if match := SPLIT.fullmatch(key):  # rule 33
            module = f"{model_prefix}language_model.layers.{match[1]}"
        elif match := SPLIT_MTP.fullmatch(key):  # rule 36
            module = f"mtp.layers.{match[1]}"
        else:
            state[fqn(key, model_prefix)] = native(key, value)
            continue
        split.setdefault(module, {})[int(match[2]), match[3]] = value
    for module, parts in split.items():
        both, down = _assemble(parts)
        state |= {f"{module}.mlp.experts.gate_and_up_projs": both, f"{module}.mlp.experts.down_projs": down}
    return state


def _global_qwen3_vl(checkpoint, model):
    model_prefix = "model." if any(key.startswith("model.") for key in checkpoint) else ""  # rule 19
    state = {}
    for key, value in checkpoint.items():
        swapped = STACKED_VL.fullmatch(key) and model.stores_swapped(key, value.shape)
        state[fqn_vl(key, model_prefix)] = _swapped(value) if swapped else value
    return state


def global_state(checkpoint, model=QWEN3_5):
    """FQN -> whole native tensor, from HF key -> tensor."""
    return _global_qwen3_vl(checkpoint, model) if model.family == "qwen3_vl_moe" else _global_qwen3_5(checkpoint)


def local_state(checkpoint, mesh, rank, model=QWEN3_5):
    """FQN -> the tensor that a rank holds."""
    return {
        name: Tensor(value.dtype, value.bits[local_box(name, value.shape, mesh, rank)])
        for name, value in global_state(checkpoint, model).items()
    }


def local_places(checkpoint, mesh, rank, model=QWEN3_5):
    """FQN -> (global shape, where the local tensor begins in the global one)."""
    return {
        name: (list(value.shape), [part.start for part in local_box(name, value.shape, mesh, rank)])
        for name, value in global_state(checkpoint, model).items()
    }


def widened(checkpoint, model=QWEN3_5):
    """FQN -> dtype in the checkpoint, of tensors that are held in another one (rule 55)."""
    if model.family == "qwen3_vl_moe":
        return {}
    model_prefix = prefix(checkpoint)
    return {
        fqn(key, model_prefix): value.dtype
        for key, value in checkpoint.items()
        if is_tracked(key) and native(key, value).dtype != value.dtype
    }


def bytes_wanted(checkpoint, mesh, rank, model=QWEN3_5):
    """Bytes of the checkpoint that become a rank's tensors: its part of the experts, and all that is not experts."""
    local = local_state(checkpoint, mesh, rank, model)
    experts = sum(value.nbytes for name, value in local.items() if is_native_experts(name))
    return experts + sum(value.nbytes for value in dense(checkpoint, model).values())


def dense(checkpoint, model=QWEN3_5):
    """The tensors that are not experts, by HF key."""
    if model.family == "qwen3_vl_moe":
        return {key: value for key, value in checkpoint.items() if not STACKED_VL.fullmatch(key)}
    return {key: value for key, value in checkpoint.items() if not is_stacked(key) and not is_split(key)}


# digest/1 -----------------------------------------------------------------------------------------------------------

MASK64 = (1 << 64) - 1


def _mix64(x):
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & MASK64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & MASK64
    return x ^ (x >> 31)


def entry_factor(e):
    return (2 * _mix64((0x243F6A8885A308D3 + e) & MASK64) + 1) & MASK64


def _factors(count, multiplier, constant):
    x = np.arange(count, dtype=np.uint64)
    below_2_31 = np.uint64(0x7FFFFFFF)
    x = (x * np.uint64(multiplier) + np.uint64(constant)) & below_2_31
    x ^= x >> np.uint64(15)
    x = (x * np.uint64(0x2C1B3C6D)) & below_2_31
    x ^= x >> np.uint64(13)
    x = (x * np.uint64(0x297A2D39)) & below_2_31
    x ^= x >> np.uint64(16)
    return np.uint64(2) * x + np.uint64(1)


def row_factors(count):
    return _factors(count, 0x5851F42D, 0x13198A2E)


def word_factors(count):
    return _factors(count, 0x4C957F2D, 0x03707344)


def _as_words(value):
    """The words as [entries, rows, words of a row]."""
    bits = np.ascontiguousarray(value.bits)
    shape = bits.shape
    if bits.itemsize == 8:  # two words, low first, neighbours on the last axis
        shape = (*shape[:-1], shape[-1] * 2) if shape else (2,)
        bits = bits.view("<u4")
    entries = shape[0] if len(shape) >= 3 else 1
    row = shape[-1] if shape else 1
    rows = 1
    for size in shape[1:-1] if len(shape) >= 3 else shape[:-1]:
        rows *= size
    return bits.reshape(entries, rows, row)


def digest(value):
    """[sum, d(0), d(1), …] of an HF tensor; the list of entries only for rank 3 and above, and where there are any."""
    if 0 in value.shape:
        return [0]
    words = _as_words(value)
    entries, rows, row = words.shape
    with np.errstate(over="ignore"):
        of_row, of_word = row_factors(rows)[:, None], word_factors(row)
        q = [np.sum(of_row * of_word * (one.astype(np.uint64) + np.uint64(1)), dtype=np.uint64) for one in words]
    d = [entry_factor(e) * int(one) & MASK64 for e, one in enumerate(q)]
    total = sum(d) & MASK64
    return [total, *d] if len(value.shape) >= 3 else [total]


# Comparison ---------------------------------------------------------------------------------------------------------


def difference(expected, found):
    """What is different between two tensors, in words; empty when they are equal bit for bit."""
    if expected.dtype != found.dtype:
        return f"dtype {found.dtype} instead of {expected.dtype}"
    if expected.shape != found.shape:
        return f"shape {list(found.shape)} instead of {list(expected.shape)}"
    wrong = np.argwhere(np.asarray(expected.bits != found.bits))
    if len(wrong) == 0:
        return ""
    at = tuple(map(int, wrong[0]))
    return f"{len(wrong)} elements, first at {list(at)}: {found.bits[at]:#x} instead of {expected.bits[at]:#x}"


def differences(expected, found):
    """The same for two state dicts: one line per tensor that is missing, superfluous or different."""
    lines = [f"{name}: missing" for name in sorted(expected.keys() - found.keys())]
    lines += [f"{name}: should not be there" for name in sorted(found.keys() - expected.keys())]
    for name in sorted(expected.keys() & found.keys()):
        if what := difference(expected[name], found[name]):
            lines.append(f"{name}: {what}")
    return lines
