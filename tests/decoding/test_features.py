"""Everything else that a user of `generate` passes: streamers, criteria, embeddings, coefficients by row, recipes."""

from __future__ import annotations

import copy
import threading
from typing import Any

import pytest
import torch
from families import EOS, VOCAB, build, prompts, shared, tokenizer
from transformers import (
    AutoModelForCausalLM,
    LogitsProcessorList,
    StoppingCriteriaList,
    TextIteratorStreamer,
    WatermarkingConfig,
)

from hf_eft import Combination, EFTForCausalLM, EFTLogitsProcessor, tiny
from hf_eft.members.releases import CACHE, cache_of


@pytest.fixture
def trio() -> tuple[Any, Any, Any, EFTForCausalLM]:
    base, tuned = shared("llama", 0), shared("gpt2", 1)
    reference = copy.deepcopy(base)
    return base, tuned, reference, EFTForCausalLM.from_models(base, tuned=tuned, reference=reference)


def both(trio: tuple[Any, Any, Any, EFTForCausalLM]) -> list[tuple[Any, dict[str, Any]]]:
    """The wrapper, and the base with the add-on."""
    base, tuned, reference, model = trio
    return [(model, {}), (base, {"logits_processor": [EFTLogitsProcessor(tuned, reference, pad_token_id=0)]})]


