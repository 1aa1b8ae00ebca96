"""Adapters as members: one copy of the weights, one pass for all of them, and the results of full models of their own."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from families import build, prompts, shared
from transformers import CompileConfig

from hf_eft import Combination, EFTForCausalLM, EFTLogitsProcessor
from hf_eft.members.releases import cache_of

# What PEFT says while adapters are made.
_PEFT_SAYS = (
    "`is_gradient_checkpointing` is deprecated",
    "fan_in_fan_out is set",
    "Already found a `peft_config`",
    "The following",
    "Unsupported layer type",
)
pytestmark = [pytest.mark.filterwarnings(f"ignore:{said}") for said in _PEFT_SAYS]

FAMILY_OF = {"lora_bias": "gpt2"}  # its linear layers have biases
LLAMA_LINEAR = ["q_proj", "v_proj", "down_proj"]


def lora(**options: Any) -> peft.LoraConfig:
    chosen = {"r": 4, "lora_alpha": 16, "target_modules": LLAMA_LINEAR, "init_lora_weights": False, **options}
    return peft.LoraConfig(task_type="CAUSAL_LM", **chosen)


# What the adapter is, and whether it can share one pass with the model under it.
KINDS: dict[str, tuple[Any, bool]] = {
    "lora": (lambda: lora(), True),
    "all-linear": (lambda: lora(target_modules="all-linear"), True),
    "rslora": (lambda: lora(use_rslora=True), True),
    "ranks": (lambda: lora(rank_pattern={"q_proj": 2}, alpha_pattern={"v_proj": 3}), True),
    "lora_bias": (lambda: lora(target_modules=["c_attn"], lora_bias=True, fan_in_fan_out=True), True),
    "some layers": (lambda: lora(layers_to_transform=[1]), True),
    "head and embeddings": (lambda: lora(modules_to_save=["lm_head", "embed_tokens"]), True),
    "dora": (lambda: lora(use_dora=True), False),
    "on embeddings": (lambda: lora(target_modules=["embed_tokens", "q_proj"]), False),
    "tokens": (lambda: lora(trainable_token_indices={"embed_tokens": [5, 9, 11]}), False),
    "norm": (lambda: lora(modules_to_save=["norm"]), False),
    "ia3": (lambda: peft.IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]), False),
    "loha": (lambda: peft.LoHaConfig(r=4, target_modules=LLAMA_LINEAR), False),
    "lokr": (lambda: peft.LoKrConfig(r=4, target_modules=LLAMA_LINEAR), False),
    "oft": (lambda: peft.OFTConfig(r=0, oft_block_size=8, target_modules=["q_proj", "down_proj"]), False),
    "vera": (lambda: peft.VeraConfig(r=4, target_modules=["q_proj"], d_initial=0.5), False),
}


def adapted(kind: str = "lora", family: str = "llama", seed: int = 1, name: str = "default") -> tuple[Any, Any]:
    """A `PeftModel` whose adapter matters, and the model under it (in which PEFT has put its layers)."""
    small = build(family, seed)
    model = peft.get_peft_model(small, KINDS[kind][0](), adapter_name=name).eval()
    shake(model)
    return model, small


def shake(model: Any, seed: int = 3) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)


def merged(model: Any) -> Any:
    return copy.deepcopy(model).merge_and_unload().eval()


def plain(family: str = "llama", seed: int = 1) -> Any:
    return build(family, seed)


def same(model: EFTForCausalLM, oracle: EFTForCausalLM, inputs: dict[str, Any], **options: Any) -> None:
    options = {"max_new_tokens": 10, "do_sample": False, **options}
    assert model.generate(**inputs, **options).tolist() == oracle.generate(**inputs, **options).tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_gives_what_full_models_give(kind: str) -> None:
    family = FAMILY_OF.get(kind, "llama")
    model, small = adapted(kind, family)
    base, full, reference = shared("llama", 0), merged(model), plain(family)
    assert not torch.allclose(full(**prompts("one")).logits, reference(**prompts("one")).logits, atol=0.1)
    eft = EFTForCausalLM.from_models(base, tuned=model)
    oracle = EFTForCausalLM.from_models(base, tuned=full, reference=reference)
    assert [stack.names for stack in eft._members.stacks] == ([("tuned", "reference")] if KINDS[kind][1] else [])
    for padding in ("one", "left"):
        inputs = prompts(padding)
        torch.testing.assert_close(eft(**inputs).logits, oracle(**inputs).logits, atol=2e-4, rtol=1e-4)
        same(eft, oracle, inputs)
        expected = oracle.generate(**inputs, max_new_tokens=10, do_sample=False)
        assert eft.generate(**inputs, max_new_tokens=10, do_sample=False, assistant_model=model).tolist() == expected.tolist()
        assert eft.speculation.rounds > 0
        add_on = EFTLogitsProcessor(model, small, pad_token_id=0)
        assert base.generate(**inputs, max_new_tokens=10, logits_processor=[add_on]).tolist() == expected.tolist()


@pytest.mark.parametrize(
    "family", ["llama", "qwen3", "mistral", "gemma3", "gpt2", "gpt_neox", "opt", "mixtral", "lfm2", "mamba"]
)
def test_families(family: str) -> None:
    targets = ["in_proj", "x_proj"] if family == "mamba" else "all-linear"
    model = peft.get_peft_model(build(family, 1), lora(target_modules=targets)).eval()
    base = shared("llama", 0)
    eft = EFTForCausalLM.from_models(base, tuned=model)
    oracle = EFTForCausalLM.from_models(base, tuned=merged(model), reference=plain(family))
    for padding in ("one", "even", "left") if family != "mamba" else ("one", "even"):
        same(eft, oracle, prompts(padding))
        if family != "mamba":
            same(eft, oracle, prompts(padding), num_beams=3)


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 3, "num_return_sequences": 2},
        {"prefill_chunk_size": 4},
        {"use_cache": False},
        {"cache_implementation": "static"},
        {"no_repeat_ngram_size": 2},
        {"guidance_scale": 1.5},
        {"max_new_tokens": 40},
    ],
    ids=str,
)
@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_strategies(family: str, options: dict[str, Any]) -> None:
    model = peft.get_peft_model(build(family, 1), lora()).eval()
    eft = EFTForCausalLM.from_models(shared("llama", 0), tuned=model)
    oracle = EFTForCausalLM.from_models(shared("llama", 0), tuned=merged(model), reference=plain(family))
    same(eft, oracle, prompts("left"), **options)


@pytest.mark.parametrize("kind", ["lora", "head and embeddings"])  # PEFT's DoRA breaks a graph
def test_static_caches_compile_to_full_graphs(kind: str) -> None:
    model, _ = adapted(kind)
    eft = EFTForCausalLM.from_models(shared("llama", 0), tuned=model)
    oracle = EFTForCausalLM.from_models(shared("llama", 0), tuned=merged(model), reference=plain())
    compiled = CompileConfig(backend="eager", mode=None, fullgraph=True)
    compiled._compile_all_devices = True
    torch._dynamo.reset()
    options = {"cache_implementation": "static", "max_new_tokens": 10}
    got = eft.generate(**prompts("left"), **options, compile_config=compiled).tolist()
    assert got == oracle.generate(**prompts("left"), max_new_tokens=10).tolist()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0, "nothing was compiled"


def test_sampled_tokens_are_those_of_the_seed() -> None:
    model, _ = adapted()
    eft = EFTForCausalLM.from_models(shared("llama", 0), tuned=model)
    oracle = EFTForCausalLM.from_models(shared("llama", 0), tuned=merged(model), reference=plain())
    options = {"do_sample": True, "coupling": "match", "seed": [4, 5, 6]}
    same(eft, oracle, prompts("left"), **options)
    expected = oracle.generate(**prompts("left"), **options, max_new_tokens=10).tolist()
    drafted = eft.generate(**prompts("left"), **options, max_new_tokens=10, assistant_model=eft.tuned).tolist()
    assert drafted == expected


def test_an_adapter_on_the_base() -> None:
    """DeRa: at strength 1 the adapter alone, in between the mixture; base, tuned and reference are one model's weights."""
    model, small = adapted("head and embeddings")
    eft = EFTForCausalLM.from_models(small, tuned=model, reference=small)
    assert eft._members.stacks[0].names == ("base", "tuned")
    inputs = prompts("left")
    assert (
        eft.generate(**inputs, max_new_tokens=10).tolist()
        == model.generate(**inputs, max_new_tokens=10, do_sample=False).tolist()
    )
    eft.combination = Combination.emulate(alpha=0.5)
    oracle = EFTForCausalLM.from_models(plain(), tuned=merged(model), reference=plain(), alpha=0.5)
    same(eft, oracle, inputs)
    realigned = EFTForCausalLM.from_models(None, tuned=model, combination=Combination.interpolate(0.5))
    same(realigned, EFTForCausalLM.from_models(None, merged(model), plain(), combination=Combination.interpolate(0.5)), inputs)


