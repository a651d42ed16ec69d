"""A checkpoint made without the program, by hand, with awkward values and names, and the ways to break it."""

import json
import re
import shutil
import struct
from pathlib import Path

import numpy as np

import reference

HIDDEN, INTERMEDIATE, SHARED, VOCAB = 16, 12, 8, 40
KEY_HEADS, VALUE_HEADS, HEAD, ATTENTION_HEADS = 2, 4, 4, 2
MTP_LAYERS = 1


# Writing safetensors by hand ----------------------------------------------------------------------------------------


def header_bytes(entries, metadata=None, pad=0):
    """A legal header that no common writer would make: spaces in the JSON, metadata last, padding of its own."""
    fields = dict(entries)
    if metadata is not None:
        fields["__metadata__"] = metadata
    text = json.dumps(fields, separators=(", ", " : ")).encode() + b" " * pad
    return struct.pack("<Q", len(text)) + text


def write_safetensors(path, tensors, metadata=None, pad=0):
    """Tensors in the given order: [(name, dtype, array of bits)]. Returns what stands before their data."""
    entries, data = {}, bytearray()
    for name, dtype, bits in tensors:
        place = [len(data), len(data) + bits.nbytes]
        entries[name] = {"shape": list(bits.shape), "dtype": dtype, "data_offsets": place}
        data += bits.tobytes()
    header = header_bytes(entries, metadata, pad)
    Path(path).write_bytes(header + data)
    return header


def edit_header(path, edit):
    """Give a file the header that `edit` makes of the old one (a dict, or bytes of JSON); data unchanged."""
    old = reference.raw_header(path)
    data = Path(path).read_bytes()[len(old) :]
    new = edit(json.loads(old[8:]))
    text = new if isinstance(new, bytes) else json.dumps(new).encode()
    Path(path).write_bytes(struct.pack("<Q", len(text)) + text + data)


def edit_json(path, edit):
    content = json.loads(Path(path).read_text())
    edit(content)
    Path(path).write_text(json.dumps(content, indent=2))


INDEX = "model.safetensors.index.json"


def rewrite(path, edit):
    """Write a file anew with the (name, tensor) pairs that `edit` makes of each of its own."""
    pairs = [new for name, value in reference.read_file(path).items() for new in edit(name, value)]
    write_safetensors(path, [(name, value.dtype, value.bits) for name, value in pairs], {"format": "pt"})


def remove_tensor(folder, key):
    rewrite(file_of(folder, key), lambda name, value: [] if name == key else [(name, value)])
    edit_json(folder / INDEX, lambda index: index["weight_map"].pop(key))


def add_tensor(folder, beside, key, value):
    """A new tensor right after another one."""
    path = file_of(folder, beside)
    rewrite(path, lambda name, old: [(name, old), (key, value)] if name == beside else [(name, old)])
    edit_json(folder / INDEX, lambda index: index["weight_map"].update({key: path.name}))


def replace_tensor(folder, key, value):
    rewrite(file_of(folder, key), lambda name, old: [(name, value if name == key else old)])


def rename_tensor(folder, old, new):
    def renamed(entries):
        return {new if key == old else key: entry for key, entry in entries.items()}

    edit_header(file_of(folder, old), renamed)
    edit_json(folder / INDEX, lambda index: index.update(weight_map=renamed(index["weight_map"])))


# A hand-written Qwen3.5-MoE -----------------------------------------------------------------------------------------


def moe_shapes(prefix, experts, width, hidden):
    return {
        f"{prefix}.mlp.gate.weight": [experts, hidden],
        f"{prefix}.mlp.experts.gate_up_proj": [experts, 2 * width, hidden],
        f"{prefix}.mlp.experts.down_proj": [experts, hidden, width],
        f"{prefix}.mlp.shared_expert.gate_proj.weight": [SHARED, hidden],
        f"{prefix}.mlp.shared_expert.up_proj.weight": [SHARED, hidden],
        f"{prefix}.mlp.shared_expert.down_proj.weight": [hidden, SHARED],
        f"{prefix}.mlp.shared_expert_gate.weight": [1, hidden],
        f"{prefix}.input_layernorm.weight": [hidden],
        f"{prefix}.post_attention_layernorm.weight": [hidden],
    }


