"""The prompt of a chat: in the template of the server's tokenizer, or, where there are pictures, as every member's processor makes it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..files.json_lines import shown
from ..programs.pictures import Processors, Seen
from ..prompts.messages import is_film, is_picture
from .images import FORM

if TYPE_CHECKING:
    from ..modeling_eft import EFTForCausalLM

logger = logging.getLogger("hf_eft.serving")

# What `apply_chat_template` is told and no template reads, what the server writes, and the template itself, which is a program.
_NOT_THE_TEMPLATES = frozenset(
    "chat_template conversation developer_as_system load_audio_from_video max_length messages padding processor_kwargs "
    "return_assistant_tokens_mask return_dict return_tensors sanitize_control_tokens tokenize tokenizer tokenizer_kwargs tools "
    "truncation".split()
)


class Chats:
    r"""
    Makes prompts of the messages of requests.

    Args:
        model ([`EFTForCausalLM`]): The model.
        tokenizer (`PreTrainedTokenizerBase` or `ProcessorMixin`): With its template.
        processors (`Mapping[str, ProcessorMixin]`, *optional*): See [`Processors`].
    """

    def __init__(self, model: EFTForCausalLM, tokenizer: Any, processors: Mapping[str, Any] | None = None) -> None:
        self._tokenizer = tokenizer
        self._texts = Processors(model, tokenizer, processors)
        # Pictures are read on another thread, which is in the way of nobody: tokenizers know one way of padding at a time.
        self._pictures = self._texts.apart()

    def check_sight(self, where: str) -> None:
        """Raise a `ValueError` if not every member can be shown the picture that is `where`."""
        try:
            self._texts.check()
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None

    def read(
        self, messages: Any, tools: list[dict[str, Any]], options: dict[str, Any], shows: bool
    ) -> tuple[list[int], Seen | None]:
        r"""
        The tokens of a chat that is to be continued, and what members see.

        Args:
            messages (`Any`): The messages, as the client sent them, pictures opened.
            tools (`list[dict]`): The tools that the template writes.
            options (`dict`): `chat_template_kwargs` of the request.
            shows (`bool`): Whether there are pictures, read on another thread, by one at a time.

        Returns:
            `tuple[list[int], Seen or None]`: The first member's tokens; without pictures, those of all.

        Raises:
            `ValueError`: If there is no template, or it has no place for what it is to write; if a member cannot see.
        """
        for i, message in enumerate(messages if isinstance(messages, list) else []):
            content = message.get("content") if isinstance(message, dict) else None
            for j, part in enumerate(content if isinstance(content, list) else []):
                if is_film(part):  # whose frames may be files of this machine
                    raise ValueError(
                        f"messages[{i}]: content[{j}]: films are not read here: send the frames that matter, each as a picture."
                    )
                if is_picture(part) and not hasattr(part.get("image"), "convert"):  # the path of a file of this machine
                    raise ValueError(f"messages[{i}]: content[{j}]: a picture is {FORM}, got {shown(part)}.")
        template = str(getattr(self._tokenizer, "chat_template", ""))
        if own := _NOT_THE_TEMPLATES & options.keys():
            raise ValueError(f"`chat_template_kwargs` are for the template: {sorted(own)[0]!r} is not.")
        given = {"developer_as_system": "developer" not in template, **options}
        processors = self._pictures if shows else self._texts
        prompt, seen = processors.read(messages, tools=tools or None, **given)
        if tools and prompt == processors.read(messages, **given)[0]:
            logger.warning("The chat template has no place for `tools`: the models do not see them.")
        return prompt, seen
