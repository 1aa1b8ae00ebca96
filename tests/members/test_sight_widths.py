"""Members of one family whose heads differ in width, and whose tokenizers have the same content: cut by content, with pictures too."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from families import VOCAB, build
from lookers import picture, processor
from seeing import KINDS, PLACES, Shown, along, make, shown

from hf_eft import EFTForCausalLM, EFTLogitsProcessor, hub
from hf_eft.prompts import member_inputs

NEW = 5
WIDE, NARROW = VOCAB + 80, VOCAB + 2  # as 152,064 and 151,936 are for one tokenizer; further apart than padding is by itself
NAMES = ("base", "tuned", "reference")
GREEDY: dict[str, Any] = {"max_new_tokens": NEW, "do_sample": False, "suppress_tokens": PLACES, "eos_token_id": None}
STRATEGIES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "beams": {"num_beams": 3},
    "sample": {"do_sample": True, "top_k": 0, "num_return_sequences": 2},
    "static": {"cache_implementation": "static"},
    "drafts": {"assistant_model": "tuned", "num_assistant_tokens": 3},
    "small": {"assistant_model": "small", "num_assistant_tokens": 3},
    "match": {"do_sample": True, "top_k": 0, "coupling": "match", "seed": 5},
}


@functools.cache
def models(family: str, *widths: int) -> list[Any]:
    return [make(family, seed, vocab_size=width) for seed, width in enumerate(widths, start=1)]


def tokenizers(family: str = "qwen2_vl") -> dict[str, Any]:
    return {name: processor(family) for name in NAMES}


def wrapper(family: str, *widths: int) -> EFTForCausalLM:
    base, tuned, reference = models(family, *widths)
    return EFTForCausalLM.from_models(base, tuned=tuned, reference=reference, tokenizers=tokenizers())


def oracle(members: list[Any], given: Shown, row: int, text: torch.Tensor) -> torch.Tensor:
    """The combination's log-probs, `(length + 1, tokens)`, over the tokens that the tokenizer has, whatever else members' heads have."""
    prompt, pictures = given.row(row)
    ids = torch.cat([prompt, text])
    read = [along(model, given.family, ids, pictures)[len(prompt) - 1 :, :VOCAB] for model in members]
    return (read[0] + read[1] - read[2]).log_softmax(-1)


@pytest.mark.parametrize(
    ("name", "widths"),
    [
        *((name, (WIDE, NARROW, NARROW)) for name in STRATEGIES),
        *((name, (NARROW, WIDE, VOCAB)) for name in ("greedy", "drafts")),
    ],
    ids=lambda value: value if isinstance(value, str) else "wide_base" if value[0] == WIDE else "wide_tuned",
)
def test_tokens_are_those_that_the_tokenizer_has(name: str, widths: tuple[int, ...]) -> None:
    members, given, options = models("qwen2_vl", *widths), shown("qwen2_vl"), dict(STRATEGIES[name])
    model = wrapper("qwen2_vl", *widths)
    if "assistant_model" in options:
        options["assistant_model"] = {"tuned": members[1], "small": model.small_combination}[options["assistant_model"]]
    out = model.generate(
        **given.inputs, **{**GREEDY, **options}, return_dict_in_generate=True, output_logits=True, output_scores=True
    )
    each = options.get("num_return_sequences", 1)
    for i, sequence in enumerate(out.sequences):
        text = sequence[given.input_ids.shape[1] :]
        expected = oracle(members, given, i // each, text[:-1])
        if "num_beams" in options:
            torch.testing.assert_close(
                out.sequences_scores[i].double(), expected[range(NEW), text].sum() / NEW, atol=2e-4, rtol=0
            )
            continue
        logits = torch.stack([step[i].double() for step in out.logits])
        assert logits.shape[-1] == widths[0] and bool(logits[:, VOCAB:].isneginf().all())
        torch.testing.assert_close(logits[:, :VOCAB].log_softmax(-1), expected, atol=5e-4, rtol=0)
        if not options.get("do_sample"):
            expected[:, PLACES] = -torch.inf
            assert text.tolist() == expected.argmax(-1).tolist()


@pytest.mark.parametrize("family", [each for each in KINDS if each != "qwen2_vl"])
def test_other_families(family: str) -> None:
    members, given = models(family, WIDE, NARROW, NARROW), shown(family)
    out = wrapper(family, WIDE, NARROW, NARROW).generate(**given.inputs, **GREEDY)
    for i, sequence in enumerate(out):
        text = sequence[-NEW:]
        expected = oracle(members, given, i, text[:-1])
        expected[:, PLACES] = -torch.inf
        assert text.tolist() == expected.argmax(-1).tolist()


@pytest.mark.parametrize("options", [{}, {"num_beams": 2}, {"prompt_lookup_num_tokens": 2}], ids=["greedy", "beams", "lookup"])
def test_an_add_on_cuts_them_too(options: dict[str, Any]) -> None:
    base, tuned, reference = models("qwen2_vl", WIDE, NARROW, NARROW)
    given = shown("qwen2_vl", (1,), (3,))
    add_on = EFTLogitsProcessor(tuned, reference, tokenizers=tokenizers())
    got = base.generate(**given.inputs, **GREEDY, **options, logits_processor=[add_on])
    plain = {name: value for name, value in options.items() if "lookup" not in name}
    expected = wrapper("qwen2_vl", WIDE, NARROW, NARROW).generate(**given.inputs, **GREEDY, **plain, renormalize_logits=True)
    assert torch.equal(got, expected)


@pytest.mark.parametrize("drafts", [False, True])
def test_a_member_of_text_is_told_a_text(drafts: bool) -> None:
    """The member that sees has the wider head, as Gemma 3 of 4B has beside that of 1B."""
    base = models("gemma3", WIDE, NARROW, NARROW)[0]
    tuned, reference = (build("gemma3", seed, vocab_size=NARROW) for seed in (2, 3))
    given = shown("gemma3", (1,), (3,))
    told = {"input_ids": torch.tensor([[30, 31, 32, 33]])}
    model = EFTForCausalLM.from_models(base, tuned=tuned, reference=reference, tokenizers=tokenizers())
    options = {"assistant_model": tuned, "num_assistant_tokens": 2} if drafts else {}
    out = model.generate(**given.inputs, **GREEDY, **options, member_inputs={"tuned": told, "reference": told})
    text = out[0, -NEW:]
    prompt, pictures = given.row(0)
    read = [along(base, "gemma3", torch.cat([prompt, text[:-1]]), pictures)[len(prompt) - 1 :, :VOCAB]]
    read += [along(each, None, torch.cat([told["input_ids"][0], text[:-1]]), {})[3:, :VOCAB] for each in (tuned, reference)]
    expected = (read[0] + read[1] - read[2]).log_softmax(-1)
    expected[:, PLACES] = -torch.inf
    assert text.tolist() == expected.argmax(-1).tolist()


def test_without_tokenizers_nobody_says_that_the_rest_is_padding() -> None:
    base, tuned, reference = models("qwen2_vl", WIDE, NARROW, NARROW)
    with pytest.raises(ValueError, match=r"differ by more than padding.*say so: `tokenizers="):
        EFTForCausalLM.from_models(base, tuned=tuned, reference=reference)


def test_a_saved_folder_brings_them_back(tmp_path: Path) -> None:
    base, tuned, reference = models("llava", WIDE, NARROW, NARROW)
    model = EFTForCausalLM.from_models(base, tuned=tuned, reference=reference, tokenizers=tokenizers("llava"))
    model.save_pretrained(tmp_path)
    loaded, _ = hub.load(tmp_path)
    chat = [{"role": "user", "content": [{"type": "image", "image": picture(3)}, {"type": "text", "text": "w20 w21"}]}]
    inputs = member_inputs([chat], loaded.processors)["base"]
    found = [each(**inputs).logits for each in (model, loaded)]
    assert torch.equal(*found) and found[0].shape[-1] == WIDE and bool(found[1][..., VOCAB:].isneginf().all())
    drafted = loaded.generate(**inputs, **GREEDY, assistant_model=loaded.members["tuned"], num_assistant_tokens=2)
    assert torch.equal(drafted, model.generate(**inputs, **GREEDY))