def attention_shapes(prefix, hidden):
    width = ATTENTION_HEADS * HEAD
    return {
        f"{prefix}.self_attn.q_proj.weight": [2 * width, hidden],
        f"{prefix}.self_attn.k_proj.weight": [HEAD, hidden],
        f"{prefix}.self_attn.v_proj.weight": [HEAD, hidden],
        f"{prefix}.self_attn.o_proj.weight": [hidden, width],
        f"{prefix}.self_attn.q_norm.weight": [HEAD],
        f"{prefix}.self_attn.k_norm.weight": [HEAD],
    }


def _linear_attention_shapes(prefix, hidden):
    mixed = 2 * HEAD * KEY_HEADS + HEAD * VALUE_HEADS
    return {
        f"{prefix}.linear_attn.in_proj_qkv.weight": [mixed, hidden],
        f"{prefix}.linear_attn.in_proj_z.weight": [HEAD * VALUE_HEADS, hidden],
        f"{prefix}.linear_attn.in_proj_a.weight": [VALUE_HEADS, hidden],
        f"{prefix}.linear_attn.in_proj_b.weight": [VALUE_HEADS, hidden],
        f"{prefix}.linear_attn.conv1d.weight": [mixed, 1, 4],
        f"{prefix}.linear_attn.dt_bias": [VALUE_HEADS],
        f"{prefix}.linear_attn.A_log": [VALUE_HEADS],
        f"{prefix}.linear_attn.norm.weight": [HEAD],
        f"{prefix}.linear_attn.out_proj.weight": [hidden, HEAD * VALUE_HEADS],
    }


def mini_shapes(experts, layers, width=INTERMEDIATE, hidden=HIDDEN):
    shapes = {
        "model.language_model.embed_tokens.weight": [VOCAB, hidden],
        "model.language_model.norm.weight": [hidden],
        "lm_head.weight": [VOCAB, hidden],
        "model.visual.patch_embed.proj.weight": [6, 3, 2, 2, 2],
        "model.visual.patch_embed.proj.bias": [6],
        "mtp.fc.weight": [hidden, 2 * hidden],
        "mtp.norm.weight": [hidden],
        "mtp.pre_fc_norm_embedding.weight": [hidden],
        "mtp.pre_fc_norm_hidden.weight": [hidden],
    }
    for layer in range(layers):
        prefix = f"model.language_model.layers.{layer}"
        attention = attention_shapes if is_full_attention(layer, layers) else _linear_attention_shapes
        shapes |= moe_shapes(prefix, experts, width, hidden) | attention(prefix, hidden)
    mtp = "mtp.layers.0"
    return shapes | moe_shapes(mtp, experts, width, hidden) | attention_shapes(mtp, hidden)


def is_full_attention(layer, layers):
    """Every fourth layer, or the last of fewer."""
    return (layer + 1) % min(4, layers) == 0


def mini_config(experts, layers, width=INTERMEDIATE, hidden=HIDDEN):
    return {
        "architectures": ["Qwen3_5MoeForConditionalGeneration"],
        "model_type": "qwen3_5_moe",
        "text_config": {
            "model_type": "qwen3_5_moe_text",
            "dtype": "bfloat16",
            "hidden_size": hidden,
            "moe_intermediate_size": width,
            "shared_expert_intermediate_size": SHARED,
            "num_experts": experts,
            "num_experts_per_tok": 2,
            "num_hidden_layers": layers,
            "mtp_num_hidden_layers": MTP_LAYERS,
            "full_attention_interval": min(4, layers),
            "layer_types": [
                "full_attention" if is_full_attention(layer, layers) else "linear_attention" for layer in range(layers)
            ],
            "vocab_size": VOCAB,
        },
        "vision_config": {"model_type": "qwen3_5_moe", "depth": 0, "hidden_size": 6},
    }


