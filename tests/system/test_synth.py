"""`synth` makes what transformers, safetensors and huggingface_hub would."""

import json

import numpy as np
import pytest
import safetensors

WORD = 2**64 - 1


def _mix(x):
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & WORD
    x = (x ^ x >> 27) * 0x94D049BB133111EB & WORD
    return x ^ x >> 31


def _mix_array(x):
    x = (x ^ x >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ x >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return x ^ x >> np.uint64(31)


def expected_bytes(seed, name, dtype, size):
    """The values that src/synth/values.hpp defines."""
    fnv = 0xCBF29CE484222325
    for byte in name.encode():
        fnv = (fnv ^ byte) * 0x100000001B3 & WORD
    key = _mix(fnv ^ _mix(seed))
    if dtype == "BF16":
        keep, base = 0x83FF * 0x0001000100010001, 0x3B80 * 0x0001000100010001
    else:
        keep, base = (0x00FFFFFF, 0x3F000000) if name.endswith("A_log") else (0x83FFFFFF, 0x3B800000)
        keep, base = keep * 0x0000000100000001, base * 0x0000000100000001
    index = np.arange((size + 7) // 8, dtype=np.uint64)
    words = (_mix_array(np.uint64(key) + index * np.uint64(0x9E3779B97F4A7C15)) & np.uint64(keep)) + np.uint64(base)
    return words.astype("<u8").tobytes()[:size]


def on_meta_device(folder):
    """{name: tensor} of the model that transformers builds from the folder's config.json, without memory."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = transformers.AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        model = transformers.AutoModelForImageTextToText.from_config(config)
    assert type(model).__name__ == config.architectures[0]
    return model.state_dict()


def test_transformers_builds_the_same_tensors_from_the_config(tiny, tiny_tensors):
    expected = {name: list(tensor.shape) for name, tensor in on_meta_device(tiny).items()}
    made = {name: list(tensor.shape) for name, tensor in tiny_tensors.items() if not name.startswith("mtp.")}
    assert made == expected


def test_the_mtp_block_is_one_full_attention_layer(tiny_tensors):
    layer = "model.language_model.layers.3."  # of four layers the one with full attention
    shapes = {name: tensor.shape for name, tensor in tiny_tensors.items()}
    decoder = {name[len(layer) :]: shape for name, shape in shapes.items() if name.startswith(layer)}
    mtp = {name[len("mtp.") :]: shape for name, shape in shapes.items() if name.startswith("mtp.")}
    (hidden,) = shapes["model.language_model.norm.weight"]
    around = {"fc.weight": (hidden, 2 * hidden)}
    around |= {f"{norm}.weight": (hidden,) for norm in ("norm", "pre_fc_norm_embedding", "pre_fc_norm_hidden")}
    assert mtp == around | {f"layers.0.{name}": shape for name, shape in decoder.items()}


def test_every_element_is_the_documented_hash(tiny_tensors):
    for name, tensor in tiny_tensors.items():
        assert tensor.bits.tobytes() == expected_bytes(0, name, tensor.dtype, tensor.nbytes), name


def test_safetensors_opens_every_file(tiny):
    pytest.importorskip("torch")
    for path in sorted(tiny.glob("*.safetensors")):
        with safetensors.safe_open(path, framework="pt") as file:
            assert file.metadata() == {"format": "pt"}
            for name in file.keys():
                assert file.get_tensor(name).isfinite().all(), name


def test_huggingface_hub_would_write_the_same_files_and_index(tiny, tiny_tensors):
    hub = pytest.importorskip("huggingface_hub")
    order = list(on_meta_device(tiny))
    order += sorted(name for name in tiny_tensors if name.startswith("mtp."))
    split = hub.serialization.split_state_dict_into_shards_factory(
        {name: tiny_tensors[name] for name in order},
        get_storage_size=lambda tensor: tensor.nbytes,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=4 << 20,
    )
    index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
    expected = json.dumps(index, indent=2, sort_keys=True) + "\n"
    assert (tiny / "model.safetensors.index.json").read_text() == expected


def test_the_tokenizer_loads(tiny):
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny)
    assert tokenizer.decode(tokenizer("<|im_start|>the theatre<|im_end|>").input_ids) == (
        "<|im_start|>the theatre<|im_end|>"
    )