def test_several_adapters_are_several_members() -> None:
    model, _ = adapted(name="polite")
    model.add_adapter("brief", lora(r=2, target_modules="all-linear"))
    model.add_adapter("warm", lora(target_modules=["k_proj"], modules_to_save=["lm_head"]))
    shake(model.eval(), 8)
    full = {}
    for name in ("polite", "brief", "warm"):
        alone = copy.deepcopy(model)
        alone.set_adapter(name)
        full[name] = alone.merge_and_unload(adapter_names=[name]).eval()
    combination = Combination.steer({"polite": 0.7, "brief": 0.6, "warm": -0.4})
    eft = EFTForCausalLM.from_models(shared("llama", 0), tuned=model, combination=combination)
    oracle = EFTForCausalLM.from_models(shared("llama", 0), tuned=full, reference=plain(), combination=combination)
    assert list(eft.members) == ["base", "polite", "brief", "warm", "reference"]
    assert [len(stack.names) for stack in eft._members.stacks] == [4]
    inputs = prompts("left")
    same(eft, oracle, inputs)
    rows = torch.tensor([[1.0, 1.0, 0.0, 0.0, -1.0], [1.0, 0.0, 1.0, 0.5, -1.5], [0.0, 0.5, 0.5, 0.0, 0.0]])
    same(eft, oracle, inputs, coefficients=rows)
    two = {"warm": model, "brief": model}
    mixed = Combination.mix({"warm": 0.5, "brief": 0.5})
    picked = EFTForCausalLM.from_models(None, tuned=two, combination=mixed)
    same(picked, EFTForCausalLM.from_models(None, tuned={k: full[k] for k in two}, combination=mixed), inputs)
    for name in full:
        model.set_adapter(name)
        expected = oracle.generate(**inputs, max_new_tokens=10).tolist()
        assert eft.generate(**inputs, max_new_tokens=10, assistant_model=model).tolist() == expected
        assert eft.generate(**inputs, max_new_tokens=10, assistant_model=eft.members[name]).tolist() == expected


