"""What members in units or bytes are views of: for who saves them, and who writes texts for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from ..members.adapters import Adapted
from ..members.parts import Parts
from ..spelling.model import SpelledModel

_DEFAULTS = {"covers": 4, "threshold": 1e-3, "as_tokens": True}  # what `vocabulary=` makes views with


@dataclass(frozen=True)
class Beneath:
    r"""
    The members of a combination in units or bytes as they were given.

    Args:
        vocabulary (`str`): `"tokens"` or `"bytes"`.
        models (`Mapping[str, PreTrainedModel]`): By member, the model that is read.
        adapters (`Mapping[str, Adapted]`): What each of these is, where members are adapters.
        tokenizers (`Mapping[str, PreTrainedTokenizerBase or ProcessorMixin]`): Each member's own.
        spellers (`Mapping[str, PreTrainedTokenizerBase]`): By member, what cuts a text as the combination writes it.
    """

    vocabulary: str
    models: Mapping[str, PreTrainedModel]
    adapters: Mapping[str, Adapted]
    tokenizers: Mapping[str, Any]
    spellers: Mapping[str, Any]

    def parts(self, members: Mapping[str, PreTrainedModel]) -> tuple[Parts, dict[str, PreTrainedModel]]:
        r"""
        What there is to save, and the model of each member.

        Args:
            members (`Mapping[str, PreTrainedModel]`): The members as they run now: some may have been replaced.

        Raises:
            `ValueError`: If a member is a view with other options than a folder would bring back.
        """
        found = {}
        for name, member in members.items():
            found[name] = model = member.model if isinstance(member, SpelledModel) else member
            if model is not self.models.get(name):
                raise ValueError(
                    f"The member {name!r} is not the one that was combined in units or bytes, so that a folder could not bring it back. "
                    "Combine anew: `EFTForCausalLM.from_models(..., tokenizers=..., vocabulary=...)`."
                )
            if isinstance(member, SpelledModel) and (
                other := {k: v for k, v in member.options.items() if v != _DEFAULTS.get(k)}
            ):
                raise ValueError(
                    f"The member {name!r} is a {type(member).__name__} with options of its own ({', '.join(sorted(other))}), which no "
                    "folder keeps. Save what `from_models(..., tokenizers=..., vocabulary=...)` makes of the models themselves."
                )
        return Parts.among(found, {name: self.adapters[name] for name in found if name in self.adapters}), found
