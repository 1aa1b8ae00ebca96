"""Vocabularies: content decides, never size. Padding is never generated; what goes together is known before weights are loaded."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from families import EOS, PAD, VOCAB, build, prompts, shared, tokenizer
from typer.testing import CliRunner

from hf_eft import EFTForCausalLM, EFTLogitsProcessor, tiny
from hf_eft.cli import app
from hf_eft.hub.compatibility import check_members
from hf_eft.members.vocabulary import Vocabulary, check_tokenizers


def padded(model: Any, width: int) -> Any:
    """The same model with more rows in its tables, whose logits are large."""
    wider = copy.deepcopy(model)
    wider.resize_token_embeddings(width, mean_resizing=False)
    with torch.no_grad():
        for table in (wider.get_input_embeddings(), wider.get_output_embeddings()):
            table.weight[model.config.vocab_size :].normal_(0, 4, generator=torch.Generator().manual_seed(1))
    return wider


WIDTHS = [(70, 64, 64), (64, 70, 64), (70, 64, 81), (66, 81, 70), (64, 64, 70)]
WAYS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "beams": {"num_beams": 3},
    "match": {"do_sample": True, "coupling": "match", "seed": 3},
    "static": {"cache_implementation": "static"},
    "penalty": {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("widths", WIDTHS, ids=str)
def test_padding_changes_nothing_and_is_never_generated(widths: tuple[int, int, int], way: str) -> None:
    models = {"base": shared("llama", 0), "tuned": shared("qwen3", 1), "reference": shared("qwen3", 2)}
    wider = {
        name: padded(model, width) if width > VOCAB else model
        for (name, model), width in zip(models.items(), widths, strict=True)
    }
    size = min(widths)  # what all have, padding included that all have
    narrow = {name: padded(model, size) if size > VOCAB else model for name, model in models.items()}
    if size > VOCAB:  # the rows that all have are those of the wide ones
        for name in narrow:
            for table in ("get_input_embeddings", "get_output_embeddings"):
                getattr(narrow[name], table)().weight.data.copy_(getattr(wider[name], table)().weight.data[:size])
    inputs, options = prompts("left"), {"max_new_tokens": 10, **WAYS[way]}
    model, exact = EFTForCausalLM.from_models(**wider), EFTForCausalLM.from_models(**narrow)
    expected = exact.generate(**inputs, **options).tolist()
    assert model.generate(**inputs, **options).tolist() == expected
    logits = model(**inputs).logits
    assert logits.shape[-1] == widths[0]
    assert bool((logits[..., size:] == -torch.inf).all())
    if way in ("greedy", "match"):
        for name in wider:
            drafted = model.generate(**inputs, **options, assistant_model=model.members[name])
            assert drafted.tolist() == expected, name
    if way in ("greedy", "beams"):
        add_on = EFTLogitsProcessor(wider["tuned"], wider["reference"], pad_token_id=PAD)
        assert wider["base"].generate(**inputs, **options, logits_processor=[add_on]).tolist() == expected


def test_ids_that_no_tokenizer_knows_are_never_generated() -> None:
    """All members have padding rows here, and large logits for them; a tokenizer says that they are no tokens."""
    models = {
        name: padded(shared(f, s), 70) for name, f, s in (("base", "llama", 0), ("tuned", "gpt2", 1), ("reference", "gpt2", 2))
    }
    words = tokenizer()
    known = set(words.get_vocab().values())
    inputs = prompts("left")
    options = {"max_new_tokens": 30, "eos_token_id": None}
    loose = EFTForCausalLM.from_models(**models).generate(**inputs, **options)
    assert not set(loose[:, 9:].flatten().tolist()) <= known, "the test needs padding that would be generated"
    model = EFTForCausalLM.from_models(**models, tokenizers=dict.fromkeys(models, words))
    held = model.generate(**inputs, **options)
    assert set(held[:, 9:].flatten().tolist()) <= known
    assert model.generate(**inputs, **options, assistant_model=model.tuned).tolist() == held.tolist()
    add_on = EFTLogitsProcessor(models["tuned"], models["reference"], tokenizers=dict.fromkeys(models, words), pad_token_id=PAD)
    assert models["base"].generate(**inputs, **options, logits_processor=[add_on]).tolist() == held.tolist()
    sampled = model.generate(**inputs, **options, do_sample=True, temperature=3.0)
    assert set(sampled[:, 9:].flatten().tolist()) <= known


@pytest.mark.parametrize("knows_more", ["base", "tuned", "reference"])
def test_tokens_that_only_some_members_know_are_never_generated(knows_more: str) -> None:
    tokenizers = {name: tokenizer() for name in ("base", "tuned", "reference")}
    tokenizers[knows_more].add_tokens(["<new>"])
    new = tokenizers[knows_more].convert_tokens_to_ids("<new>")
    vocabulary = Vocabulary(dict.fromkeys(tokenizers, new + 3), tokenizers)
    assert vocabulary.known is not None
    assert not vocabulary.known[new]
    assert vocabulary.known[:new].all()
    assert not vocabulary.known[new:].any()


def test_texts_that_could_never_end_are_refused() -> None:
    tuned = padded(shared("gpt2", 1), 70)
    tuned.generation_config = copy.deepcopy(tuned.generation_config)
    tuned.generation_config.eos_token_id = 68
    with pytest.raises(ValueError, match=r"could never end: of the end tokens \[68\] of the member 'tuned'"):
        EFTForCausalLM.from_models(shared("llama", 0), tuned=tuned, reference=shared("gpt2", 2))
    tuned.generation_config.eos_token_id = [68, EOS]
    EFTForCausalLM.from_models(shared("llama", 0), tuned=tuned, reference=shared("gpt2", 2))


ENDS = {
    "greedy": {},
    "sample": {"do_sample": True},
    "beams": {"num_beams": 3},
    "match": {"do_sample": True, "coupling": "match", "seed": 3},
}


@pytest.mark.parametrize("way", ENDS)
def test_several_end_tokens_are_the_tuned_member_s(way: str) -> None:
    """base ends at 2, tuned at 2 and at a turn's end, reference at 2: what comes out ends as the tuned model's own does."""
    options, inputs = {"max_new_tokens": 24, **ENDS[way]}, prompts("left")
    base, tuned, reference = shared("llama", 0), copy.copy(shared("gpt2", 1)), copy.deepcopy(shared("llama", 0))

    def run(model: Any, **more: Any) -> list[list[int]]:
        torch.manual_seed(5)
        return model.generate(**inputs, **{**options, **more}).tolist()

    longest = EFTForCausalLM.from_models(base, tuned=tuned, reference=reference)
    written = run(longest, eos_token_id=None)
    # A token that is written in the middle of a row, before any end.
    turn = next(row[9 + k] for k in (4, 3, 2, 1) for row in written if EOS not in row[9 : 10 + k])
    tuned.generation_config = copy.deepcopy(tuned.generation_config)
    tuned.generation_config.eos_token_id = [EOS, turn]
    model = EFTForCausalLM.from_models(base, tuned=tuned, reference=reference)
    assert model.generation_config.eos_token_id == [EOS, turn]
    assert base.generation_config.eos_token_id == EOS
    ended = run(model)
    assert ended != run(model, eos_token_id=EOS) == run(longest), "the call's own end tokens take the place of the default"
    assert run(model, eos_token_id=[EOS, turn]) == run(longest, eos_token_id=[EOS, turn]) == ended
    if way != "match":  # which only a combination knows
        assert ended == run(tuned)
        add_on = [EFTLogitsProcessor(tuned, reference, pad_token_id=PAD)]
        assert run(base, logits_processor=add_on) == run(longest), "the add-on's is the base's"
        assert run(base, logits_processor=add_on, eos_token_id=[EOS, turn]) == ended
        config = copy.deepcopy(tuned.generation_config)
        config.update(**options)
        torch.manual_seed(5)
        assert base.generate(**inputs, logits_processor=add_on, generation_config=config).tolist() == ended
    if way in ("greedy", "match"):
        assert run(model, assistant_model=model.tuned) == ended


def test_widths_that_are_no_padding_need_a_tokenizer_s_word() -> None:
    with pytest.raises(ValueError, match=r"more than padding, got 'a': 1000, 'b': 1100 tokens"):
        Vocabulary({"a": 1000, "b": 1100})
    assert Vocabulary({"a": 151_936, "b": 152_064}).size == 151_936
    assert Vocabulary({"a": 1000, "b": 1100}, {"a": tokenizer(), "b": tokenizer()}).size == 1000
    with pytest.raises(ValueError, match="differ in content"):
        check_tokenizers({"a": tokenizer(), "b": tokenizer(offset=1)})


# Before any weights are loaded ----------------------------------------------------------------------------------------


def folder(path: Path, model: Any, words: Any) -> str:
    model.save_pretrained(path)
    words.save_pretrained(path)
    return str(path)


def test_the_embedded_family_goes_together() -> None:
    findings = check_members({name: str(tiny.path(name)) for name in ("base", "tuned", "reference")})
    assert {finding.level for finding in findings} <= {"ok", "note"}
    text = "\n".join(f"{f.subject}: {f.text}" for f in findings)
    base, *_ = tiny.load()
    assert "every token has one id" in text
    assert f"base: {base.config.model_type}" in text
    done = CliRunner().invoke(app, ["check", *(str(tiny.path(n)) for n in ("base", "tuned", "reference")), "--json"])
    assert done.exit_code == 0
    assert json.loads(done.output)[0]["subject"] == "base"


def test_what_will_be_refused_is_said_beforehand(tmp_path: Path) -> None:
    good = folder(tmp_path / "good", shared("llama", 0), tokenizer())
    other = folder(tmp_path / "other", shared("gpt2", 1), tokenizer(offset=1))
    pickled = folder(tmp_path / "pickled", build("llama", 1), tokenizer())
    (tmp_path / "pickled" / "model.safetensors").rename(tmp_path / "pickled" / "pytorch_model.bin")
    more = tokenizer()
    more.add_tokens(["<new>"])
    wider = folder(tmp_path / "wider", padded(shared("llama", 2), 70), more)

    def refused(*folders: str) -> str:
        found = check_members(dict(zip(("base", "tuned", "reference"), folders, strict=True)))
        return "\n".join(f.text for f in found if f.level == "refused")

    assert refused(good, good, good) == ""
    assert "differ in content" in refused(good, other, good)
    assert "no safetensors file" in refused(good, pickled, good)
    assert "cannot be read from" in refused(good, str(tmp_path / "nowhere"), good)
    assert refused(good, wider, good) == ""
    notes = [f.text for f in check_members({"base": good, "tuned": wider, "reference": good}) if f.level == "note"]
    assert any("tuned knows 1 tokens that base, reference do not ('<new>'): never generated" in note for note in notes)
    done = CliRunner().invoke(app, ["check", good, other, good])
    assert done.exit_code == 1
    assert "✗" in done.output