def test_a_reference_may_be_an_adapter() -> None:
    """MOD and DPO on a supervised adapter: reference and tuned are two adapters of one model."""
    model, _ = adapted(name="tuned")
    model.add_adapter("reference", lora(target_modules=["k_proj"]))
    shake(model.eval(), 8)
    full = {}
    for name in ("tuned", "reference"):
        alone = copy.deepcopy(model)
        alone.set_adapter(name)
        full[name] = alone.merge_and_unload(adapter_names=[name]).eval()
    eft = EFTForCausalLM.from_models(shared("llama", 0), tuned={"tuned": model}, reference=model)
    same(eft, EFTForCausalLM.from_models(shared("llama", 0), **full), prompts("left"))


@pytest.mark.parametrize("kind", ["lora", "dora", "head and embeddings", "tokens", "ia3", "vera"])
def test_folders(kind: str, tmp_path: Path) -> None:
    model, _ = adapted(kind)
    model.save_pretrained(tmp_path)
    reference, base = plain(), shared("llama", 0)
    before = _picture(reference)
    eft = EFTForCausalLM.from_models(base, tuned=str(tmp_path), reference=reference)
    oracle = EFTForCausalLM.from_models(base, tuned=model)
    same(eft, oracle, prompts("left"))
    assert eft.members["reference"] is reference
    assert bool(eft._members.stacks) == KINDS[kind][1]
    assert EFTLogitsProcessor(tmp_path, reference)._members.names == ("tuned", "reference")
    assert EFTForCausalLM.from_models(reference, tuned=tmp_path).members["reference"] is reference
    _unchanged(reference, before)