def write_mini(folder, experts=6, layers=4, shards=3):
    """A grouped checkpoint of about 100 KB whose elements are random bits: NaNs of every payload, infinities, minus
    zero, subnormals. Its side files have awkward names, one is empty."""
    folder = Path(folder)
    folder.mkdir(parents=True)
    random = np.random.default_rng(20)
    tensors = []
    for name, shape in mini_shapes(experts, layers).items():
        wide = name.endswith(("A_log", "linear_attn.norm.weight"))
        bits = random.integers(1, 1 << (32 if wide else 16), shape, dtype="u4").astype("<u4" if wide else "<u2")
        tensors.append((name, "F32" if wide else "BF16", bits))
    tensors.sort(key=lambda item: item[0][::-1])  # an order that nobody else uses
    weight_map = {}
    for n in range(shards):
        file = f"model.safetensors-{n + 1:05}-of-{shards:05}.safetensors"
        write_safetensors(folder / file, tensors[n::shards], {"format": "pt", "made by": "hand"}, pad=n)
        weight_map |= {name: file for name, _, _ in tensors[n::shards]}
    total = sum(bits.nbytes for _, _, bits in tensors)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    (folder / "config.json").write_text(json.dumps(mini_config(experts, layers), indent=2))
    (folder / "tokenizer.json").write_bytes(bytes(range(256)) * 40)
    (folder / "100%.txt").write_text("a name that a store has to escape\n")
    (folder / "notes ü.md").write_text("a name with a space and a letter beyond ASCII\n")
    (folder / "empty.txt").touch()
    return folder


def copy(source, target):
    """A copy to break."""
    return Path(shutil.copytree(source, target))


def file_of(folder, hf_key):
    return Path(folder) / reference.extents(folder)[hf_key][0]


def split_experts(folder, scales=False):
    """Turn decoder experts into one tensor per expert and projection; with scales, into block-FP8 ones."""
    checkpoint = reference.read_folder(folder)
    grouped = [key for key in checkpoint if reference.STACKED.fullmatch(key)]
    tensors = [(key, value.dtype, value.bits) for key, value in checkpoint.items() if key not in grouped]
    for key in grouped:
        stem, projection = key.rsplit(".", 1)
        for x, expert in enumerate(checkpoint[key].bits):
            parts = (
                {"gate_proj": expert[:INTERMEDIATE], "up_proj": expert[INTERMEDIATE:]}
                if projection == "gate_up_proj"
                else {"down_proj": expert}
            )
            for name, bits in parts.items():
                weight = f"{stem}.{x}.{name}.weight"
                if scales:
                    tensors.append((weight, "F8_E4M3", (bits & 0x77).astype("<u1")))
                    tensors.append((f"{weight}_scale_inv", "BF16", np.full((1, 1), 0x3F80, "<u2")))
                else:
                    tensors.append((weight, "BF16", bits))
    for path in [*Path(folder).glob("*.safetensors"), *Path(folder).glob("*.index.json")]:
        path.unlink()
    write_safetensors(Path(folder) / "model.safetensors", tensors, {"format": "pt"})
    if scales:
        quantization = {"quant_method": "fp8", "weight_block_size": [128, 128]}
        edit_json(Path(folder) / "config.json", lambda config: config.update(quantization_config=quantization))


# Comparing folders --------------------------------------------------------------------------------------------------


def folder_files(folder):
    return {path.name: path for path in Path(folder).iterdir() if path.is_file()}


def folder_differences(expected, found):
    """One line per regular file of the top level that is missing or different, and per superfluous entry."""
    want, have = folder_files(expected), folder_files(found)
    entries = {path.name for path in Path(found).iterdir()}
    changed = [name for name in want.keys() & have.keys() if want[name].read_bytes() != have[name].read_bytes()]
    return [
        *(f"{name}: missing" for name in sorted(want.keys() - have.keys())),
        *(f"{name}: should not be there" for name in sorted(entries - want.keys())),
        *(f"{name}: differs" for name in sorted(changed)),
    ]


def differing_bytes(expected, found):
    """(file name, offset) of every byte that differs between two folders with the same files."""
    want, have = folder_files(expected), folder_files(found)
    assert want.keys() == have.keys()
    places = []
    for name in sorted(want):
        a, b = (np.fromfile(folder[name], "u1") for folder in (want, have))
        assert len(a) == len(b), name
        places += [(name, int(at)) for at in np.flatnonzero(a != b)]
    return places


def layer_of(key):
    """The number of the layer that a name belongs to."""
    return int(re.search(r"layers\.(\d+)\.", key).group(1))
