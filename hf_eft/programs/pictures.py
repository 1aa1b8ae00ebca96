"""A conversation with pictures for every member, as its own processor makes it."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..prompts import chat_ids
from ..prompts.messages import read_messages
from ..prompts.pictures import is_processor, seen_by, shown_in

if TYPE_CHECKING:
    from ..modeling_eft import EFTForCausalLM


@dataclass(frozen=True)
class Seen:
    r"""
    What members read and see of one conversation.

    Args:
        inputs (`Mapping[str, Any]`): The first member's `input_ids`, `attention_mask` and pictures.
        own (`Mapping[str, Mapping[str, Any]]`): By member, those of each that has others, for `member_inputs`. Empty if all take the same.
    """

    inputs: Mapping[str, Any]
    own: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def prompt(self) -> list[int]:
        """The first member's tokens."""
        ids: list[int] = self.inputs["input_ids"][0].tolist()
        return ids

    @property
    def lengths(self) -> dict[str, int]:
        """How many tokens those members read that read a prompt of their own."""
        return {name: inputs["input_ids"].shape[1] for name, inputs in self.own.items()}

    @property
    def pictures(self) -> dict[str, Any]:
        """What is given to `generate` beside tokens and their mask."""
        beside = {name: value for name, value in self.inputs.items() if name not in ("input_ids", "attention_mask")}
        return {**beside, **({"member_inputs": self.own} if self.own else {})}

    @property
    def longest(self) -> int:
        """The most tokens that a member reads."""
        return max(len(self.prompt), *self.lengths.values()) if self.own else len(self.prompt)

    def alone(self, name: str) -> dict[str, Any]:
        """What a member is given that answers alone, without the mask."""
        return {key: value for key, value in self.own.get(name, self.inputs).items() if key != "attention_mask"}


class Processors:
    r"""
    The processors of members.

    Args:
        model ([`EFTForCausalLM`]): The combination.
        tokenizer (`PreTrainedTokenizerBase` or `ProcessorMixin`):
            What prompts are written with. A processor is that of all members for which no other is known.
        own (`Mapping[str, ProcessorMixin]`, *optional*): By member, its own, in place of the one that the model keeps (`model.processors`).

    Raises:
        `ValueError`: If there is a processor of no member, or one that makes nothing of pictures.
    """

    def __init__(self, model: EFTForCausalLM, tokenizer: Any, own: Mapping[str, Any] | None = None) -> None:
        own = own or {}
        if unknown := [name for name in own if name not in model.members]:
            raise ValueError(f"`processors` has one of {unknown[0]!r}, but the members are {list(model.members)}.")
        if wrong := [name for name, each in own.items() if not is_processor(each)]:
            raise ValueError(
                f"`processors[{wrong[0]!r}]` makes nothing of pictures: expected a processor with an image processor, as of "
                f"`AutoProcessor.from_pretrained`, got {type(own[wrong[0]]).__name__}."
            )
        self._tokenizer = tokenizer
        common = tokenizer if is_processor(tokenizer) else None
        known = {**model.processors, **own}
        self._by_name = {name: known.get(name, common) for name in model.members}

    @property
    def any(self) -> bool:
        """Whether a member can be shown pictures."""
        return any(each is not None for each in self._by_name.values())

    @property
    def all(self) -> bool:
        """Whether every member can."""
        return all(each is not None for each in self._by_name.values())

    def apart(self) -> Processors:
        """The same with copies of the processors, for another thread: what one of them reads with is changed by each call."""
        other = copy.copy(self)
        if is_processor(self._tokenizer):
            other._tokenizer, other._by_name = copy.deepcopy((self._tokenizer, self._by_name))
        else:
            other._by_name = copy.deepcopy(self._by_name)
        return other

    def check(self) -> None:
        """Raise a `ValueError` if not every member can be shown pictures."""
        if blind := [name for name, each in self._by_name.items() if each is None]:
            raise ValueError(
                f"pictures cannot be shown to {', '.join(f'the member {name!r}' for name in blind)}, which has no processor, and all "
                "members must read one conversation. Send text alone; or take members that all have a processor beside their tokenizer."
            )

    def read(self, messages: Any, developer_as_system: bool = False, **options: Any) -> tuple[list[int], Seen | None]:
        r"""
        The prompt of a chat that is to be continued.

        Args:
            messages (`Any`): As [`~hf_eft.prompts.messages.read_messages`] takes them, pictures opened.
            developer_as_system (`bool`, *optional*, defaults to `False`): As there.
            **options: Of the chat template.

        Returns:
            `tuple[list[int], Seen or None]`: The first member's tokens, and what members read and see; without pictures, the
            tokens that all read.

        Raises:
            `ValueError`: If the messages are none, a template does not take them, or a member cannot be shown pictures.
        """
        read = read_messages(messages, developer_as_system=developer_as_system, pictures=True)
        if shown_in(read):
            seen = self._seen(read, options)
            return seen.prompt, seen
        if is_processor(self._tokenizer):
            made = seen_by(next(iter(self._by_name)), self._tokenizer, [read], **options)
            return made["input_ids"][0].tolist(), None
        return chat_ids(self._tokenizer, read, **options), None

    def _seen(self, messages: Sequence[Mapping[str, Any]], options: Mapping[str, Any]) -> Seen:
        self.check()
        first = next(iter(self._by_name.values()))
        made: dict[int, dict[str, Any]] = {}
        for name, processor in self._by_name.items():
            if id(processor) not in made:  # one that serves several members is asked once
                made[id(processor)] = seen_by(name, processor, [messages], **options)
        return Seen(made[id(first)], {name: made[id(each)] for name, each in self._by_name.items() if each is not first})


def shown_with(text: str, pictures: Sequence[Any]) -> list[dict[str, Any]] | str:
    """The content of a message: a text with pictures before it."""
    parts = [{"type": "image", "image": picture} for picture in pictures]
    return [*parts, {"type": "text", "text": text}] if parts else text
