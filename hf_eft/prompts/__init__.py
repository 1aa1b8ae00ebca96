"""Prompts of their own for members: the tuned one its chat template, the others a plain text, the continuation one for all."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch

from .messages import read_messages
from .pictures import KINDS, seen_by, shown_in, take_pictures

_ASKED = "Who?"
_ENDING = 64  # tokens, more than any template writes before an answer


class MemberPrompts:
    r"""
    The prompts of those members that read another than `input_ids`, row by row; what is generated follows them all.

    Args:
        given (`Mapping[str, Mapping[str, torch.Tensor]]`):
            By member, `input_ids` and, where rows are padded on the left, `attention_mask`, both of shape `(batch, length)`; for members
            that see, pixels and what describes them as well, as the member's processor makes them.
        members (`Collection[str]`): The members that may have one.

    Raises:
        `ValueError`: If a member is unknown, or its tensors are no prompts.
    """

    def __init__(self, given: Mapping[str, Mapping[str, torch.Tensor]], members: Collection[str]) -> None:
        self._prompts: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        self._pictures: dict[str, dict[str, Any]] = {}
        for name, inputs in given.items():
            if name not in members:
                raise ValueError(
                    f"`member_inputs` has a prompt for {name!r}; members that can have one of their own are {list(members)}. "
                    "(The first member's prompt is `input_ids`.)"
                )
            rest = dict(inputs)
            self._pictures[name] = take_pictures(rest)
            if unknown := set(rest) - {"input_ids", "attention_mask", "token_type_ids", KINDS}:
                raise ValueError(
                    f"`member_inputs[{name!r}]` may have `input_ids`, `attention_mask` and pictures, got {sorted(unknown)}."
                )
            ids, mask = inputs.get("input_ids"), inputs.get("attention_mask")
            if not isinstance(ids, torch.Tensor) or ids.dim() != 2 or ids.shape[1] == 0:
                raise ValueError(f"`member_inputs[{name!r}]` needs `input_ids` of shape (batch, length), one token or more.")
            if mask is None:
                mask = torch.ones_like(ids)
            if mask.shape != ids.shape or not bool((mask[:, -1] == 1).all()):
                raise ValueError(
                    f"The `attention_mask` of `member_inputs[{name!r}]` must have the shape {tuple(ids.shape)} of its ids and end in "
                    f"ones (padding is on the left), got {tuple(mask.shape)}."
                )
            self._prompts[name] = (ids, mask)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._prompts)

    @property
    def longest(self) -> int:
        return max(ids.shape[1] for ids, _ in self._prompts.values())

    @property
    def shown(self) -> dict[str, dict[str, Any]]:
        """The pictures of those members that are shown any of their own."""
        return {name: pictures for name, pictures in self._pictures.items() if pictures}

    @property
    def by_name(self) -> dict[str, tuple[torch.Tensor, torch.Tensor, dict[str, Any]]]:
        """Every member's prompts, their mask and its pictures."""
        return {name: (*prompt, self._pictures[name]) for name, prompt in self._prompts.items()}

    def followed_by(self, name: str, continuation: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        r"""
        A member's prompt and what was generated: ids and mask, `(rows, length)`. Where there are more rows than prompts (beams, returned
        sequences), each prompt stands for as many of them.
        """
        ids, mask = (tensor.to(continuation.device) for tensor in self._prompts[name])
        rows = continuation.shape[0]
        if rows % ids.shape[0]:
            raise ValueError(f"`member_inputs[{name!r}]` has {ids.shape[0]} rows, but there are {rows} in the batch.")
        ids, mask = (tensor.repeat_interleave(rows // ids.shape[0], dim=0) for tensor in (ids, mask))
        return torch.cat([ids, continuation], dim=1), torch.cat([mask, mask.new_ones(continuation.shape)], dim=1)


def positions_in_common(
    logits_to_keep: int | torch.Tensor, tokens: torch.Tensor, member_inputs: Mapping[str, Mapping[str, torch.Tensor]]
) -> int:
    """
    How many positions from the right are asked for, of those that all members have.

    Raises:
        `ValueError`: If they are more than all have, or not counted from the right.
    """
    own = (inputs["input_ids"].shape[1] for inputs in member_inputs.values() if "input_ids" in inputs)
    shortest = min((tokens.shape[1], *own))
    if not isinstance(logits_to_keep, int) or logits_to_keep > shortest:
        raise ValueError(
            f"With prompts of their own, members have {shortest} positions in common, counted from the right: `logits_to_keep` must "
            f"be a number up to that, got {logits_to_keep}."
        )
    return logits_to_keep or shortest


def positions_of(mask: torch.Tensor) -> torch.Tensor:
    """Positions of tokens behind padding on the left, as transformers counts them."""
    return (mask.long().cumsum(-1) - 1).clamp(min=0)


def as_plain_text(messages: Sequence[Mapping[str, Any]]) -> str:
    """A conversation for a model that knows no chat template: its contents, one below the other."""
    if any("tool_calls" in message for message in messages):
        raise ValueError(
            "A member without a chat template reads a plain text, which has no place for `tool_calls`: write them with `plain=`, or "
            "let all members read one prompt."
        )
    return "\n\n".join(message["content"] for message in messages) + "\n\n"


def member_inputs(
    conversations: Sequence[Sequence[Mapping[str, Any]]],
    tokenizers: Mapping[str, Any],
    plain: Callable[[Sequence[Mapping[str, str]]], str] = as_plain_text,
    **options: Any,
) -> dict[str, dict[str, torch.Tensor]]:
    r"""
    Every member's prompt for the same conversations: its own chat template where its tokenizer has one, a plain text where it has none.

    Args:
        conversations (`Sequence[Sequence[Mapping[str, Any]]]`):
            Messages as [`~hf_eft.prompts.messages.read_messages`] takes them, a list for each row.
        tokenizers (`Mapping[str, PreTrainedTokenizerBase or ProcessorMixin]`): The tokenizer of each member. A tokenizer whose
            `chat_template` is `None` writes plain text. The processor of a member that sees makes its own of pictures in the messages.
        plain (`Callable`, *optional*): What makes a text of a conversation.
        **options: Passed on to `apply_chat_template`.

    Returns:
        `dict[str, dict[str, torch.Tensor]]`: By member, `input_ids` and `attention_mask` of shape `(batch, length)`, padded on the left;
        and whatever else its processor makes of pictures.

    Raises:
        `ValueError`: If messages are none, or show pictures to a member that has no processor.

    Example:

    ```python
    >>> from hf_eft import tiny
    >>> from hf_eft.prompts import member_inputs

    >>> *_, tokenizer = tiny.load()
    >>> prompts = member_inputs([[{"role": "user", "content": "Hello"}]], {"tuned": tokenizer})
    >>> prompts["tuned"]["input_ids"].shape[0]
    1
    ```
    """
    if not conversations:
        raise ValueError("There are no conversations: give a list of messages for each row.")
    seeing = [name for name, tokenizer in tokenizers.items() if hasattr(tokenizer, "image_processor")]
    conversations = [read_messages(messages, pictures=bool(seeing)) for messages in conversations]
    built = {}
    for name, tokenizer in tokenizers.items():
        if name in seeing:
            built[name] = seen_by(name, tokenizer, conversations, **options)
            continue
        if any(map(shown_in, conversations)):
            raise ValueError(
                f"The messages show pictures, and the member {name!r} has a tokenizer, which reads text alone. Give its processor; or "
                "make its prompts of messages that say in words what the pictures show."
            )
        if getattr(tokenizer, "chat_template", None):
            rows = [chat_ids(tokenizer, messages, **options) for messages in conversations]
        else:
            rows = [tokenizer(plain(messages))["input_ids"] for messages in conversations]
        built[name] = _padded(name, rows, tokenizer)
    return built


def chat_ids(tokenizer: Any, messages: Sequence[Mapping[str, Any]], **options: Any) -> list[int]:
    r"""
    The tokens of a conversation that is to be continued.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): With a chat template.
        messages (`Sequence[Mapping[str, Any]]`): As [`~hf_eft.prompts.messages.read_messages`] makes them.
        **options: Passed on to `apply_chat_template`.

    Raises:
        `ValueError`: If there is no chat template, or it refuses the messages.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError("the tuned model's tokenizer has no chat template: give plain prompts")
    given = {"add_generation_prompt": True, **options, "tokenize": True, "return_dict": False}
    try:
        return list(tokenizer.apply_chat_template(list(messages), **given))
    except ImportError:  # of what templates run with
        raise
    except Exception as error:  # a template is a program of somebody else's, and raises what it likes
        raise ValueError(f"the chat template does not take these messages: {error}") from error


def _padded(name: str, rows: list[list[int]], tokenizer: Any) -> dict[str, torch.Tensor]:
    if min(map(len, rows)) == 0:
        raise ValueError(f"A prompt of the member {name!r} is empty: its tokenizer made no token of it.")
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    return padded(rows, pad or 0)


def padded(rows: Sequence[Sequence[int]], pad: int) -> dict[str, torch.Tensor]:
    """Rows of tokens as `input_ids` and `attention_mask` of shape `(rows, longest)`, padded on the left."""
    longest = max(map(len, rows))
    ids = torch.tensor([[pad] * (longest - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    return {"input_ids": ids, "attention_mask": mask}


def warn_of_templates(tokenizers: Mapping[str, Any], input_ids: Any, stacklevel: int = 4) -> bool:
    r"""
    Warn if the members' chat templates differ and all are to read a prompt that one of these wrote.

    Args:
        tokenizers (`Mapping[str, PreTrainedTokenizerBase]`): The tokenizers of members, by name, as far as they are known.
        input_ids (`torch.LongTensor` of shape `(batch, length)`, *optional*): The prompts. The first tells whether it is a chat.
        stacklevel (`int`, *optional*, defaults to 4): As in `warnings.warn`; by default the caller of a decorated caller.

    Returns:
        `bool`: Whether it warned.
    """
    templates = {name: getattr(tokenizer, "chat_template", None) for name, tokenizer in tokenizers.items()}
    differ = any(template != next(iter(templates.values())) for template in templates.values())
    if not differ or not isinstance(input_ids, torch.Tensor) or input_ids.dim() != 2 or input_ids.shape[1] == 0:
        return False
    wrote = [name for name, tokenizer in tokenizers.items() if _ends_as_a_chat(tokenizer, input_ids[0])]
    if not wrote:
        return False
    others = [name for name, template in templates.items() if template != templates[wrote[0]]]
    warnings.warn(
        f"The members' chat templates differ: this prompt is in that of {wrote[0]!r}, and {others} were trained on another or none. All "
        "members read it as it is. If that is what you want (members that know no template often follow another's), say so: "
        "`member_inputs={}`. To give each its own: `member_inputs=` with what `hf_eft.prompts.member_inputs(conversations, tokenizers)` "
        "makes, or `pipeline(..., pipeline_class=hf_eft.prompts.pipeline.MemberPromptPipeline)`.",
        UserWarning,
        stacklevel=stacklevel,
    )
    return True


def _ends_as_a_chat(tokenizer: Any, ids: torch.Tensor) -> bool:
    """Whether a prompt ends with what a tokenizer's template writes between a question and its answer."""
    if not getattr(tokenizer, "chat_template", None):
        return False
    try:
        chat = tokenizer.apply_chat_template([{"role": "user", "content": _ASKED}], add_generation_prompt=True, tokenize=False)
    except Exception:  # templates raise what they like, and a warning is not worth a failed call
        return False
    ending = chat.rpartition(_ASKED)[2].strip()
    return bool(ending) and tokenizer.decode(ids[-_ENDING:]).rstrip().endswith(ending)
