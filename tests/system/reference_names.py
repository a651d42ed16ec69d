"""Where the tensors of a Hugging Face checkpoint belong (rules 19-22, 32-39, 43, 53-54), family by family."""

import re
from dataclasses import dataclass

STACKED = re.compile(r"(?:model\.)?(?:language_model\.)?layers\.(\d+)\.mlp\.experts\.(gate_up_proj|down_proj)")
STACKED_MTP = re.compile(r"(?:model\.)?mtp\.layers\.(\d+)\.mlp\.experts\.(gate_up_proj|down_proj)")
STACKED_VL = re.compile(r"(?:model\.)?language_model\.layers\.(\d+)\.mlp\.experts\.(gate_up_proj|down_proj)")
PER_EXPERT = r"layers\.(\d+)\.mlp\.experts\.(\d+)\.(gate|up|down)_proj\.weight"
SPLIT = re.compile(rf"(?:model\.)?(?:language_model\.)?{PER_EXPERT}")
SPLIT_MTP = re.compile(rf"(?:model\.)?mtp\.{PER_EXPERT}")
VISION = re.compile(r"(?:model\.)?visual\..*")
STACKED_NAMES = {"gate_up_proj": "gate_and_up_projs", "down_proj": "down_projs"}
MTP_NAMES = {
    "mtp.fc.weight": "mtp.layers.0.eh_proj.weight",
    "mtp.pre_fc_norm_embedding.weight": "mtp.layers.0.enorm.weight",
    "mtp.pre_fc_norm_hidden.weight": "mtp.layers.0.hnorm.weight",
    "mtp.norm.weight": "mtp.layers.0.final_layernorm.weight",
}
WITHOUT_PARTS = {"qwen3_vl_moe", "qwen3_moe"}  # families that rename nothing but experts


@dataclass(frozen=True)
class Place:
    """What an HF tensor is in the model."""

    fqn: str
    kind: str = "dense"  # or "grouped", or "split": one matrix of one expert
    expert: int = 0
    part: str = ""  # of a split one: gate, up, down


def prefix(hf_keys):
    """Rules 19, 32."""
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


def scale_keys(hf_key):
    """Rules 4, 23: under which keys the block scales of a weight may stand."""
    return [f"{hf_key}_scale_inv", f"{hf_key.removesuffix('.weight')}_scale_inv"]


def _experts(hf_key, grouped, split, module):
    """The place of an expert tensor, if it is one: `module` says where the experts of a layer are natively."""
    if match := grouped.fullmatch(hf_key):
        return Place(f"{module(match[1])}.mlp.experts.{STACKED_NAMES[match[2]]}", "grouped")
    if match := split and split.fullmatch(hf_key):
        name = "down_projs" if match[3] == "down" else "gate_and_up_projs"
        return Place(f"{module(match[1])}.mlp.experts.{name}", "split", int(match[2]), match[3])
    return None


def _plain(hf_key, model_prefix):
    """Rule 22."""
    return hf_key if hf_key.startswith(("model.", "lm_head.")) else model_prefix + hf_key


def _renamed(hf_key, model_prefix):
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


def place(hf_key, model_prefix, family="qwen3_5_moe"):
    """The first rule that matches decides."""
    if family == "qwen3_vl_moe":  # rule 20
        found = _experts(hf_key, STACKED_VL, None, lambda layer: f"{model_prefix}language_model.layers.{layer}")
    elif family == "qwen3_5_moe":  # rules 33, 35
        found = _experts(hf_key, STACKED, SPLIT, lambda layer: f"{model_prefix}language_model.layers.{layer}")
    else:
        found = _experts(hf_key, STACKED, SPLIT, lambda layer: f"{model_prefix}layers.{layer}")
    if not found and family not in WITHOUT_PARTS:  # rules 35, 36
        found = _experts(hf_key, STACKED_MTP, SPLIT_MTP, lambda layer: f"mtp.layers.{layer}")
    if found:
        return found
    return Place((_plain if family in WITHOUT_PARTS else _renamed)(hf_key, model_prefix))


def text_only(name):
    """Rule 43: the name in a model that is the text part only; nothing for the vision part."""
    if VISION.fullmatch(name):
        return None
    return re.sub(r"^(model\.)?language_model\.", r"\1", name)


def fqn(hf_key, model_prefix, family="qwen3_5_moe"):
    """The native name."""
    return place(hf_key, model_prefix, family).fqn
