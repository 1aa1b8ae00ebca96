"""Chats of the embedded family, tokenizers whose templates differ, and the models and pipelines that know them."""

from __future__ import annotations

import copy
from typing import Any

from transformers import pipeline

from hf_eft import EFTForCausalLM, tiny
from hf_eft.prompts.pipeline import MemberPromptPipeline

QUESTIONS = [tiny.questions()[i] for i in (0, 5, 2, 9, 7)]
TEXTS = [question.prompt for question in QUESTIONS]
CHATS = [[{"role": "user", "content": question.text}] for question in QUESTIONS]
NAMES = ("base", "tuned", "reference")

OTHER_TEMPLATE = (
    "{% for m in messages %}{{ 'Ask: ' + m['content'] }}{% endfor %}{% if add_generation_prompt %}{{ '\nReply:' }}{% endif %}"
)


def wrapper(family: tiny.Family, **options: Any) -> EFTForCausalLM:
    return EFTForCausalLM.from_models(family.base, tuned=family.tuned, reference=family.reference, **options)


def expected(family: tiny.Family, text: str, **options: Any) -> list[str]:
    """What `generate` of the wrapper writes after a text, for each returned sequence."""
    inputs = family.tokenizer(text, return_tensors="pt", return_token_type_ids=False)
    ids = wrapper(family).generate(**inputs, **{"max_new_tokens": 12, **options})
    return family.tokenizer.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def three(family: tiny.Family, **templates: str | None) -> dict[str, Any]:
    """The tokenizer of each member, with other templates where that is said."""
    tokenizers = {name: copy.deepcopy(family.tokenizer) for name in NAMES}
    for name, template in templates.items():
        tokenizers[name].chat_template = template
    return tokenizers


def with_prompts(family: tiny.Family, tokenizers: dict[str, Any], **options: Any) -> Any:
    model = wrapper(family, tokenizers=tokenizers, **options)
    return model, pipeline("text-generation", model=model, tokenizer=tokenizers["base"], pipeline_class=MemberPromptPipeline)
