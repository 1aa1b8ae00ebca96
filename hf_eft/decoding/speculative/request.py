"""What a `generate` call asks of speculation, and what it may not ask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import UnbatchedClassifierFreeGuidanceLogitsProcessor
from transformers.cache_utils import QuantizedCache

from ...members.releases import CACHE
from ...members.sight import Sight
from ...prompts import MemberPrompts
from ..tokens_left import BeamsLeft
from .coupling import Noise
from .schedule import Automatic, Fixed, Way

_OF_TEXT = {
    "position_ids": "every member counts its own positions from them",
    "inputs_embeds": "members look for their places among `input_ids`",
}
_MOST = 16  # tokens in a block that the automatic schedule chooses


@dataclass
class Settings:
    """How tokens are chosen. With noise, draft and target share it (`"match"`); without, drafts are accepted by ratio (`"reject"`)."""

    noise: Noise | None
    do_sample: bool
    confidence: float | None  # drafting stops below this probability of a drafted token
    max_length: int


@dataclass
class Request:
    """What a `generate` call asked of speculation, from its arguments and, where they are silent, the assistant's own settings."""

    coupling: str = "reject"
    seed: int | Sequence[int] | None = None
    block: int | None = None  # None: chosen by measured acceptance and costs
    heuristic: bool = False
    confidence: float | None = None
    # Of the call that is running:
    prompt_ids: torch.Tensor | None = None
    prompts: MemberPrompts | None = None
    pictures: dict[str, Any] = field(default_factory=dict)  # shown beside `input_ids`
    expand: int = 1  # rows of each prompt
    sights: dict[str, Sight] | None = None  # what these members see; not known before the prompt is read
    beams_left: BeamsLeft | None = None  # what a search looks at that may have no token left
    by_phase: torch.Tensor | None = None  # coefficients of its rows, (batch, phases, members)
    phases: Any = None  # what follows its rows through the phases of the recipe, once they are read
    skipping: Any = None  # what it asks of skipping, and who runs its steps then
    skipper: Any = None
    replays: bool = False  # whether its states stay where they are from step to step
    own: dict[str, dict[str, torch.Tensor]] = field(default_factory=dict)  # what these members read in this step

    @classmethod
    def read(
        cls, coupling: str | None, seed: Any, assistant: Any, generation_config: Any, options: Mapping[str, Any]
    ) -> Request:
        """Take `num_assistant_tokens`, its schedule and `assistant_confidence_threshold` from where they were given."""
        if coupling not in (None, "reject", "match"):
            raise ValueError(f"`coupling` must be 'reject' or 'match', got {coupling!r}.")
        if coupling != "match" and seed is not None:
            raise ValueError(
                "`seed` belongs to `coupling='match'`, whose noise depends on nothing else; use `set_seed` otherwise."
            )
        if coupling == "match" and seed is None:
            raise ValueError("`coupling='match'` needs a `seed`: a number, or one for each row.")

        def given(name: str) -> Any:
            sources = (options.get(name), getattr(generation_config, name, None))
            own = getattr(getattr(assistant, "generation_config", None), name, None)
            return next((value for value in (*sources, own) if value is not None), None)

        lookup = given("prompt_lookup_num_tokens")
        block = lookup if lookup is not None else given("num_assistant_tokens")
        heuristic = str(given("num_assistant_tokens_schedule")).startswith("heuristic")
        return cls(coupling or "reject", seed, block, heuristic, given("assistant_confidence_threshold"))

    @property
    def prompt_length(self) -> int | None:
        """Where the prompt ends, once a way of decoding has begun that says so."""
        return None if self.prompt_ids is None else self.prompt_ids.shape[1]

    @property
    def shown(self) -> bool:
        """Whether any member is shown a picture."""
        return bool(self.pictures) or (self.prompts is not None and bool(self.prompts.shown))

    @property
    def chooses(self) -> bool:
        """Whether block and drafter are chosen by what is measured."""
        return self.block is None and not self.heuristic

    @property
    def most(self) -> int:
        """The longest block that is drafted, unless a heuristic lets it grow."""
        return _MOST if self.block is None else int(self.block)

    def schedule(self, ways: Sequence[Way], few: bool) -> Fixed | Automatic:
        """The schedule of the block, of few sizes where each has its price, and of the drafters."""
        if self.chooses:
            return Automatic(_MOST, ways, few)
        return Fixed(5 if self.block is None else int(self.block), self.heuristic)

    def settings(self, generation_config: Any, rows: int) -> Settings:
        """How tokens are chosen."""
        noise = None
        if generation_config.do_sample and self.coupling == "match" and self.seed is not None:
            noise = Noise(self.seed)
            noise.check_rows(rows)
        return Settings(noise, generation_config.do_sample, self.confidence, generation_config.max_length)


def refuse_what_cannot_be_speculated(generation_config: Any, processors: Any, model_kwargs: Mapping[str, Any]) -> None:
    """Raise where a block cannot be verified exactly."""
    cache = model_kwargs.get(CACHE)
    if cache is None:
        raise ValueError("Speculation needs a cache: leave `use_cache` on.")
    if isinstance(cache, QuantizedCache):
        raise ValueError("Speculation rolls caches back, which quantized ones cannot. Use another `cache_implementation`.")
    if any(isinstance(p, UnbatchedClassifierFreeGuidanceLogitsProcessor) for p in processors):
        raise ValueError(
            "`guidance_scale` keeps a state for every step, which cannot follow a draft that is taken back. Decode without an assistant."
        )
    if generation_config.output_attentions or generation_config.output_hidden_states:
        raise ValueError(
            "Hidden states and attentions of a block are not returned by token. Decode without an assistant for them."
        )


def refuse_beside_pictures(generation_config: Any, options: Mapping[str, Any]) -> None:
    """Raise if a call that shows pictures asks for what only a text has."""
    for name, why in _OF_TEXT.items():
        if options.get(name) is not None:
            raise ValueError(f"`{name}` cannot be given with pictures: {why}. Leave it out.")
    if "paged" in (options.get("cache_implementation"), getattr(generation_config, "cache_implementation", None)):
        raise NotImplementedError("Continuous batching reads text alone, and the prompts have pictures. Use another cache.")