def test_streamer_and_stop_strings() -> None:
    base, tuned, _reference, tok = tiny.load()
    question = tiny.questions()[0]
    inputs = tok(question.prompt, return_tensors="pt", return_token_type_ids=False)
    model = EFTForCausalLM.from_models(base, tuned=tuned, reference=base)
    whole = tok.decode(tuned.generate(**inputs, max_new_tokens=24)[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    stop = " was born"
    assert stop in whole
    add_on = EFTLogitsProcessor(tuned, base)
    for which, options in ((model, {}), (base, {"logits_processor": [add_on]})):
        streamer = TextIteratorStreamer(tok, skip_prompt=True, timeout=60)
        arguments = {**inputs, **options, "streamer": streamer, "max_new_tokens": 24, "stop_strings": [stop], "tokenizer": tok}
        thread = threading.Thread(target=which.generate, kwargs=arguments)
        thread.start()
        text = "".join(streamer)
        thread.join()
        assert text.strip() == whole.split(stop)[0].strip() + stop


def test_stopping_criteria_and_max_time(trio: Any) -> None:
    inputs = prompts("left")
    expected = trio[1].generate(**inputs, max_new_tokens=10)

    def after_four(input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        return torch.full((input_ids.shape[0],), input_ids.shape[1] >= 13)

    for model, options in both(trio):
        got = model.generate(**inputs, max_new_tokens=10, stopping_criteria=StoppingCriteriaList([after_four]), **options)
        assert got.tolist() == expected[:, :13].tolist()
        got = model.generate(**inputs, max_new_tokens=10, max_time=0.0, **options)
        assert got.tolist() == expected[:, :10].tolist()


def test_prefix_allowed_tokens_and_watermark(trio: Any) -> None:
    inputs = prompts("left")

    def even_only(row: int, ids: torch.Tensor) -> list[int]:
        return list(range(4 + 2 * row, VOCAB, 2))

    watermark = WatermarkingConfig(bias=2.0, seeding_scheme="selfhash")
    for given in ({"prefix_allowed_tokens_fn": even_only}, {"watermarking_config": watermark}):
        expected = trio[1].generate(**inputs, max_new_tokens=8, **given).tolist()
        for model, options in both(trio):
            assert model.generate(**inputs, max_new_tokens=8, **given, **options).tolist() == expected


def contrastive_search(
    model: Any, input_ids: Any, logits_processor: Any, stopping_criteria: Any, generation_config: Any, **kwargs: Any
):
    """A local recipe of contrastive search (top-4, penalty 0.6), as the code on the Hub does it: it repeats, selects and re-reads
    the cache, and reads the hidden states."""
    top, penalty = 4, 0.6
    inputs = model.prepare_inputs_for_generation(input_ids, attention_mask=kwargs["attention_mask"], use_cache=True)
    out = model(**inputs, output_hidden_states=True)
    seen, cache = out.hidden_states[-1], cache_of(out)
    while input_ids.shape[1] < generation_config.max_length:
        scores = logits_processor(input_ids, out.logits[:, -1].float())
        probs, candidates = scores.softmax(-1).topk(top)
        cache.batch_repeat_interleave(top)
        mask = torch.ones(top, input_ids.shape[1] + 1, dtype=torch.long)
        out = model(candidates.view(-1, 1), attention_mask=mask, use_cache=True, output_hidden_states=True, **{CACHE: cache})
        new = out.hidden_states[-1]  # (top, 1, hidden)
        alike = torch.cosine_similarity(new, seen.expand(top, -1, -1), dim=-1).amax(-1)
        best = ((1 - penalty) * probs[0] - penalty * alike).argmax()
        cache.batch_select_indices(best[None])
        input_ids = torch.cat([input_ids, candidates[:, best, None]], dim=1)
        seen = torch.cat([seen, new[best][None]], dim=1)
        out.logits = out.logits[best][None]
    return input_ids


def test_custom_generate_with_a_recipe_of_contrastive_search() -> None:
    # Hidden states are the base's, so that only alpha = 0 has a plain model to compare with.
    base, tuned, reference = shared("llama", 0), shared("gpt2", 1), shared("gpt2", 2)
    inputs = {"input_ids": prompts("one")["input_ids"], "max_new_tokens": 8, "custom_generate": contrastive_search}
    expected = base.generate(**inputs).tolist()
    assert expected != base.generate(inputs["input_ids"], max_new_tokens=8).tolist()
    model = EFTForCausalLM.from_models(base, tuned=tuned, reference=reference, alpha=0.0)
    assert model.generate(**inputs).tolist() == expected
    add_on = EFTLogitsProcessor(tuned, reference, alpha=0.0)
    assert base.generate(**inputs, logits_processor=LogitsProcessorList([add_on])).tolist() == expected
    # With a delta, wrapper and add-on agree with each other.
    model.combination = Combination.emulate()
    got = model.generate(**inputs).tolist()
    assert got != expected
    add_on = EFTLogitsProcessor(tuned, reference)
    assert base.generate(**inputs, logits_processor=LogitsProcessorList([add_on])).tolist() == got


def test_token_healing(trio: Any) -> None:
    tok = tokenizer()
    ids = prompts("one")["input_ids"]
    options = {"max_new_tokens": 6, "token_healing": True, "tokenizer": tok}
    expected = trio[1].generate(ids, **options).tolist()
    for model, add_on in both(trio):
        assert model.generate(ids, **options, **add_on).tolist() == expected


@pytest.mark.parametrize("with_ids", [True, False], ids=["with ids", "without ids"])
def test_inputs_embeds(trio: Any, with_ids: bool) -> None:
    _, tuned, _, model = trio
    inputs = prompts("left")
    expected = tuned.generate(**inputs, max_new_tokens=8)[:, inputs["input_ids"].shape[1] :]  # fewer than 8 if all rows end
    embeds = model.get_input_embeddings()(inputs["input_ids"])
    given = {"inputs_embeds": embeds, "attention_mask": inputs["attention_mask"]}
    if with_ids:
        given["input_ids"] = inputs["input_ids"]
    assert model.generate(**given, max_new_tokens=8)[:, -expected.shape[1] :].tolist() == expected.tolist()


def test_inputs_embeds_that_are_no_tokens_are_refused(trio: Any) -> None:
    base, tuned, reference, model = trio
    embeds = model.get_input_embeddings()(prompts("one")["input_ids"])
    with pytest.raises(ValueError, match="is no row of the main member's embedding table"):
        model.generate(inputs_embeds=embeds + 0.01, max_new_tokens=2)
    with pytest.raises(ValueError, match="6 tokens, but `input_ids` are 2"):
        model.generate(inputs_embeds=embeds, input_ids=torch.tensor([[3, 4]]), max_new_tokens=2)
    with pytest.raises(ValueError, match="without `input_ids`"):
        base.generate(inputs_embeds=embeds, max_new_tokens=2, logits_processor=[EFTLogitsProcessor(tuned, reference)])
    twins = build("llama", 3)
    with torch.no_grad():
        twins.get_input_embeddings().weight[5] = twins.get_input_embeddings().weight[6]
    model = EFTForCausalLM.from_models(twins, tuned=tuned, reference=reference)
    with pytest.raises(ValueError, match="is more than one row"):
        model.generate(inputs_embeds=twins.get_input_embeddings()(torch.tensor([[5, 7]])), max_new_tokens=2)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"do_sample": True},
        {"num_beams": 3},
        {"do_sample": True, "num_return_sequences": 2},
        {"cache_implementation": "static"},
    ],
    ids=["greedy", "sample", "beam", "return sequences", "static"],
)
def test_coefficients_by_row(options: dict[str, Any]) -> None:
    base, tuned, reference = shared("llama", 0), shared("gpt2", 1), shared("gpt2", 2)
    model = EFTForCausalLM.from_models(base, tuned=tuned, reference=reference)
    inputs = prompts("left")
    alphas = [0.0, 0.5, 2.0]
    coefficients = torch.tensor([[1.0, a, -a] for a in alphas])
    copies = options.get("num_return_sequences", 1)
    if options.get("do_sample"):
        # Each row's distribution decides: with a fixed stream of noise, look at the first step's scores.
        options = {**options, "output_scores": True, "return_dict_in_generate": True}
        got = model.generate(**inputs, coefficients=coefficients, max_new_tokens=1, **options).scores[0]
        for row, alpha in enumerate(alphas):
            model.combination = Combination.emulate(alpha=alpha)
            alone = model.generate(**inputs, max_new_tokens=1, **options).scores[0]
            part = slice(row * copies, (row + 1) * copies)
            torch.testing.assert_close(got[part].log_softmax(-1), alone[part].log_softmax(-1))
        return
    got = model.generate(**inputs, coefficients=coefficients, max_new_tokens=8, **options)
    for row, alpha in enumerate(alphas):
        model.combination = Combination.emulate(alpha=alpha)
        alone = model.generate(**inputs, max_new_tokens=8, **options)
        length = min(got.shape[1], alone.shape[1])
        assert got[row, :length].tolist() == alone[row, :length].tolist()


