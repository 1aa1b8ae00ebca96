"""Chats in transformers' pipeline, each member at its own prompt."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from transformers import TextGenerationPipeline

from . import as_plain_text, member_inputs
from .messages import read_messages

_OF = "/"  # between a member's name and what it reads: the pipeline batches flat dictionaries of tensors
_CUTS = ("truncation", "padding", "handle_long_generation")


class MemberPromptPipeline(TextGenerationPipeline):
    r"""
    A text-generation pipeline that gives every member its own prompt of a chat: its chat template where its tokenizer has one, a plain text
    where it has none. Make it with `pipeline(..., pipeline_class=MemberPromptPipeline)`.

    Contract:

    - **Tokenizers**: those of `model.tokenizers` (`EFTForCausalLM.from_models(..., tokenizers={name: tokenizer, ...})`); the first member's
      is the pipeline's own if it is not there. A member without one reads the first member's prompt.
    - **Inputs**: chats, one or many, in batches of any size. Strings are the same prompt for all members, as in the plain pipeline.
    - **Options of a call**: `plain` (what makes a text of a chat, [`~hf_eft.prompts.as_plain_text`] by default), `tools`, `documents`,
      `continue_final_message`, `tokenizer_encode_kwargs` (all for every member), and whatever `generate` takes. Prompts of chats are not
      cut: `truncation`, `padding` and `handle_long_generation` are refused.

    Raises:
        `ValueError`: If the model knows no tokenizers, or a prompt would be cut.

    Example:

    ```python
    >>> from transformers import pipeline

    >>> from hf_eft import EFTForCausalLM, tiny
    >>> from hf_eft.prompts.pipeline import MemberPromptPipeline

    >>> base, tuned, reference, tokenizer = tiny.load()
    >>> names = ("base", "tuned", "reference")
    >>> model = EFTForCausalLM.from_models(base, tuned=tuned, reference=reference, tokenizers=dict.fromkeys(names, tokenizer))
    >>> pipe = pipeline("text-generation", model=model, tokenizer=tokenizer, pipeline_class=MemberPromptPipeline)
    >>> chat = [{"role": "user", "content": "What does Oscar Palmer enjoy?"}]
    >>> pipe(chat, max_new_tokens=24, do_sample=False)[0]["generated_text"][-1]["content"]
    ' Of course! Oscar Palmer enjoys hockey. Happy to help!'
    ```
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not getattr(self.model, "tokenizers", None):
            raise ValueError(
                f"`{type(self).__name__}` writes each member's prompt with its tokenizer, and this {type(self.model).__name__} knows none. "
                "Set `model.tokenizers = {name: tokenizer, ...}` of an `EFTForCausalLM`, or `from_models(..., tokenizers=...)`."
            )

    def _sanitize_parameters(self, plain: Callable[..., str] | None = None, **kwargs: Any) -> Any:
        preprocess, forward, postprocess = super()._sanitize_parameters(**kwargs)
        return ({**preprocess, "plain": plain} if plain is not None else preprocess), forward, postprocess

    def preprocess(
        self,
        prompt_text: Any,
        plain: Callable[..., str] = as_plain_text,
        continue_final_message: bool | None = None,
        tools: Any = None,
        documents: Any = None,
        tokenizer_encode_kwargs: Mapping[str, Any] | None = None,
        **rest: Any,
    ) -> Any:
        """The first member's prompt, and those of the others beside it."""
        if isinstance(prompt_text, str):
            return super().preprocess(prompt_text, tokenizer_encode_kwargs=tokenizer_encode_kwargs, **rest)
        if cut := [name for name in _CUTS if rest.get(name)]:
            raise ValueError(f"The prompts of a chat, one for each member, are not cut or padded here: leave out {cut}.")
        messages = read_messages(prompt_text.messages)
        goes_on = messages[-1]["role"] == "assistant" if continue_final_message is None else continue_final_message
        main, *others = self.model.members
        known = {main: self.tokenizer, **self.model.tokenizers}
        prompts = member_inputs(
            [messages],
            {name: known[name] for name in (main, *others) if name in known},
            plain=(lambda chat: _up_to_the_last_word(plain(chat), chat)) if goes_on else plain,
            **(tokenizer_encode_kwargs or {}),
            add_generation_prompt=not goes_on,
            continue_final_message=goes_on,
            tools=tools,
            documents=documents,
        )
        inputs: dict[str, Any] = dict(prompts.pop(main))
        inputs |= {f"{name}{_OF}{key}": value for name, prompt in prompts.items() for key, value in prompt.items()}
        return {**inputs, "prompt_text": prompt_text}

    def _forward(self, model_inputs: Any, **generate_kwargs: Any) -> Any:
        own: dict[str, dict[str, Any]] = {}
        for key in [key for key in model_inputs if _OF in key]:
            name, what = key.split(_OF)
            own.setdefault(name, {})[what] = model_inputs.pop(key)
        return super()._forward(model_inputs, **({"member_inputs": own} if own else {}), **generate_kwargs)


def _up_to_the_last_word(text: str, messages: Sequence[Mapping[str, str]]) -> str:
    """A plain text whose last message is to be continued: nothing may follow it."""
    content = messages[-1]["content"]
    if content not in text:
        raise ValueError(f"The last message is to be continued, but `plain` did not write it: {content!r} is not in {text!r}.")
    return text[: text.rindex(content) + len(content)]