def test_two_folders_on_one_reference(tmp_path: Path) -> None:
    full = {}
    for i, kind in enumerate(("lora", "all-linear")):
        model, _ = adapted(kind)
        model.save_pretrained(tmp_path / f"a{i}")
        full[f"a{i}"] = merged(model)
    weights = Combination.steer({"a0": 0.5, "a1": 0.5})
    reference, base = plain(), shared("llama", 0)
    eft = EFTForCausalLM.from_models(
        base, tuned={name: tmp_path / name for name in full}, reference=reference, combination=weights
    )
    assert eft._members.stacks[0].names == ("a0", "a1", "reference")
    same(eft, EFTForCausalLM.from_models(base, tuned=full, reference=reference, combination=weights), prompts("left"))


def test_an_adapter_loaded_by_transformers(tmp_path: Path) -> None:
    model, _ = adapted()
    model.save_pretrained(tmp_path)
    small = plain()
    small.load_adapter(str(tmp_path))
    small.eval()
    base, oracle = shared("llama", 0), EFTForCausalLM.from_models(shared("llama", 0), tuned=model)
    for reference in (None, small):
        eft = EFTForCausalLM.from_models(base, tuned=small, reference=reference)
        same(eft, oracle, prompts("left"))
        assert eft._members.stacks


def test_adapters_loaded_by_transformers_one_of_which_is_on() -> None:
    from peft import get_peft_model_state_dict
    from peft.functional import set_adapter

    model, _ = adapted()
    small = plain()
    for name in ("one", "other"):
        state = get_peft_model_state_dict(model)
        small.load_adapter(peft_config=model.peft_config["default"], adapter_state_dict=state, adapter_name=name)
    set_adapter(small, ["one", "other"])
    with pytest.raises(ValueError, match=r"\['one', 'other'\] are on together.*`from peft.functional import set_adapter"):
        EFTForCausalLM.from_models(shared("llama", 0), tuned=small)
    set_adapter(small, "other")  # as the error says, with any release of PEFT
    oracle = EFTForCausalLM.from_models(shared("llama", 0), tuned=model)
    same(EFTForCausalLM.from_models(shared("llama", 0), tuned=small.eval()), oracle, prompts("left"))


def _picture(model: Any) -> dict[str, Any]:
    return {
        "types": [(name, type(module), module.training) for name, module in model.named_modules()],
        "modules": [id(module) for module in model.modules()],
        "weights": {name: (id(p), p.detach().clone(), p.requires_grad) for name, p in model.named_parameters()},
        "config": model.config.to_dict(),
        "attributes": {key for key in vars(model) if key != "_previous_max_cache_length"},
        "adapters": [(m.active_adapters, m.disable_adapters) for m in model.modules() if hasattr(m, "lora_A")],
    }


def _unchanged(model: Any, before: dict[str, Any]) -> None:
    after = _picture(model)
    weights = before.pop("weights"), after.pop("weights")
    assert before == after
    assert weights[0].keys() == weights[1].keys()
    for name, (place, values, needed) in weights[0].items():
        assert (place, needed) == (weights[1][name][0], weights[1][name][2])
        assert torch.equal(values, weights[1][name][1])


@pytest.mark.parametrize("training", [False, True])
def test_nothing_of_the_user_s_is_changed(training: bool) -> None:
    model, _ = adapted("head and embeddings")
    model.add_adapter("other", lora(use_dora=True))
    model.set_adapter("other")
    model.train(training)
    before = _picture(model)
    eft = EFTForCausalLM.from_models(
        shared("llama", 0), tuned={"default": model}, combination=Combination.steer({"default": 1})
    )
    eft.generate(**prompts("left"), max_new_tokens=4)
    eft.generate(**prompts("left"), max_new_tokens=4, assistant_model=eft.members["default"])
    _unchanged(model, before)


