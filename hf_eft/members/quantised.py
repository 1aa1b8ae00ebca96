"""What quantised weights do that others do not: backends that look at the tokens beside one, or whose weights do not come back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

# What to do where a quantised member cannot be saved as it is.
QUANTISE_WHILE_LOADING = (
    "Save the combination of the models that were quantised, and quantise while loading: `EFTForCausalLM.from_pretrained(folder, "
    "member_kwargs={{{name!r}: {{'quantization_config': ...}}}})`."
)


def method_of(model: Any) -> str | None:
    """What transformers calls the way in which a model is quantised; `None` for one that it did not quantise."""
    quantizer = getattr(model, "hf_quantizer", None)
    method = getattr(getattr(quantizer, "quantization_config", None), "quant_method", None)
    return None if method is None else str(getattr(method, "value", method))


def check_alone(name: str, model: Any) -> None:
    """
    Raise if what a member says of a token depends on which tokens are read beside it, so that blocks and batches that are made up on the
    way change the text.
    """
    if looks_beside(model):
        raise ValueError(
            f"The member {name!r} ({type(model).__name__}) is quantised by bitsandbytes' LLM.int8 with a threshold, above which a feature "
            "of one token changes how all tokens are computed that are read with it. Speculation, a `seed` and continuous batching read "
            "other tokens together than plain decoding, and would give other texts. Load it with `BitsAndBytesConfig(load_in_8bit=True, "
            "llm_int8_threshold=0.0)`, or decode without them."
        )


def looks_beside(model: Any) -> bool:
    """Whether what a model says of a token depends on the others that it reads: LLM.int8 with a threshold."""
    # Known by the class of its weights: bitsandbytes need not be there to say that there are none.
    eights = (module for module in model.modules() if type(getattr(module, "weight", None)).__name__ == "Int8Params")
    return any(getattr(getattr(module, "state", None), "threshold", 0) > 0 for module in eights)


def check_intact(name: str, model: Any) -> None:
    """Raise if a member's weights are no longer what they were: bitsandbytes unpacks 4 bits wrongly that it packed for a CPU."""
    if _packed(model) is False:
        raise ValueError(
            f"The member {name!r} ({type(model).__name__}) has other weights than it was quantised to: bitsandbytes packed its 4 bits when "
            "it ran on this CPU, and does not unpack them right when its `state_dict()` is taken, as saving does. Load it anew."
        )


def check_kept(name: str, model: Any) -> None:
    """Raise if a quantised member could not be saved so that it comes back."""
    method, remedy = method_of(model), QUANTISE_WHILE_LOADING.format(name=name)
    check_intact(name, model)
    if _packed(model):
        raise ValueError(
            f"The member {name!r} ({type(model).__name__}) cannot be saved: bitsandbytes packed its 4 bits when it ran on this CPU, and "
            "does not unpack them right: neither the folder nor the member itself would be what it is now. Save it before it runs. "
            f"Or: {remedy}"
        )
    if method is not None and not model.hf_quantizer.is_serializable():
        raise ValueError(
            f"The member {name!r} ({type(model).__name__}) cannot be saved: it is quantised by {method}, which transformers does not save. "
            f"{remedy}"
        )


def check_learns(name: str, model: Any) -> None:
    """Raise if what is learnt below a layer of a member would not be: 4 bits that are packed for a CPU let no gradient through."""
    if _packed(model) is not None:
        raise ValueError(
            f"The member {name!r} ({type(model).__name__}) cannot learn: bitsandbytes packed the 4 bits under its adapter when they "
            "were read with on this CPU, and lets no gradient through them. Give a reference in bfloat16 or float32, or quantised by "
            "another backend; or learn on an accelerator."
        )


def _packed(model: Any) -> bool | None:
    """Whether 4-bit weights are packed for the CPU; `False` if they were and are not now, `None` if they never were."""
    states: list[Any] = [getattr(parameter, "quant_state", None) for parameter in model.parameters()]
    said = [state.packing_format_for_cpu for state in states if hasattr(state, "packing_format_for_cpu")]
    return all(said) if said else None


def plain_conversions(model: Any) -> list[Any] | None:
    """
    How transformers changed a model's weights when it loaded them, without what its quantisation did, which saving cannot and need not
    revert; `None` where there is nothing of the kind.
    """
    conversions = getattr(model, "_weight_conversions", None)
    if conversions is None or method_of(model) is None:
        return None
    return [each for each in conversions if not any(hasattr(step, "hf_quantizer") for step in getattr(each, "operations", ()))]


def values_of(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """
    The plain tensors that a model's weights are made of, by name. (Those of 4 bits that are packed for a CPU are not asked for their
    `state_dict()`, which would change them.)
    """
    if _packed(model) is None:
        tensors: Any = model.state_dict()
    else:
        tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name, value in tensors.items():
        yield from _plain(name, value)


def _plain(name: str, value: Any) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(value, tuple):
        for i, part in enumerate(value):
            yield from _plain(f"{name}.{i}", part)
    elif is_wrapped(value):
        for part in value.__tensor_flatten__()[0]:
            yield from _plain(f"{name}.{part}", getattr(value, part))
    elif isinstance(value, torch.Tensor):
        yield name, value.dequantize() if value.is_quantized else value


def is_wrapped(value: Any) -> bool:
    """Whether a tensor is made of others, as quantised ones are. (That of a process's part is a tensor like others.)"""
    return hasattr(value, "__tensor_flatten__") and not hasattr(value, "full_tensor")
