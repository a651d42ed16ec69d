"""NeMo Automodel: its models and its adapters, on a CPU."""

import sys
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).resolve().parents[1]))
import made  # noqa: E402


def model_of(folder, device="meta"):
    """Automodel's model of a checkpoint."""
    from nemo_automodel.components.models.common import BackendConfig

    backend = BackendConfig(attn="sdpa", linear="torch", rms_norm="torch", experts="torch", dispatcher="torch")
    # Constructors name a GPU for buffers that stay on the meta device here.
    torch.cuda.current_device = lambda: 0
    with torch.device(device):
        return automodel_class(folder)(made.config_of(folder), backend=backend).eval()


def automodel_class(folder):
    from nemo_automodel.components.models.qwen3_5_moe import model as qwen3_5_moe
    from nemo_automodel.components.models.qwen3_moe import model as qwen3_moe
    from nemo_automodel.components.models.qwen3_next import model as qwen3_next
    from nemo_automodel.components.models.qwen3_vl_moe import model as qwen3_vl_moe

    modules = {
        "qwen3_5_moe": qwen3_5_moe.Qwen3_5MoeForConditionalGeneration,
        "qwen3_moe": qwen3_moe.Qwen3MoeForCausalLM,
        "qwen3_next": qwen3_next.Qwen3NextForCausalLM,
        "qwen3_vl_moe": qwen3_vl_moe.Qwen3VLMoeForConditionalGeneration,
    }
    return modules[made.config_of(folder).model_type]


def from_hf(folder, device_mesh=None):
    """What Automodel's adapter makes of all tensors of a checkpoint."""
    adapter = model_of(folder).state_dict_adapter
    assert adapter.dtype == torch.bfloat16
    return adapter.from_hf(made.tensors_of(folder), device_mesh=device_mesh)
