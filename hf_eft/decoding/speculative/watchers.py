"""Who watches tokens while they are generated, and whether that can be told of tokens that are drafted and taken back."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import transformers
from transformers.generation import logits_process

# Of transformers' own, those that keep a state from one call to the next.
_STATEFUL = (
    transformers.UnbatchedClassifierFreeGuidanceLogitsProcessor,
    transformers.SynthIDTextWatermarkLogitsProcessor,
    transformers.WhisperTimeStampLogitsProcessor,
    logits_process.WhisperNoSpeechDetection,
    logits_process.DiaEOSDelayPatternLogitsProcessor,
)


def refuse_stateful(processors: Iterable[Any]) -> None:
    r"""
    Raise if a processor may keep a state from one call to the next. Drafted positions are looked at out of turn, some of them twice and
    some in vain, which a state cannot follow; that a processor has none cannot be seen, so its author must say so.

    Args:
        processors (`Iterable[LogitsProcessor]`):
            transformers' own are known. Others say `is_stateless = True` if what they answer depends on `input_ids` and `scores` alone.
    """
    for processor in processors:
        known = type(processor).__module__ == logits_process.__name__ and not isinstance(processor, _STATEFUL)
        if not (known or getattr(processor, "is_stateless", False)):
            by_option = isinstance(processor, transformers.UnbatchedClassifierFreeGuidanceLogitsProcessor)
            raise ValueError(
                f"{'`guidance_scale`' if by_option else type(processor).__name__} may keep a state from one call to the next, which cannot "
                "follow drafts that are taken back. If what it answers depends on `input_ids` and `scores` alone, say so: "
                "`processor.is_stateless = True`. Otherwise decode without an assistant."
            )


def refuse_streamer(streamer: Any, rows: int) -> None:
    """Raise if a streamer would be told of several rows, which are not at the same token."""
    if streamer is not None and rows > 1:
        raise ValueError(
            f"A streamer is told of tokens, not of rows, and {rows} rows do not go on token by token together with an assistant, "
            "`prompt_lookup_num_tokens` or a `seed`. Stream one row, or leave these options out."
        )