def test_coefficients_by_row_with_an_assistant() -> None:
    base, tuned, reference = shared("llama", 0), shared("gpt2", 1), shared("gpt2", 2)
    model = EFTForCausalLM.from_models(base, tuned=tuned, reference=reference)
    inputs, coefficients = prompts("one"), torch.tensor([[1.0, 1.7, -1.7]])
    expected = model.generate(**inputs, coefficients=coefficients, max_new_tokens=10).tolist()
    for assistant in (base, model):
        got = model.generate(**inputs, coefficients=coefficients, max_new_tokens=10, assistant_model=assistant)
        assert got.tolist() == expected


def test_an_assistant_with_another_tokenizer(trio: Any) -> None:
    base, tuned, reference, model = trio
    small_tok = tokenizer(offset=9)
    assistant = build("llama", 4, vocab_size=VOCAB + 6)
    tok = tokenizer()
    inputs = prompts("one")
    options = {"max_new_tokens": 8, "assistant_model": assistant, "tokenizer": tok, "assistant_tokenizer": small_tok}
    expected = tuned.generate(**inputs, max_new_tokens=8).tolist()
    assert model.generate(**inputs, **options).tolist() == expected
    add_on = EFTLogitsProcessor(tuned, reference, assistant_vocab_size=VOCAB + 6)
    assert base.generate(**inputs, **options, logits_processor=[add_on]).tolist() == expected
    options["assistant_model"] = build("llama", 4, vocab_size=VOCAB + 100)
    with pytest.raises(ValueError, match="assistant_vocab_size=164"):
        base.generate(**inputs, **options, logits_processor=[EFTLogitsProcessor(tuned, reference)])


def test_the_add_on_says_that_it_cannot_be_batched_continuously(trio: Any) -> None:
    _, tuned, reference, _ = trio
    assert EFTLogitsProcessor(tuned, reference).supports_continuous_batching is False
    assert "drops logits processors" in EFTLogitsProcessor.__doc__


def test_loss_and_training_step() -> None:
    model = EFTForCausalLM.from_models(build("llama", 0), tuned=build("llama", 1), reference=build("llama", 2))
    ids = prompts("even")["input_ids"]
    out = model(ids, labels=ids)
    expected = torch.nn.functional.cross_entropy(out.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    torch.testing.assert_close(out.loss, expected)
    out.loss.backward()
    for name, member in model.members.items():
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in [member.lm_head.weight]), name


def test_hidden_states_and_attentions_are_the_base_s(trio: Any) -> None:
    base, tuned, _, _ = trio
    base = build("llama", 0, attn_implementation="eager")
    model = EFTForCausalLM.from_models(base, tuned=tuned, reference=shared("gpt2", 2))
    ids = prompts("one")["input_ids"]
    with torch.no_grad():
        got, expected = (m(ids, output_hidden_states=True, output_attentions=True) for m in (model, base))
    for a, b in zip(got.hidden_states + got.attentions, expected.hidden_states + expected.attentions, strict=True):
        torch.testing.assert_close(a, b)
    out = model.generate(ids, max_new_tokens=3, output_hidden_states=True, output_logits=True, return_dict_in_generate=True)
    assert len(out.hidden_states) == 3 and len(out.logits) == 3


def test_logits_to_keep_and_tuples(trio: Any) -> None:
    model, ids = trio[3], prompts("even")["input_ids"]
    with torch.no_grad():
        every = model(ids).logits
        torch.testing.assert_close(model(ids, logits_to_keep=2).logits, every[:, -2:])
        torch.testing.assert_close(model(ids, logits_to_keep=torch.tensor([0, 3])).logits, every[:, [0, 3]])
        torch.testing.assert_close(model(ids, return_dict=False)[0], every)