def test_weights_are_there_once() -> None:
    model, _ = adapted("all-linear")
    eft = EFTForCausalLM.from_models(None, tuned=model, combination=Combination.interpolate(0.5))
    small = plain()
    assert eft.num_parameters() == model.num_parameters() == small.num_parameters() + model.get_nb_trainable_parameters()[0]
    stores = {p.data_ptr() for stack in eft._members.stacks for p in stack.member.model.parameters()}
    assert stores <= {p.data_ptr() for p in model.parameters()}


def test_views_follow_when_the_model_is_cast() -> None:
    model, _ = adapted()
    eft = EFTForCausalLM.from_models(shared("llama", 4), tuned=model)
    expected = eft(**prompts("left")).logits
    for move in (lambda: model.to(torch.float64), lambda: eft._members.models["tuned"].to(torch.float64)):
        move()
        outputs = eft.member_logits(**prompts("left"))
        assert outputs["tuned"].dtype == torch.float64
        torch.testing.assert_close(eft(**prompts("left")).logits, expected, atol=1e-3, rtol=1e-3)


def test_one_pass_and_no_copies_from_step_to_step() -> None:
    model, _ = adapted()
    eft = EFTForCausalLM.from_models(shared("llama", 0), tuned=model)
    stack = eft._members.stacks[0]
    calls = {"stack": 0, "alone": 0}
    stack.member.model.register_forward_hook(lambda *_: calls.update(stack=calls["stack"] + 1))
    for name in ("tuned", "reference"):
        eft.members[name].register_forward_hook(lambda *_: calls.update(alone=calls["alone"] + 1))
    out = eft.generate(**prompts("left"), max_new_tokens=6, min_new_tokens=6, return_dict_in_generate=True)
    assert calls == {"stack": 6, "alone": 0}
    cache = cache_of(out)
    joint = cache.joints[("tuned", "reference")].cache.layers[0].keys
    assert joint.shape[0] == 6
    for i, name in enumerate(("tuned", "reference")):
        keys = cache.members[name].layers[0].keys
        assert keys.shape[0] == 3
        assert keys.data_ptr() == joint[3 * i :].data_ptr()
    eft.generate(**prompts("left"), max_new_tokens=6, min_new_tokens=6, assistant_model=eft.tuned)
    assert calls["alone"] > 6, "drafting must not run the reference"


def test_conversations_go_on_from_a_returned_cache() -> None:
    model, _ = adapted()
    eft = EFTForCausalLM.from_models(shared("llama", 0), tuned=model)
    oracle = EFTForCausalLM.from_models(shared("llama", 0), tuned=merged(model), reference=plain())
    inputs = prompts("even")
    first = eft.generate(**inputs, max_new_tokens=4, min_new_tokens=4, return_dict_in_generate=True)
    forked = copy.deepcopy(cache_of(first))
    expected = oracle.generate(first.sequences, max_new_tokens=6).tolist()
    for cache in (cache_of(first), forked):
        assert eft.generate(first.sequences, cache=cache, max_new_tokens=6).tolist() == expected


def test_the_add_on_reorders_and_rolls_back() -> None:
    model, small = adapted()
    base, reference = shared("llama", 0), plain()
    mine, theirs = (
        EFTLogitsProcessor(model, small, pad_token_id=0),
        EFTLogitsProcessor(merged(model), reference, pad_token_id=0),
    )
    for options in ({"num_beams": 3}, {}, {"num_beams": 2}, {"prompt_lookup_num_tokens": 2}, {}):
        inputs = prompts("one" if "prompt_lookup_num_tokens" in options else "left")
        got, expected = (
            base.generate(**inputs, logits_processor=[p], max_new_tokens=10, **options).tolist() for p in (mine, theirs)
        )
        assert got == expected


# Refused by name ------------------------------------------------------------------------------------------------------


def refuse(match: str, kind: type[Exception] = ValueError, base: Any = None, **members: Any) -> None:
    with pytest.raises(kind, match=match):
        EFTForCausalLM.from_models(base or shared("llama", 0), **members)
    if base is None:
        with pytest.raises(kind, match=match):
            EFTLogitsProcessor(**members)


