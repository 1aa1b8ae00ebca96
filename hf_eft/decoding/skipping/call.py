"""Skipping in a call of `generate`: what it may be asked beside, and who runs its steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import GenerationMixin
from transformers.cache_utils import QuantizedCache, StaticCache

from ...members.cache import EFTCache
from ...members.call import PerThread, innermost
from ...members.devices import is_sharded
from ...members.members import Members
from ...members.quantised import looks_beside
from ...members.releases import CACHE
from ...members.vocabulary import end_tokens
from ...recipe.combination import BASE, Combination
from ...spelling.model import SpelledModel
from .options import Report, Skipping
from .skipper import Skipper


class EFTSkippingMixin(GenerationMixin):
    """The part of [`EFTForCausalLM`] that leaves members out of steps."""

    _members: Members
    _skips: PerThread
    combination: Combination

    @property
    def skipping(self) -> Report | None:
        """What skipping did in the last `generate` call of this thread that was asked to skip."""
        return self._skips.value

    def _skip(self, options: Mapping[str, Any], is_search: bool) -> None:
        """
        Have members left out of the steps of this call, if it asks for that.

        Raises:
            `ValueError`: If a member that is left out could change the answer, or could not catch up.
        """
        call = innermost(self)
        if call is None or call.request.skipping is None:
            return
        asked, config, members = call.request.skipping, options["generation_config"], call.members
        refuse_members(members)
        refuse_cache(options.get(CACHE))
        if options.get("synced_gpus"):
            raise _refusal("with `synced_gpus`, where all processes must run the same models", "Leave one of them out")
        shows = config.return_dict_in_generate and (config.output_scores or config.output_logits)
        if asked.by_lead:
            self._refuse_by_lead(asked, options, is_search or config.do_sample, shows)
        ends = [] if is_search or shows else end_tokens(config)
        call.request.skipper = Skipper(asked, self.combination, ends)
        self._skips.value = call.request.skipper.report

    def _refuse_by_lead(self, asked: Skipping, options: Mapping[str, Any], draws: bool, shows: bool) -> None:
        """Raise where the base's lead says which token the base takes, and not which one the call does."""
        name = "bound" if asked.bound is not None else "recent"
        what = f"by the base's lead (`Skipping({name}=...)`)"
        truncation = self.combination.truncation
        if draws:
            raise _refusal(
                f"{what} beside sampling or beams, which look at more than the best token",
                "Decode greedily, or use `skipping=True`",
            )
        if options["logits_processor"]:
            listed = ", ".join(type(each).__name__ for each in options["logits_processor"])
            raise _refusal(f"{what} beside processors, which change leads ({listed})", "Leave them out, or use `skipping=True`")
        if shows:
            raise _refusal(f"{what} with scores or logits in the output, which would be the base's", "Leave them out")
        if truncation is not None and truncation.rule in ("keep", "drop"):
            raise _refusal(f"{what} with the truncation {truncation.rule!r}, which goes by a tuned member", "Use another one")
        if self._members.owner.get(BASE) != self._members.main:
            raise _refusal(f"{what} without a base that is the first member", "Use `skipping=True`")

    def _skipper(self) -> Skipper | None:
        """Who runs the steps of this call, if members are left out of them."""
        call = innermost(self)
        if call is None or call.request.skipping is None:
            return None
        if call.request.skipper is None:
            raise refuse_skipping("by this way of decoding, which is not one of transformers' own")
        skipper: Skipper = call.request.skipper
        return skipper

    def _prefill(self, *args: Any, **kwargs: Any) -> Any:
        outputs = super()._prefill(*args, **kwargs)
        call = innermost(self)
        if call is not None and call.request.skipper is not None:
            call.request.skipper.is_past_prompt = True
        return outputs


def refuse_members(members: Members) -> None:
    """Raise if a member could not be left out, or could not read what it missed in one block."""
    for name, member in members.distinct.items():
        if isinstance(member.model, SpelledModel):
            raise _refusal(
                f"with members of other tokenizers ({name!r}), which read a block as a prompt",
                "Use members of one vocabulary, or leave it out",
            )
        if looks_beside(member.model):
            raise _refusal(
                f"with members quantised by LLM.int8 with a threshold ({name!r}), which read a token otherwise beside others",
                "Quantise with `llm_int8_threshold=0.0`, or leave it out",
            )
        if is_sharded(member.model):
            raise _refusal(f"with members of several processes ({name!r}), which must all run the same models", "Leave it out")


def refuse_cache(cache: Any) -> None:
    """Raise if states of a block would not be those of its tokens one by one, or have no place."""
    if isinstance(cache, StaticCache) or getattr(cache, "is_compileable", False):
        raise _refusal("on static caches, whose steps are of one shape", "Use a dynamic cache")
    if isinstance(cache, QuantizedCache):
        raise _refusal("on quantized caches, whose values depend on how many tokens are read at a time", "Use a dynamic cache")
    if isinstance(cache, EFTCache) and cache.positions:
        raise _refusal("behind pictures", "Leave it out")


def refuse_skipping(where: str) -> ValueError:
    """What to say of a way of decoding that runs its members itself."""
    return _refusal(where, "Leave one of them out")


def _refusal(where: str, instead: str) -> ValueError:
    return ValueError(f"Members cannot be skipped {where}. {instead}.")
