"""The embedded family."""

from __future__ import annotations

from typing import Any

import pytest

from hf_eft import EFTForCausalLM


@pytest.fixture(scope="module")
def tokenizer(family: Any) -> Any:
    return family.tokenizer


@pytest.fixture
def trained(family: Any) -> EFTForCausalLM:
    return EFTForCausalLM.from_models(family.base, tuned=family.tuned, reference=family.reference)
