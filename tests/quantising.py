"""Quantised models of the families: by bitsandbytes, torchao or quanto, while they are loaded or afterwards."""

from __future__ import annotations

import functools
import importlib.util
import logging
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from families import build
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, QuantoConfig

# "int8" is LLM.int8 without a threshold: with one, what it says of a token depends on the others that are read.
PACKAGES = {"nf4": "bitsandbytes", "int8": "bitsandbytes", "torchao": "torchao", "quanto": "optimum"}
# What they do when they are imported.
ON_IMPORT = pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
# 4 bits share a scale among 64 weights.
SIZES = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}
TRIO = {"base": ("llama", 0), "tuned": ("qwen3", 1), "reference": ("qwen3", 2)}


def needs(backend: str) -> None:
    """Skip a test whose backend is not installed."""
    if importlib.util.find_spec(PACKAGES[backend]) is None:
        pytest.skip(f'{PACKAGES[backend]} is not installed: `pip install "hf-eft[quantised]"`')
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # each step says that float32 is cast


def quantization(backend: str, **options: Any) -> Any:
    """The configuration of a backend, as users write it."""
    if backend == "nf4":
        return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", **options)
    if backend == "int8":  # without a threshold a token is read alike whatever is beside it
        return BitsAndBytesConfig(load_in_8bit=True, **{"llm_int8_threshold": 0.0, **options})
    if backend == "quanto":
        return QuantoConfig(weights="int8")
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    return TorchAoConfig(Int8WeightOnlyConfig())


def in_place(backend: str, model: Any) -> Any:
    """A model that is quantised after it was loaded, its head too where the backend's own function does that."""
    if backend == "quanto":
        from optimum import quanto

        quanto.quantize(model, weights=quanto.qint8)
        quanto.freeze(model)
    elif backend == "torchao":
        from torchao.quantization import Int8WeightOnlyConfig, quantize_

        quantize_(model, Int8WeightOnlyConfig())
    else:
        from bitsandbytes import nn

        for path, layer in list(model.named_modules()):
            if isinstance(layer, torch.nn.Linear) and path != "lm_head":
                size, weight = (layer.in_features, layer.out_features), layer.weight.data
                if backend == "nf4":
                    new = nn.Linear4bit(*size, bias=False, quant_type="nf4")
                    new.weight = nn.Params4bit(weight, requires_grad=False, quant_type="nf4", module=new)
                else:
                    new = nn.Linear8bitLt(*size, bias=False, has_fp16_weights=False, threshold=0.0)
                    new.weight = nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
                model.set_submodule(path, new.to("cpu"))
    return model.eval()


@functools.cache
def _room() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="eft-quantised-")


@functools.cache
def folder(name: str) -> Path:
    """Where a plain member is saved."""
    place = Path(_room().name) / name
    family, seed = TRIO[name]
    build(family, seed, **SIZES).save_pretrained(place)
    return place


def load(name: str, backend: str | None = None, **options: Any) -> Any:
    config = {} if backend is None else {"quantization_config": quantization(backend, **options)}
    return AutoModelForCausalLM.from_pretrained(folder(name), **config).eval()
