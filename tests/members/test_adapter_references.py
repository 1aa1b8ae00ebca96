"""The reference of adapters, where none is given, and what the model under one is."""

from __future__ import annotations

import pytest
from adapted import adapted
from families import build, shared

from hf_eft import Combination, EFTForCausalLM
from hf_eft.members.adapters.views import without_adapters

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")


def test_adapters_of_two_models_do_not_say_which_is_the_reference() -> None:
    (polite, _), (brief, _) = adapted(seed=1), adapted(seed=2)
    weights = Combination.steer({"polite": 0.5, "brief": 0.5})
    with pytest.raises(ValueError, match="names 'reference', but the members are 'base', 'polite', 'brief'"):
        EFTForCausalLM.from_models(shared("llama", 0), tuned={"polite": polite, "brief": brief}, combination=weights)
    one = EFTForCausalLM.from_models(
        shared("llama", 0), tuned={"polite": polite}, combination=Combination.steer({"polite": 1.0})
    )
    assert list(one.members) == ["base", "polite", "reference"]  # the model under the one adapter


def test_names_of_weights_are_the_model_s_own_without_the_adapter_that_brought_others() -> None:
    model = build("llama", 1)
    model._weight_conversions = ["those of the model"]
    assert without_adapters(model)._weight_conversions == ["those of the model"]
    model._hf_peft_config_loaded = True  # as transformers loads an adapter, with how its names became the model's
    view = without_adapters(model)
    assert not hasattr(view, "_weight_conversions") and not view._hf_peft_config_loaded
    assert model._weight_conversions and model._hf_peft_config_loaded