def test_methods_that_cannot_be_members() -> None:
    prompt = peft.get_peft_model(plain(), peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    refuse("'default' of the member 'tuned' is of the method PROMPT_TUNING; adapters of LORA", tuned=prompt)
    norm = peft.get_peft_model(plain(), peft.LNTuningConfig(target_modules=["norm"]))
    refuse("method LN_TUNING", tuned=norm)
    mixed = peft.get_peft_model(plain(), lora(), mixed=True)
    refuse("'tuned' is a PeftMixedModel", tuned=mixed)
    activated = peft.get_peft_model(plain(), lora(alora_invocation_tokens=[5, 6]))
    refuse("`alora_invocation_tokens`: it is switched on by tokens", tuned=activated)


def test_weights_under_an_adapter_that_are_not_what_they_were() -> None:
    model = peft.get_peft_model(plain(), lora(init_lora_weights="pissa")).eval()
    refuse("'reference' is to be the model under the adapter 'default', which took a part of the weights out", tuned=model)
    EFTForCausalLM.from_models(shared("llama", 0), tuned=model, reference=plain())  # a reference of its own is right
    refuse(
        "trained the model's own biases", tuned=peft.get_peft_model(plain("gpt2"), lora(target_modules=["c_attn"], bias="all"))
    )
    merged_in, _ = adapted()
    merged_in.merge_adapter()
    refuse("merged into the weights of the model of the member 'tuned'", tuned=merged_in)
    refuse("of the member 'reference'", tuned=shared("qwen3", 4), reference=merged_in)


def test_which_adapter_is_meant() -> None:
    model, small = adapted()
    model.add_adapter("second", lora())
    refuse("'default', 'second'.*say how they are weighted", tuned=model)
    refuse(
        r"'x' has the adapters \['default', 'second'\]: which\?", tuned={"x": model}, combination=Combination.steer({"x": 1})
    )
    first, second = peft.PeftModel(small := plain(), lora()), peft.PeftModel(small, lora())
    refuse("'b' is one of two `PeftModel`s", tuned={"a": first, "b": second}, combination=Combination.steer({"a": 1, "b": 1}))


def test_folders_that_are_refused(tmp_path: Path) -> None:
    model, _ = adapted()
    model.save_pretrained(tmp_path)
    refuse("no model to put it on", tuned=tmp_path, combination=Combination({"tuned": 1.0}), base=tmp_path)
    with pytest.raises(ValueError, match="no model to put it on"):
        EFTLogitsProcessor(tmp_path)
    refuse("'tuned' in .* does not fit the model LlamaForCausalLM", tuned=tmp_path, reference=build("llama", 1, hidden_size=64))
    path, kept = tmp_path / "adapter_config.json", (tmp_path / "adapter_config.json").read_text()

    def with_setting(**settings: Any) -> None:
        path.write_text(json.dumps({**json.loads(kept), **settings}))

    for settings, message in (
        ({"run": "me"}, "settings that this version of PEFT does not know: run"),
        ({"megatron_config": {"a": 1}, "megatron_core": "antigravity"}, "`megatron_config`"),
        ({"peft_type": "XLORA"}, "method 'XLORA'"),
        ({"init_lora_weights": "pissa"}, "would change your model"),
        ({"bias": "all"}, "would change your model"),
        ({"layer_replication": [[0, 1], [0, 2]]}, "`layer_replication`"),
    ):
        with_setting(**settings)
        refuse(message, tuned=tmp_path, reference=plain())
    with_setting()
    weights = tmp_path / "adapter_model.safetensors"
    from safetensors.torch import load_file, save_file

    tensors = load_file(weights)
    for key in ("base_model.model.lm_head.weight", "base_model.model.model.layers.0.self_attn.q_proj.base_layer.lora_A.weight"):
        save_file({**tensors, key: torch.zeros(64, 32)}, weights, metadata={"format": "pt"})
        refuse("the model's own weights", tuned=tmp_path, reference=plain())
    weights.rename(tmp_path / "adapter_model.bin")
    refuse("Pickled weights are not read", tuned=tmp_path, reference=plain())


def test_what_adapters_cannot_do_yet() -> None:
    model, _ = adapted()
    eft = EFTForCausalLM.from_models(shared("llama", 0), tuned=model)
    with pytest.raises(ValueError, match="Resize that model before"):
        eft.resize_token_embeddings(70)