def test_save_and_load_a_folder(tmp_path: Any) -> None:
    tuned = build("gpt2", 1)
    model = EFTForCausalLM.from_models(build("llama", 0), tuned=tuned, reference=build("gpt2", 2), beta=1.5)
    inputs = prompts("left")
    expected = model.generate(**inputs, max_new_tokens=8).tolist()
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert isinstance(loaded, EFTForCausalLM)
    assert loaded.combination == Combination.emulate(beta=1.5)
    assert loaded.generate(**inputs, max_new_tokens=8).tolist() == expected


def test_save_and_load_members_that_share_a_model(tmp_path: Any) -> None:
    base = build("llama", 0)
    model = EFTForCausalLM.from_models(base, tuned=build("gpt2", 1), reference=base)
    model.save_pretrained(tmp_path)
    loaded = EFTForCausalLM.from_pretrained(tmp_path)
    assert loaded.members["reference"] is loaded.members["base"] is loaded.reference
    assert list(loaded.members) == ["base", "tuned", "reference"]
    inputs = prompts("left")
    assert loaded.generate(**inputs, max_new_tokens=8).tolist() == model.generate(**inputs, max_new_tokens=8).tolist()


def test_mixed_dtypes() -> None:
    base, tuned = build("llama", 0), build("gpt2", 1).to(torch.bfloat16)
    model = EFTForCausalLM.from_models(base, tuned=tuned, reference=build("gpt2", 2).to(torch.float64))
    out = model.generate(**prompts("left"), max_new_tokens=4, output_logits=True, return_dict_in_generate=True)
    assert all(step.dtype == torch.float32 and bool(step.isfinite().all()) for step in out.logits)
    assert {p.dtype for p in tuned.parameters()} == {torch.bfloat16}


def test_the_members_are_left_as_they_are() -> None:
    base, tuned, reference = build("llama", 0), build("gpt2", 1), build("gpt2", 2)
    base.train()
    before = [
        (
            m.training,
            m.config.to_dict(),
            m.generation_config.to_dict(),
            {k: v.clone() for k, v in m.state_dict().items()},
            set(vars(m)),
        )
        for m in (base, tuned, reference)
    ]
    model = EFTForCausalLM.from_models(base, tuned=tuned, reference=reference)
    base.eval()
    for options in ({}, {"cache_implementation": "static"}, {"num_beams": 2}):
        model.generate(**prompts("left"), max_new_tokens=4, **options)
    base.train()
    model.config.use_cache = False
    model.generation_config.max_new_tokens = 3
    for m, (training, config, generation, weights, attributes) in zip((base, tuned, reference), before, strict=True):
        assert m.training == training and m.config.to_dict() == config and m.generation_config.to_dict() == generation
        assert all(torch.equal(v, weights[k]) for k, v in m.state_dict().items())
        assert set(vars(m)) == attributes
    assert model.tuned is tuned and model.members["base"] is base
    assert next(model.parameters()).data_ptr() == next(base.parameters()).data_ptr()


def test_the_tuned_member_s_generation_config_is_used() -> None:
    tuned = build("gpt2", 1)
    tuned.generation_config.eos_token_id = [EOS, 7]
    model = EFTForCausalLM.from_models(shared("llama", 0), tuned=tuned, reference=shared("gpt2", 2))
    assert model.generation_config.eos_token_id == [EOS, 7]
    assert model.generation_config is not tuned.generation_config


def test_recipes_without_a_base() -> None:
    small, tuned = shared("gpt2", 2), shared("gpt2", 1)
    model = EFTForCausalLM.from_models(None, tuned=tuned, reference=small, combination=Combination.interpolate(1.0))
    inputs = prompts("left")
    assert model.generate(**inputs, max_new_tokens=8).tolist() == tuned.generate(**inputs, max_new_tokens=8).tolist()
    add_on = EFTLogitsProcessor(tuned, small, combination=Combination.interpolate(1.0), pad_token_id=0)
    got = shared("llama", 0).generate(**inputs, max_new_tokens=8, logits_processor=[add_on])
    assert got.tolist() == tuned.generate(**inputs, max_new_tokens=8).tolist()


def test_resize_token_embeddings_resizes_every_member() -> None:
    model = EFTForCausalLM.from_models(build("llama", 0), tuned=build("gpt2", 1), reference=build("gpt2", 2))
    model.resize_token_embeddings(VOCAB + 8, mean_resizing=False)
    with torch.no_grad():
        assert model(prompts("one")["input_ids"]).logits.shape[-1] == VOCAB + 8
    assert all(m.config.vocab_size == VOCAB + 8 for m in model.members.values())
    assert model.config.get_text_config().vocab_size == VOCAB + 8
