"""Which class of transformers a member is: a language model, or one that sees as well."""

from __future__ import annotations

from typing import Any

from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
)


def classes_of(config: Any) -> dict[str, Any]:
    """The classes that transformers' auto classes make of a configuration, by name, each with its auto class; that of text first."""
    autos = (
        (AutoModelForCausalLM, MODEL_FOR_CAUSAL_LM_MAPPING),
        (AutoModelForImageTextToText, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING),
    )
    made = [(auto, mapping.get(type(config), None)) for auto, mapping in autos]
    return {each.__name__: auto for auto, each in reversed(made) if each is not None}


def auto_class(config: Any) -> Any:
    r"""
    What makes or loads the model of a configuration: `AutoModelForCausalLM`, or `AutoModelForImageTextToText` where only that does, or
    where the configuration says that its weights are those of such a class.

    Args:
        config (`PreTrainedConfig`): The configuration.
    """
    known = classes_of(config)
    named = [auto for name, auto in known.items() if name in (config.architectures or ())]
    if named or AutoModelForCausalLM in known.values() or not known:
        return named[0] if named else AutoModelForCausalLM
    return AutoModelForImageTextToText


def sees(config: Any) -> bool:
    """Whether models of a configuration take pictures: a processor may lie beside them, in place of a tokenizer."""
    known = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING.get(type(config), None) is not None
    return known or getattr(config, "vision_config", None) is not None
