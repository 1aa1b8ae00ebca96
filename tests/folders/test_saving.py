"""A saved folder brings the combination back: the same logits bit for bit, every weight once, nothing of the user's changed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from families import FAMILIES, build, lora, prompts
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitNetQuantConfig, pipeline

from hf_eft import Combination, EFTConfig, EFTForCausalLM, Truncation, hub, tiny

pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{said}")
    for said in ("`is_gradient_checkpointing` is deprecated", "fan_in_fan_out is set", "Already found a `peft_config`")
]


def three(**options: Any) -> EFTForCausalLM:
    return EFTForCausalLM.from_models(build("llama", 0), tuned=build("gpt2", 1), reference=build("gpt2", 2), **options)


def shared() -> EFTForCausalLM:
    base = build("llama", 0)
    return EFTForCausalLM.from_models(base, tuned=build("gpt2", 1), reference=base)


def tied() -> EFTForCausalLM:
    base = build("llama", 0, tie_word_embeddings=True)
    return EFTForCausalLM.from_models(base, tuned=build("opt", 1), reference=build("gpt2", 2))


def steered() -> EFTForCausalLM:
    tuned = {"helpful": build("llama", 1), "brief": build("llama", 3)}
    recipe = Combination.steer({"helpful": 0.7, "brief": 0.4}, Truncation("base", 0.9))
    return EFTForCausalLM.from_models(build("llama", 0), tuned=tuned, reference=build("llama", 2), combination=recipe)


def mixed() -> EFTForCausalLM:
    small = [build("gpt2", seed).to(torch.bfloat16) for seed in (1, 2)]
    return EFTForCausalLM.from_models(build("llama", 0), tuned=small[0], reference=small[1])


def adapter(**options: Any) -> EFTForCausalLM:
    return EFTForCausalLM.from_models(build("llama", 0), tuned=lora(build("llama", 1), **options))


def adapters() -> EFTForCausalLM:
    small = lora(build("llama", 1), ("helpful", "brief"))
    recipe = Combination.steer({"helpful": 0.7, "brief": 0.4})
    return EFTForCausalLM.from_models(build("gpt2", 0), tuned=small, combination=recipe)


def realigned() -> EFTForCausalLM:
    return EFTForCausalLM.from_models(None, tuned=lora(build("llama", 1)), combination=Combination.interpolate(0.6))


def objectives() -> EFTForCausalLM:
    """Adapters on a model that is no member."""
    small = lora(build("llama", 1), ("polite", "brief"))
    return EFTForCausalLM.from_models(None, tuned=small, combination=Combination.mix({"polite": 0.5, "brief": 0.5}))


def other_reference() -> EFTForCausalLM:
    """An adapter on a model that is no member, and a reference of another kind."""
    tuned = lora(build("llama", 1))
    return EFTForCausalLM.from_models(build("gpt2", 0), tuned=tuned, reference=build("gpt2", 2))


def on_the_base() -> EFTForCausalLM:
    base = build("llama", 1)
    return EFTForCausalLM.from_models(base, tuned=lora(base), reference=build("llama", 2))


def twice() -> EFTForCausalLM:
    """One adapter as two members."""
    small = lora(build("llama", 1))
    recipe = Combination({"base": 1.0, "a": 0.5, "b": 0.3, "reference": -0.8})
    return EFTForCausalLM.from_models(build("gpt2", 0), tuned={"a": small, "b": small}, combination=recipe)


def loaded_by_transformers() -> EFTForCausalLM:
    small = build("llama", 1)
    source = lora(build("llama", 1), ("mine",))
    state = peft.get_peft_model_state_dict(source, adapter_name="mine")
    small.load_adapter(peft_config=source.peft_config["mine"], adapter_state_dict=state, adapter_name="mine")
    return EFTForCausalLM.from_models(build("gpt2", 0), tuned=small, reference=small)


COMPOSITIONS: dict[str, Callable[[], EFTForCausalLM]] = {
    "three": lambda: three(beta=1.5),
    "shared": shared,
    "tied": tied,
    "steered": steered,
    "contrast": lambda: EFTForCausalLM.from_models(
        build("llama", 0), reference=build("llama", 2), combination=Combination.contrast(0.5, 0.1)
    ),
    "schedule": lambda: three(alpha=[1.0, 0.5]),
    "mixed dtypes": mixed,
    "adapter": adapter,
    "adapters": adapters,
    "heads": lambda: adapter(modules_to_save=["lm_head"]),
    "dora": lambda: adapter(use_dora=True),
    "embeddings": lambda: adapter(target_modules=["embed_tokens", "q_proj"]),
    "tokens": lambda: adapter(trainable_token_indices={"embed_tokens": [5, 9]}),
    "realigned": realigned,
    "objectives": objectives,
    "other reference": other_reference,
    "on the base": on_the_base,
    "twice": twice,
    "loaded by transformers": loaded_by_transformers,
    **{
        family: lambda family=family: EFTForCausalLM.from_models(
            build(family, 0), tuned=build(family, 1), reference=build(family, 2)
        )
        for family in ("mixtral", "gemma3", "lfm2", "mamba", "falcon")
    },
}


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(**prompts("left")).logits


def distinct_bytes(model: EFTForCausalLM) -> int:
    """Of the parameters and persistent buffers of all members, each storage once, without what ties make anew."""
    tensors = {t.data_ptr(): t for member in model.members.values() for t in member.state_dict().values()}
    return sum(t.numel() * t.element_size() for t in tensors.values())


def stored_bytes(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            total += sum(t.numel() * t.element_size() for key in file.keys() for t in [file.get_tensor(key)])  # noqa: SIM118
    return total


@pytest.mark.parametrize("composition", COMPOSITIONS)
def test_the_folder_brings_it_back(composition: str, tmp_path: Path) -> None:
    model = COMPOSITIONS[composition]()
    expected = logits(model)
    model.save_pretrained(tmp_path / "saved")
    loaded = EFTForCausalLM.from_pretrained(tmp_path / "saved")
    assert torch.equal(logits(loaded), expected)
    assert not loaded.training
    assert list(loaded.members) == list(model.members)
    assert loaded.combination == model.combination
    assert str(loaded.combination) == str(model.combination)
    assert loaded.generation_config.to_dict() == model.generation_config.to_dict()
    assert stored_bytes(tmp_path / "saved") == distinct_bytes(model)
    pairs = [(a, b) for a in model.members for b in model.members]
    assert all((loaded.members[a] is loaded.members[b]) == (model.members[a] is model.members[b]) for a, b in pairs)

    loaded.save_pretrained(tmp_path / "again")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again")
    assert isinstance(again, EFTForCausalLM)
    assert torch.equal(logits(again), expected)
    assert json.loads((tmp_path / "again/config.json").read_text()) == json.loads((tmp_path / "saved/config.json").read_text())


def test_a_model_under_an_adapter_that_transformers_loaded_loads_alone(tmp_path: Path) -> None:
    """Loading the adapter changes what transformers calls the model's weights when it saves them."""
    for family in ("llama", "mixtral"):
        build(family, 1).save_pretrained(tmp_path / family)
        small, ids = AutoModelForCausalLM.from_pretrained(tmp_path / family), prompts("left")
        expected = small(**ids).logits
        source = lora(build(family, 1), target_modules=["q_proj"])
        state = peft.get_peft_model_state_dict(source)
        small.load_adapter(peft_config=source.peft_config["default"], adapter_state_dict=state)
        model = EFTForCausalLM.from_models(build("gpt2", 0), tuned=small, reference=small)
        model.save_pretrained(tmp_path / f"{family}_saved")
        alone = AutoModelForCausalLM.from_pretrained(tmp_path / f"{family}_saved/members/reference")
        assert torch.equal(alone(**ids).logits, expected)
        assert torch.equal(logits(EFTForCausalLM.from_pretrained(tmp_path / f"{family}_saved")), logits(model))


