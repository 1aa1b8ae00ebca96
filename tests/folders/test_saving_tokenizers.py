"""Tokenizers lie in the folder beside the members that have them, once where they agree, and come back with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from families import build
from saveable import logits
from transformers import AutoTokenizer, pipeline

from hf_eft import EFTForCausalLM, hub, tiny


def tokenizers_of(**templates: str | None) -> dict[str, Any]:
    tokenizers = {}
    for name in ("base", "tuned", "reference"):
        tokenizers[name] = AutoTokenizer.from_pretrained(tiny.path("base"))
        tokenizers[name].chat_template = templates.get(name)
    return tokenizers


def test_the_tuned_members_tokenizer_lies_at_the_root(tmp_path: Path) -> None:
    base, tuned, reference, _ = tiny.load()
    given = tokenizers_of(tuned="{{ messages[0].content }}")
    model = EFTForCausalLM.from_models(base, tuned=tuned, reference=reference, tokenizers=given)
    assert model.tokenizers == given
    model.save_pretrained(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path).chat_template == "{{ messages[0].content }}"
    assert (tmp_path / "members/base/tokenizer.json").is_file()
    assert not (tmp_path / "members/tuned/tokenizer.json").exists()
    loaded, tokenizers = hub.load(tmp_path)
    assert {name: t.chat_template for name, t in tokenizers.items()} == {name: t.chat_template for name, t in given.items()}
    ids = tokenizers["base"](tiny.questions()[0].prompt, return_tensors="pt", return_token_type_ids=False)
    assert torch.equal(loaded(**ids).logits, model(**ids).logits)
    assert loaded.config.tokenizer_members == ["base", "tuned", "reference"]


def test_tokenizers_that_agree_are_there_once(tmp_path: Path) -> None:
    base, tuned, reference, tokenizer = tiny.load()
    model = EFTForCausalLM.from_models(base, tuned=tuned, reference=reference)
    model.save_pretrained(tmp_path, tokenizers=dict.fromkeys(model.members, tokenizer))
    assert [p.parent for p in tmp_path.rglob("tokenizer.json")] == [tmp_path]
    _, tokenizers = hub.load(tmp_path)
    assert len({id(each) for each in tokenizers.values()}) == 1
    with pytest.raises(ValueError, match="other"):
        model.save_pretrained(tmp_path, tokenizers={"other": tokenizer})


@pytest.mark.parametrize("compared", [True, False])
def test_known_tokens_are_those_of_the_tokenizers_that_were_compared(compared: bool, tmp_path: Path) -> None:
    given = tokenizers_of()
    size = len(given["base"])
    wide = [build("llama", seed, vocab_size=size + 5) for seed in range(3)]
    model = EFTForCausalLM.from_models(wide[0], tuned=wide[1], reference=wide[2], tokenizers=given if compared else None)
    model.save_pretrained(tmp_path, tokenizers=given)
    loaded = EFTForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(logits(loaded), logits(model))
    assert bool(logits(loaded)[..., size:].isneginf().all()) is compared


def test_a_pipeline_runs_the_folder(tmp_path: Path) -> None:
    base, tuned, reference, tokenizer = tiny.load()
    model = EFTForCausalLM.from_models(base, tuned=tuned, reference=reference, tokenizers={"tuned": tokenizer})
    model.save_pretrained(tmp_path)
    question = tiny.questions()[0]
    ids = tokenizer(question.prompt, return_tensors="pt", return_token_type_ids=False)
    expected = tokenizer.decode(
        model.generate(**ids, max_new_tokens=16)[0, ids["input_ids"].shape[1] :], skip_special_tokens=True
    )
    ask = pipeline("text-generation", model=str(tmp_path))
    out = ask(question.prompt, max_new_tokens=16, return_full_text=False, do_sample=False)  # pipelines sample by default
    assert out[0]["generated_text"] == expected
