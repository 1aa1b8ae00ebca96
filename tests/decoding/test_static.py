"""Static caches are asked of members only by calls that ask for one."""

from __future__ import annotations

import pytest
import torch
from families import prompts, shared

from hf_eft import EFTForCausalLM
from hf_eft.members import checks


def test_members_that_no_static_cache_holds_are_refused_where_one_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*args: object, **options: object) -> None:
        raise TypeError("no such layer")

    model = EFTForCausalLM.from_models(shared("llama", 0), tuned=shared("llama", 1), reference=shared("llama", 2))
    expected = model.generate(**prompts("even"), max_new_tokens=3)
    assert torch.equal(model.generate(**prompts("even"), max_new_tokens=3, cache_implementation="static"), expected)
    monkeypatch.setattr(checks, "StaticCache", refuses)
    assert torch.equal(model.generate(**prompts("even"), max_new_tokens=3), expected)
    with pytest.raises(ValueError, match=r"'base' .* has layers whose states no static cache holds"):
        model.generate(**prompts("even"), max_new_tokens=3, cache_implementation="static")