def test_adapters_come_back_as_views_of_one_copy(tmp_path: Path) -> None:
    adapter().save_pretrained(tmp_path)
    assert {p.name for p in (tmp_path / "members/tuned").iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    loaded = EFTForCausalLM.from_pretrained(tmp_path)
    weights = {p.data_ptr() for p in loaded.members["reference"].parameters()}
    assert weights <= {p.data_ptr() for p in loaded.members["tuned"].parameters()}
    assert loaded._members.stacks  # and run as one pass


def test_adapters_whose_weights_cannot_be_brought_back_are_refused(tmp_path: Path) -> None:
    tuned = lora(build("llama", 1), init_lora_weights="pissa")
    model = EFTForCausalLM.from_models(build("gpt2", 0), tuned=tuned, reference=build("gpt2", 2))
    with pytest.raises(ValueError, match="pissa"):
        model.save_pretrained(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_every_member_loads_alone(tmp_path: Path) -> None:
    model = adapter()
    ids = prompts("left")
    model.save_pretrained(tmp_path)
    for name in ("base", "reference"):
        alone = AutoModelForCausalLM.from_pretrained(tmp_path / "members" / name)
        assert torch.equal(alone(**ids).logits, model.members[name](**ids).logits)
    alone = peft.PeftModel.from_pretrained(alone, str(tmp_path / "members/tuned"))
    assert torch.equal(alone(**ids).logits, model.members["tuned"](**ids).logits)


def test_shards_as_transformers_makes_them(tmp_path: Path) -> None:
    model = three()
    model.save_pretrained(tmp_path, max_shard_size="50KB")
    assert len(list((tmp_path / "members/base").glob("model-*-of-*.safetensors"))) > 1
    assert torch.equal(logits(EFTForCausalLM.from_pretrained(tmp_path)), logits(model))


def test_a_state_dict_is_saved_in_place_of_the_weights(tmp_path: Path) -> None:
    model = three()
    state = {key: value * 2 for key, value in model.state_dict().items()}
    model.save_pretrained(tmp_path, state_dict=state)
    loaded = EFTForCausalLM.from_pretrained(tmp_path)
    assert all(torch.equal(value, state[key]) for key, value in loaded.state_dict().items())
    with pytest.raises(ValueError, match="adapters"):
        adapter().save_pretrained(tmp_path, state_dict={})


def test_saving_leaves_everything_as_it_is(tmp_path: Path) -> None:
    def state(model: EFTForCausalLM) -> Any:
        return [
            (
                repr(vars(m.config)),
                m.generation_config.to_dict(),
                m.training,
                set(vars(m)),
                [p.requires_grad for p in m.parameters()],
            )
            for m in [model, *model.members.values()]
        ]

    tuned = lora(build("llama", 1))
    model = EFTForCausalLM.from_models(build("llama", 0), tuned=tuned)
    settings = tuned.peft_config["default"].to_dict()
    before = state(model)
    model.save_pretrained(tmp_path)
    assert state(model) == before
    assert tuned.peft_config["default"].to_dict() == settings


def test_nothing_says_where_it_was(tmp_path: Path) -> None:
    secret = tmp_path / "secret_place"
    build("llama", 1).save_pretrained(secret)
    small = AutoModelForCausalLM.from_pretrained(secret)
    small.config._commit_hash = "c" * 40
    EFTForCausalLM.from_models(build("llama", 0), tuned=lora(small)).save_pretrained(tmp_path / "saved")
    texts = [p.read_text() for p in (tmp_path / "saved").rglob("*.json")]
    for word in ("secret_place", "c" * 40, "trust_remote_code"):
        assert not any(word in text for text in texts), word


# Tokenizers and cards ------------------------------------------------------------------------------------------------


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


def test_a_card_is_written_and_one_that_is_there_is_kept(tmp_path: Path) -> None:
    model = three()
    model.save_pretrained(tmp_path / "none", card=False)
    assert not (tmp_path / "none/README.md").exists()
    model.save_pretrained(tmp_path / "card")
    assert "tuned" in (tmp_path / "card/README.md").read_text()
    (tmp_path / "card/README.md").write_text("mine")
    model.save_pretrained(tmp_path / "card")
    assert (tmp_path / "card/README.md").read_text() == "mine"


# Saving over what is there --------------------------------------------------------------------------------------------


def test_saving_over_the_folder_it_was_loaded_from(tmp_path: Path) -> None:
    model = adapter()
    three().save_pretrained(tmp_path)  # a full member where the adapter will be
    model.save_pretrained(tmp_path)
    loaded = EFTForCausalLM.from_pretrained(tmp_path)
    loaded.combination = Combination.emulate(alpha=0.5)
    loaded.save_pretrained(tmp_path)
    again = EFTForCausalLM.from_pretrained(tmp_path)
    assert again.combination == Combination.emulate(alpha=0.5)
    assert torch.equal(logits(again), logits(loaded))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["README.md", "config.json", "generation_config.json", "members"]


def test_another_model_is_not_overwritten(tmp_path: Path) -> None:
    build("llama", 0).save_pretrained(tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(ValueError, match="holds a model of type 'llama'"):
        three().save_pretrained(tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_what_else_would_be_lost(tmp_path: Path) -> None:
    (tmp_path / "mine/members").mkdir(parents=True)
    with pytest.raises(ValueError, match="a folder 'members' of something else"):
        three().save_pretrained(tmp_path / "mine")
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is a file"):
        three().save_pretrained(tmp_path / "file")


def test_what_fails_half_way_leaves_the_old_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    three().save_pretrained(tmp_path / "saved")
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    model = three(alpha=0.5)
    monkeypatch.setattr(type(model.members["reference"]), "save_pretrained", _no_space)
    for place in ("saved", "new/folder"):
        with pytest.raises(OSError, match="no space"):
            model.save_pretrained(tmp_path / place)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def _no_space(*args: Any, **kwargs: Any) -> None:
    raise OSError("no space left")


def test_a_model_that_its_configuration_does_not_make_is_refused(tmp_path: Path) -> None:
    class Other(transformers.LlamaForCausalLM):
        pass

    Other.__module__ = "transformers_modules.other"
    Other._auto_class = "AutoModelForCausalLM"
    other = Other(AutoConfig.for_model(**FAMILIES["llama"], vocab_size=64))
    model = EFTForCausalLM.from_models(build("llama", 0), tuned=other, reference=build("llama", 2))
    with pytest.raises(ValueError, match="'tuned' is a Other"):
        model.save_pretrained(tmp_path / "new")
    assert not (tmp_path / "new").exists()


# Loading --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    EFTForCausalLM.from_models(build("llama", 0), tuned=build("llama", 1), reference=build("llama", 2)).save_pretrained(folder)
    return folder


def test_dtype_of_all_and_of_one(saved: Path) -> None:
    model = EFTForCausalLM.from_pretrained(saved, dtype=torch.bfloat16, member_kwargs={"base": {"dtype": torch.float32}})
    assert {name: m.dtype for name, m in model.members.items()} == {
        "base": torch.float32,
        "tuned": torch.bfloat16,
        "reference": torch.bfloat16,
    }
    assert model.members["tuned"].config.dtype == model.config.tuned_config.dtype == torch.bfloat16
    model = AutoModelForCausalLM.from_pretrained(saved, dtype="bfloat16", member_kwargs={"tuned": {"dtype": "float32"}})
    assert [m.dtype for m in model.members.values()] == [torch.bfloat16, torch.float32, torch.bfloat16]
    with pytest.raises(ValueError, match="'other'"):
        EFTForCausalLM.from_pretrained(saved, member_kwargs={"other": {}})


def test_devices(saved: Path) -> None:
    for options in ({"device_map": "auto"}, {"device_map": "cpu"}, {"low_cpu_mem_usage": True}):
        assert EFTForCausalLM.from_pretrained(saved, **options).device.type == "cpu"
    model = EFTForCausalLM.from_pretrained(saved, member_kwargs={"base": {"device_map": "meta"}})
    assert [m.device.type for m in model.members.values()] == ["meta", "cpu", "cpu"]
    model, _ = hub.load(saved, device="cpu")
    assert model.device.type == "cpu"


def test_offloading_to_disk_and_saving_from_there(saved: Path, tmp_path: Path) -> None:
    layers = {"model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk", "model.norm": "cpu"}
    whole = {**layers, "model.rotary_emb": "cpu", "lm_head": "cpu"}
    options = {"tuned": {"device_map": whole, "offload_folder": str(tmp_path / "offloaded")}}
    model = EFTForCausalLM.from_pretrained(saved, member_kwargs=options)
    expected = logits(EFTForCausalLM.from_pretrained(saved))
    assert torch.equal(logits(model), expected)
    with pytest.warns(UserWarning, match="offloaded"):
        model.save_pretrained(tmp_path / "again")
    assert torch.equal(logits(EFTForCausalLM.from_pretrained(tmp_path / "again")), expected)


@pytest.mark.filterwarnings(
    "ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"
)  # its layers are compiled at import
def test_a_quantised_member(saved: Path, tmp_path: Path) -> None:
    """BitNet's layers are what runs on a CPU with nothing else installed; transformers reads them, and makes none of a plain model."""
    ternary = BitNetQuantConfig(linear_class="autobitlinear", quantization_mode="online")
    with pytest.raises(ValueError, match=r"(?s)member 'tuned' cannot be loaded .* pre-quantized"):
        EFTForCausalLM.from_pretrained(saved, member_kwargs={"tuned": {"quantization_config": ternary}})

    places = {name: saved / "members" / name for name in ("base", "tuned", "reference")}
    shutil.copytree(places["tuned"], tmp_path / "ternary")
    description = json.loads((tmp_path / "ternary/config.json").read_text())
    description["quantization_config"] = ternary.to_dict()
    (tmp_path / "ternary/config.json").write_text(json.dumps(description))
    model, _ = hub.load({**places, "tuned": tmp_path / "ternary"})
    kinds = {name: type(m.model.layers[0].mlp.down_proj).__name__ for name, m in model.members.items()}
    assert kinds == {"base": "Linear", "tuned": "AutoBitLinear", "reference": "Linear"}
    model.save_pretrained(tmp_path / "saved")
    loaded = EFTForCausalLM.from_pretrained(tmp_path / "saved")
    assert type(loaded.tuned.model.layers[0].mlp.down_proj).__name__ == "AutoBitLinear"
    assert torch.equal(logits(loaded), logits(model))
    assert not torch.equal(logits(loaded), logits(EFTForCausalLM.from_pretrained(saved)))


def test_what_transformers_takes(saved: Path, tmp_path: Path) -> None:
    model, report = EFTForCausalLM.from_pretrained(
        saved, output_loading_info=True, attn_implementation="eager", use_cache=False
    )
    assert report["missing_keys"] == report["unexpected_keys"] == set()
    assert model.config._attn_implementation == model.members["tuned"].config._attn_implementation == "eager"
    assert model.config.use_cache is False
    model = AutoModelForCausalLM.from_pretrained(saved, attn_implementation="eager", use_cache=False, local_files_only=True)
    assert [m.config._attn_implementation for m in model.members.values()] == ["eager"] * 3
    assert model.config.use_cache is False
    shutil.copytree(saved, tmp_path / "a/b")
    model = EFTForCausalLM.from_pretrained(tmp_path, subfolder="a/b", config=EFTConfig.from_pretrained(tmp_path / "a/b"))
    assert torch.equal(logits(model), logits(EFTForCausalLM.from_pretrained(saved)))
    with pytest.raises(TypeError, match="unheard_of"):
        EFTForCausalLM.from_pretrained(saved, unheard_of=1)
    with pytest.raises(TypeError, match="unheard_of"):
        model.save_pretrained(tmp_path / "c", unheard_of=1)
    with pytest.raises(ValueError, match="neither a folder that exists nor"):
        EFTForCausalLM.from_pretrained("./no/such/folder")


def test_weights_that_are_not_there_are_named(saved: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "members/tuned/model.safetensors"
    tensors = load_file(path)
    del tensors["lm_head.weight"]
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"member 'tuned' .* are incomplete: 1 are missing \(lm_head.weight\)"):
        EFTForCausalLM.from_pretrained(tmp_path)
    tensors["lm_head.weight"] = torch.zeros(65, 32)
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="member 'tuned' cannot be loaded"):
        EFTForCausalLM.from_pretrained(tmp_path)


def test_progress_names_the_member(saved: Path) -> None:
    told: list[str] = []
    hub.load(saved, progress=told.append)
    assert [text.split(":")[0] for text in told] == [f"Loading the {name} model" for name in ("base", "tuned", "reference")]


def test_a_recipe_at_load_time(saved: Path, tmp_path: Path) -> None:
    assert hub.load(saved, alpha=0.5)[0].combination == Combination.emulate(alpha=0.5)
    fading = three(alpha=lambda t: 0.9**t)
    fading.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="callables, which are not saved"):
        EFTForCausalLM.from_pretrained(tmp_path)
    loaded, _ = hub.load(tmp_path, combination=Combination.emulate())
    assert loaded.combination == Combination.emulate()


# Members by name ------------------------------------------------------------------------------------------------------


def test_members_by_name() -> None:
    places = {name: tiny.path(name) for name in ("base", "tuned", "reference")}
    told: list[str] = []
    model, tokenizers = hub.load(places, alpha=0.8, progress=told.append)
    assert list(tokenizers) == list(model.members) == ["base", "tuned", "reference"]
    assert model.combination == Combination.emulate(alpha=0.8)
    assert [text.split(":")[0] for text in told] == [f"Loading the {name} model" for name in places]
    assert model.tokenizers == tokenizers
    assert model.sources == {name: (name, None) for name in places}
    base, tuned, reference, tokenizer = tiny.load()
    same = EFTForCausalLM.from_models(base, tuned=tuned, reference=reference, tokenizers=tokenizers, alpha=0.8)
    ids = tokenizer(tiny.questions()[0].prompt, return_tensors="pt", return_token_type_ids=False)
    assert torch.equal(model(**ids).logits, same(**ids).logits)


def test_the_same_place_is_loaded_once(tmp_path: Path) -> None:
    build("llama", 0).save_pretrained(tmp_path / "a")
    places = {"base": tmp_path / "a", "tuned": tmp_path / "a", "reference": str(tmp_path / "a")}
    models, _ = hub.load_members(places, member_kwargs={"tuned": {"dtype": torch.bfloat16}})
    assert models["base"] is models["reference"]
    assert models["tuned"] is not models["base"]
    assert models["tuned"].dtype == torch.bfloat16


def test_a_folder_of_an_adapter_stays_one(tmp_path: Path) -> None:
    build("llama", 1).save_pretrained(tmp_path / "small")
    build("llama", 0).save_pretrained(tmp_path / "large")
    lora(build("llama", 1)).save_pretrained(tmp_path / "adapter")
    places = {"base": tmp_path / "large", "tuned": tmp_path / "adapter", "reference": tmp_path / "small"}
    models, _ = hub.load_members(places)
    assert models["tuned"] == tmp_path / "adapter"
    folder = hub.compose(places, tmp_path / "saved", combination=Combination.emulate(alpha=0.5))
    model, _ = hub.load(places, alpha=0.5)
    assert torch.equal(logits(hub.load(folder)[0]), logits(model))
    assert (folder / "members/tuned/adapter_model.safetensors").is_file()
    assert model.sources["tuned"] == ("adapter", None)


_CUSTOM = """
from transformers import LlamaConfig, LlamaForCausalLM


class CustomConfig(LlamaConfig):
    model_type = "custom_llama"


class Custom(LlamaForCausalLM):
    config_class = CustomConfig
"""


def test_code_of_a_member_runs_only_if_the_caller_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    build("llama", 1).save_pretrained(tmp_path / "custom")
    (tmp_path / "custom/custom.py").write_text(_CUSTOM)
    description = json.loads((tmp_path / "custom/config.json").read_text())
    description |= {
        "model_type": "custom_llama",
        "auto_map": {"AutoConfig": "custom.CustomConfig", "AutoModelForCausalLM": "custom.Custom"},
    }
    (tmp_path / "custom/config.json").write_text(json.dumps(description))
    build("llama", 0).save_pretrained(tmp_path / "plain")
    places = {"base": tmp_path / "plain", "tuned": tmp_path / "custom", "reference": tmp_path / "plain"}
    with pytest.raises(ValueError, match=r"member 'tuned' .*code of its own, which runs with `trust_remote_code=True` only"):
        hub.load(places)
    model, _ = hub.load(places, trust_remote_code=True)
    ids = prompts("left")
    assert torch.equal(model.tuned(**ids).logits, build("llama", 1)(**ids).logits)
    with pytest.raises(ValueError, match="'tuned' is a Custom"):
        model.save_pretrained(tmp_path / "saved")


def test_members_that_cannot_be_loaded_are_named(tmp_path: Path) -> None:
    build("llama", 0).save_pretrained(tmp_path / "good")
    (tmp_path / "empty").mkdir()
    for where, said in {"empty": "no config.json", "nowhere/at/all": "neither a folder"}.items():
        with pytest.raises(ValueError, match=f"'tuned' .*{said}"):
            hub.load_members({"base": tmp_path / "good", "tuned": tmp_path / where})
    with pytest.raises(ValueError, match="'tuned'"):
        hub.load_members({"base": tmp_path / "good"}, member_kwargs={"tuned": {}})
    with pytest.raises(ValueError, match="use_safetensors"):
        hub.load_members({"base": tmp_path / "good"}, member_kwargs={"base": {"use_safetensors": False}})


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT asks for it
def test_a_member_that_peft_changed_after_it_was_combined_is_refused(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    reference = build("llama", 2)
    model = EFTForCausalLM.from_models(build("llama", 0), tuned=build("llama", 1), reference=reference)
    peft.get_peft_model(reference, peft.LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(ValueError, match=r"\['default'\] into the model of the member 'reference' after it was combined"):
        model.save_pretrained(tmp_path / "folder")
    assert not (tmp_path / "folder").exists()
