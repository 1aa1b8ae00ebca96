"""A prompt and its continuation: their tokens, and the members' logits for each token of the continuation."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from ..members.members import Members
from ..members.sight import in_forward
from ..members.vocabulary import end_tokens
from ..prompts import MemberPrompts
from ..prompts.pictures import DESCRIBING

_CELLS = 2**23  # logits of a member that are looked at together: 32 MB of float32, whatever the text and the vocabulary

_TOKENS = 2048  # tokens that are read together: the masks of attention are as large as that times the text


@dataclass(frozen=True)
class Passage:
    r"""
    A text that is looked at, as tokens.

    Args:
        prompt (`torch.LongTensor` of shape `(length,)`): What comes before it.
        continuation (`torch.LongTensor` of shape `(length,)`): The tokens that are looked at.
        own ([`MemberPrompts`], *optional*): The prompts of members that have one of their own.
        pictures (`Mapping[str, Any]`, *optional*): What the other members see beside `prompt`.
    """

    prompt: torch.Tensor
    continuation: torch.Tensor
    own: MemberPrompts | None = None
    pictures: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        tokenizer: Any,
        prompt: str | torch.Tensor,
        continuation: str | torch.Tensor,
        own: MemberPrompts | None = None,
        pictures: Mapping[str, Any] | None = None,
        speller: Any = None,
    ) -> Passage:
        """
        From texts or tokens. Two texts are written as one, where that leaves the prompt's tokens as they are, so that a word has the
        tokens that it has in running text. With a `speller`, the continuation is cut by it.
        """
        before = prompt_ids(tokenizer, prompt)
        if isinstance(continuation, str) and speller is not None:
            first = prompt if isinstance(prompt, str) else ""
            whole, start = (speller(text, add_special_tokens=False)["input_ids"] for text in (first + continuation, first))
            after = _row(whole[len(start) :], "continuation")
        elif isinstance(continuation, str):
            ids: list[int] | None = None
            if isinstance(prompt, str):
                whole, start = tokenizer(prompt + continuation)["input_ids"], before.tolist()
                ids = whole[len(start) :] if whole[: len(start)] == start else None
            after = _row(tokenizer(continuation, add_special_tokens=False)["input_ids"] if ids is None else ids, "continuation")
        else:
            after = _row(continuation, "continuation")
        return cls(before, after, own, pictures or {})

    @classmethod
    def generated(
        cls, model: Any, tokenizer: Any, prompt: str | torch.Tensor, options: dict[str, Any], pictures: Mapping[str, Any]
    ) -> Passage:
        """From what `generate` says to a prompt; padding behind its end is left out, the end token is kept."""
        before = prompt_ids(tokenizer, prompt)
        _check_tokens("prompt", before, model._members)
        out = model.generate(
            before[None].to(model.device), attention_mask=torch.ones_like(before[None]).to(model.device), **options, **pictures
        )
        sequences = out if isinstance(out, torch.Tensor) else out.sequences
        if sequences.shape[0] != 1:
            raise ValueError(
                f"One continuation is analysed at a time, `generate` returned {sequences.shape[0]}: pass each of them."
            )
        after = sequences[0, len(before) :].cpu()
        config = options.get("generation_config") or model.generation_config
        ends = options.get("eos_token_id", end_tokens(config))
        ended = torch.isin(after, torch.tensor(ends if isinstance(ends, list) else [ends], dtype=torch.long)).nonzero()
        own = options.get("member_inputs")
        prompts = MemberPrompts(own, model._members.names[1:]) if own else None
        return cls(before, after[: int(ended[0]) + 1] if len(ended) else after, prompts, pictures)

    def check(self, members: Members) -> None:
        """Raise a `ValueError` if there is nothing to look at, or nothing before it, or a token that not all members have."""
        for what, ids in (("prompt", self.prompt), ("continuation", self.continuation)):
            _check_tokens(what, ids, members)

    def read(self, members: Members, only: Collection[str] | None = None) -> Iterator[tuple[slice, dict[str, torch.Tensor]]]:
        r"""
        Let each distinct member read the text once.

        Args:
            members ([`Members`]): Who reads.
            only (`Collection[str]`, *optional*): The members whose logits are wanted; all by default.

        Yields:
            `tuple[slice, dict[str, torch.Tensor]]`: Piece by piece, the tokens of the continuation and the logits for them, by member,
            `(1, tokens, vocab)`.
        """
        own, after = self.own, self.continuation
        members = members.apart(own.names) if own is not None else members
        asked = {members.owner[name] for name in (members.names if only is None else only)}
        step = max(1, min(_TOKENS, _CELLS // members.vocabulary.size))
        cache = members.new_cache() if len(after) > step else None
        for start in range(0, len(after), step):
            stop = min(start + step, len(after))
            said = after[: stop - 1] if start == 0 else after[start - 1 : stop - 1]
            ids = (torch.cat([self.prompt, said]) if start == 0 else said)[None]
            given: dict[str, dict[str, Any]] = {}
            if start == 0 and own is not None:
                for name, (prompt, mask, seen) in own.by_name.items():
                    read = prompt.cpu()[mask.cpu().bool()]  # one row, without its padding
                    beside = {key: value[mask.bool()][None] if key in DESCRIBING else value for key, value in seen.items()}
                    given[name] = {"input_ids": torch.cat([read, said])[None], **_lengthened(beside, len(said))}
            pictures = _lengthened(self.pictures, len(said)) if start == 0 else {}
            outputs = members.step(
                ids,
                own=in_forward(members, ids, None, pictures, given, cache, cache is not None),
                cache=cache,
                use_cache=cache is not None,
                logits_to_keep=stop - start,
                only=asked,
            )
            yield slice(start, stop), members.logits(outputs)


def _lengthened(pictures: Mapping[str, Any], more: int) -> dict[str, Any]:
    """What a row is shown, with `more` tokens of text behind it."""
    return {
        name: torch.cat([value, value.new_zeros(1, more)], dim=1) if name in DESCRIBING else value
        for name, value in pictures.items()
    }


def prompt_ids(tokenizer: Any, prompt: str | torch.Tensor) -> torch.Tensor:
    """A prompt as `generate` reads it, `(length,)`."""
    return _row(tokenizer(prompt)["input_ids"] if isinstance(prompt, str) else prompt, "prompt")


def _row(ids: Any, what: str) -> torch.Tensor:
    ids = torch.as_tensor(ids, dtype=torch.long).cpu()
    if ids.dim() == 2 and ids.shape[0] == 1:
        ids = ids[0]
    if ids.dim() != 1:
        raise ValueError(f"The {what} must be a text or one row of tokens, got the shape {tuple(ids.shape)}: pass row by row.")
    return ids


def _check_tokens(what: str, ids: torch.Tensor, members: Members) -> None:
    if len(ids) == 0:
        raise ValueError(f"The {what} has no token: give one or more (for an empty prompt, the token that begins a text).")
    if int(ids.min()) < 0 or int(ids.max()) >= members.vocabulary.size:
        raise ValueError(
            f"The {what} has the tokens {int(ids.min())} to {int(ids.max())}, but the members have 0 to {members.vocabulary.size - 1} "
            "in common."
        )
