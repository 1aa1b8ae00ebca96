"""What the vLLM plugin has to say again, as it may not import this package, is the same."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

from hf_eft.files import trust
from hf_eft.recipe.shorthands import recipe

PLUGIN = Path(__file__).resolve().parents[2] / "vllm_eft"


@pytest.fixture(autouse=True)
def _found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(PLUGIN))


def test_a_folder_may_say_the_same() -> None:
    theirs = importlib.import_module("vllm_eft.trust")
    assert (theirs.KEYS, theirs.LOST, theirs.MAX_MEMBERS) == (trust._KEYS, trust.LOST, trust.MAX_MEMBERS)


@pytest.mark.parametrize(
    ("names", "asked"),
    [
        (("base", "tuned", "reference"), {"alpha": 0.5}),
        (("base", "tuned", "reference"), {"beta": 2.0}),
        (("base", "a", "b", "reference"), {"weights": {"b": 0.7}}),
        (("tuned", "reference"), {"weights": {"tuned": 0.25}}),
        (("a", "b"), {"weights": {"a": 0.5, "b": 0.5}}),
    ],
)
def test_a_request_means_the_same(names: tuple[str, ...], asked: dict[str, Any]) -> None:
    ours = recipe(names, **asked)
    theirs = importlib.import_module("vllm_eft.recipe").Recipe(names, {}, dict.fromkeys(names, 1.0))
    assert theirs.asked(asked) == [pytest.approx([ours.coefficient(name) for name in names])]


def test_a_folder_of_several_tokenizers_is_refused() -> None:
    configuration = importlib.import_module("vllm_eft.config").EFTConfig
    for vocabulary in trust.VOCABULARIES:
        with pytest.raises(ValueError, match=f"different tokenizers.*'{vocabulary}'"):
            configuration(vocabulary=vocabulary)
