"""
What hf_eft answers, into files: run it where `hf_eft` is installed, then the tests where vLLM is.

    python vllm_eft/tests/oracle.py FOLDER

Writes combinations as folders, and `oracle.json` with each one's greedy answers and their log-probabilities.
"""

from __future__ import annotations

import json
import math
import random
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, set_seed

from hf_eft import Combination, EFTForCausalLM, Truncation, tiny

NEW = 24  # tokens of an answer
HEAD = 32  # vLLM's attention on CPUs has heads of 32, 64, ... dimensions
WIDE = 512  # tokens that the random models have

# What the random models share; beside it what is theirs.
_COMMON = {
    "vocab_size": WIDE, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "head_dim": HEAD, "max_position_embeddings": 256, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen3": {"num_key_value_heads": 1},
    "qwen2": {},
    "mistral": {"sliding_window": 16},
    "gemma3_text": {
        "sliding_window": 16,
        "layer_types": ["sliding_attention", "full_attention"],
        "query_pre_attn_scalar": HEAD,
    },
    "gpt2": {"n_embd": 64, "n_head": 2, "n_layer": 2, "n_positions": 256},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
    "olmo2": {},
}


def random_model(kind: str, seed: int, **more: Any) -> Any:
    """A small model of a kind, whose answers differ from token to token."""
    set_seed(seed)
    config = AutoConfig.for_model(kind, **{**_COMMON, **KINDS[kind], **more})
    model = AutoModelForCausalLM.from_config(config).eval().float()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4.0)  # of the usual initial scale, every token would be as likely as any other
    return model


def pad_heads(folder: Path) -> None:
    """Give the Llamas of a folder heads of `HEAD` dimensions that compute the same: zeros added, the queries' scale kept."""
    config = json.loads((folder / "config.json").read_text())
    for key, name in {"text_config": "base", "tuned_config": "tuned", "reference_config": "reference"}.items():
        member = folder / "members" / name
        own = config[key]
        weights = load_file(member / "model.safetensors")
        save_file(_padded(weights, own), member / "model.safetensors", {"format": "pt"})
        rope = {**own["rope_parameters"], "partial_rotary_factor": own["head_dim"] / HEAD}
        config[key] = {**own, "head_dim": HEAD, "rope_parameters": rope}
        (member / "config.json").write_text(json.dumps(config[key]))
    (folder / "config.json").write_text(json.dumps(config))


def _padded(weights: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    size, padded = config["head_dim"], {}
    for name, x in weights.items():
        part = name.removesuffix(".weight").rpartition(".")[2]
        if part in ("q_proj", "k_proj", "v_proj"):
            scale = math.sqrt(HEAD / size) if part == "q_proj" else 1.0
            x = torch.nn.functional.pad(x.view(-1, size, x.shape[1]) * scale, (0, 0, 0, HEAD - size)).flatten(0, 1)
        elif part == "o_proj":
            x = torch.nn.functional.pad(x.view(x.shape[0], -1, size), (0, HEAD - size)).flatten(1)
        padded[name] = x.contiguous()
    return padded


@torch.no_grad()
def answers(model: Any, prompts: list[list[int]], **how: Any) -> list[dict[str, Any]]:
    """One prompt at a time, so that nothing of a batch is in it."""
    rows = []
    for prompt in prompts:
        out = model.generate(
            torch.tensor([prompt]), max_new_tokens=NEW, do_sample=False, return_dict_in_generate=True, output_logits=True, **how
        )
        new = out.sequences[0, len(prompt) :].tolist()
        scores = [float(step[0].float().log_softmax(-1)[token]) for step, token in zip(out.logits, new, strict=True)]
        rows.append({"prompt": prompt, "new": new, "logprobs": scores})
    return rows


@torch.no_grad()
def check_edges(model: Any, rows: list[dict[str, Any]]) -> None:
    """Stop if chance decides about a token: if the nucleus' mass ends so near to `p` that another sum of it may end on the other side."""
    p = model.combination.truncation.p
    for row in rows:
        logits = model.tuned(torch.tensor([row["prompt"] + row["new"]])).logits[0, len(row["prompt"]) - 1 : -1]
        masses = logits.double().softmax(-1).sort(-1, descending=True).values.cumsum(-1)
        if float((masses - p).abs().min()) < 1e-6:
            raise SystemExit(f"A nucleus ends within 1e-6 of its mass, {p}: choose another `p` for this combination.")


def tiny_family(folder: Path) -> dict[str, Any]:
    """The embedded family: short and long prompts, at four strengths each."""
    base, tuned, reference, tokenizer = tiny.load()
    model = EFTForCausalLM.from_models(base, tuned=tuned, reference=reference)
    model.save_pretrained(folder / "tiny", tokenizers=dict.fromkeys(("base", "tuned", "reference"), tokenizer))
    pad_heads(folder / "tiny")
    rng = random.Random(0)
    questions = [tokenizer(question.prompt)["input_ids"] for question in rng.sample(tiny.questions(), 60)]
    long = [
        [token for other in rng.sample(questions, 20) for token in other][: rng.randrange(150, 200)] + own
        for own in questions[:15]
    ]
    requests = []
    for alpha in (0.0, 0.5, 1.0, 1.5):
        strength = torch.tensor([[1.0, alpha, -alpha]])
        for kind, prompts in (("short", questions), ("long", long)):
            for row in answers(model, prompts, coefficients=strength):
                requests.append({"extra": {"alpha": alpha}, "kind": kind, **row})
    return {"requests": requests, "max_model_len": 512}


def random_families(folder: Path) -> dict[str, Any]:
    """Members of every kind, mixed; shared, several tuned, adapters, narrower ones; truncations and other recipes."""
    rng = random.Random(1)
    prompts = [[1, *(rng.randrange(3, 480) for _ in range(length))] for length in (2, 30, 7, 30, 30, 7)]
    found: dict[str, Any] = {}

    def add(name: str, model: Any, asked: list[tuple[dict[str, Any], list[float]]], **more: Any) -> None:
        model.generation_config.update(bos_token_id=1, eos_token_id=None, pad_token_id=0)
        model.save_pretrained(folder / name, **more)
        requests = [{"extra": {}, **row} for row in answers(model, prompts)]
        for extra, row in asked:
            for answer in answers(model, prompts[:3], coefficients=torch.tensor([row])):
                requests.append({"extra": extra, **answer})
        found[name] = {"requests": requests, "max_model_len": 128}

    alpha = ({"alpha": 0.5}, [1.0, 0.5, -0.5])
    for kind in KINDS:
        add(kind, EFTForCausalLM.from_models(*(random_model(kind, seed) for seed in (1, 2, 3))), [alpha])
    one, two, three, four = (random_model("llama", seed) for seed in (1, 2, 3, 4))
    for rule, p in (("keep", 0.8), ("drop", 0.8), ("base", 0.9), ("plausible", 0.05)):
        recipe = Combination.emulate(1.0, truncation=Truncation(rule, p))  # type: ignore[arg-type]
        cut = EFTForCausalLM.from_models(one, tuned=two, reference=three, combination=recipe)
        add(rule, cut, [alpha])
        if rule in ("keep", "drop"):
            check_edges(cut, found[rule]["requests"])
    steer = Combination.steer({"helpful": 0.7, "brief": 0.3})
    add(
        "steer",
        EFTForCausalLM.from_models(one, tuned={"helpful": two, "brief": four}, reference=three, combination=steer),
        [({"weights": [0.2, 0.5]}, [1.0, 0.2, 0.5, -0.7]), ({"coefficients": [1.0, 0.0, 1.0, -1.0]}, [1.0, 0.0, 1.0, -1.0])],
    )
    plan = [0.0, 1.5, 0.5, 2.0, 1.0]
    scheduled = EFTForCausalLM.from_models(one, tuned=two, reference=three, alpha=plan)
    later = {"alpha": [1.0] * 8 + [0.0]}
    add("scheduled", scheduled, [alpha])
    scheduled.combination = Combination.emulate(later["alpha"])
    found["scheduled"]["requests"] += [{"extra": later, **row} for row in answers(scheduled, prompts)]
    add("shared", EFTForCausalLM.from_models(one, tuned=two, reference=one, alpha=0.5), [({"alpha": 1.5}, [1.0, 1.5, -1.5])])
    add(
        "interpolated",
        EFTForCausalLM.from_models(None, tuned=two, reference=three, combination=Combination.interpolate(1.5)),
        [],
    )
    add(
        "mixed",
        EFTForCausalLM.from_models(random_model("qwen3", 5), tuned=random_model("mistral", 6), reference=three),
        [alpha],
    )
    narrow = random_model("llama", 7, vocab_size=WIDE - 24)
    add("narrow", EFTForCausalLM.from_models(one, tuned=narrow, reference=three), [alpha])
    add("adapter", adapted(folder, one), [alpha])
    for name, quantised in (("int8", ("tuned", "reference")), ("int8_base", ("base",))):
        members = {key: random_model("llama", seed) for key, seed in (("base", 1), ("tuned", 2), ("reference", 3))}
        for key in quantised:
            run_in_int8(members[key])
        base = members.pop("base")
        add(name, EFTForCausalLM.from_models(base, **members), [alpha])
        for key in quantised:
            store_in_int8(folder / name, key)
    return found


def run_in_int8(model: Any) -> None:
    """
    Have its layers compute what vLLM's int8 kernels do: a scale for each row of weights and for each token, the largest value at 127. (Of
    the same file, transformers puts a token's largest value at 127.5: log-probabilities of these models differ by about 0.05.)
    """
    for name, layer in model.named_modules():
        if isinstance(layer, torch.nn.Linear) and name != "lm_head":
            with torch.no_grad():
                layer.weight.copy_(in_steps(layer.weight))
            layer.register_forward_pre_hook(lambda _, args: (in_steps(args[0]), *args[1:]))


def in_steps(x: torch.Tensor) -> torch.Tensor:
    scale = x.abs().amax(-1, keepdim=True) / 127
    return (x / scale).round() * scale


def store_in_int8(folder: Path, name: str) -> None:
    """A member of a folder as compressed-tensors stores it: weights and activations in int8 (W8A8), all layers but the head."""
    file = folder / "members" / name / "model.safetensors"
    stored = {}
    for key, x in load_file(file).items():
        if key.endswith("_proj.weight"):
            scale = x.abs().amax(-1, keepdim=True) / 127
            stored[key.replace(".weight", ".weight_scale")], x = scale, (x / scale).round().to(torch.int8)
        stored[key] = x
    save_file(stored, file, {"format": "pt"})
    numbers = {"num_bits": 8, "type": "int", "symmetric": True}
    group = {
        "targets": ["Linear"],
        "weights": {**numbers, "strategy": "channel", "dynamic": False},
        "input_activations": {**numbers, "strategy": "token", "dynamic": True},
    }
    quantization = {
        "quant_method": "compressed-tensors", "format": "int-quantized", "quantization_status": "compressed", "ignore": ["lm_head"],
        "config_groups": {"group_0": group},
    }  # fmt: skip
    for place, key in (
        (folder / "config.json", "text_config" if name == "base" else f"{name}_config"),
        (file.parent / "config.json", ""),
    ):
        config = json.loads(place.read_text())
        (config[key] if key else config)["quantization_config"] = quantization
        place.write_text(json.dumps(config))


def adapted(folder: Path, base: Any) -> Any:
    """A LoRA on the reference."""
    from peft import LoraConfig, get_peft_model

    reference = random_model("llama", 3)
    tuned = get_peft_model(random_model("llama", 3), LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"]))
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, 0.3)
    tuned.save_pretrained(str(folder / "lora"))
    return EFTForCausalLM.from_models(base, tuned=str(folder / "lora"), reference=reference)


def main() -> None:
    folder = Path(sys.argv[1])
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    torch.set_num_threads(1)
    cases = {"tiny": tiny_family(folder), **random_families(folder)}
    (folder / "oracle.json").write_text(json.dumps(cases))
    print(f"{folder}: {len(cases)} combinations, {sum(len(case['requests']) for case in cases.values())} answers")


if __name__ == "__main__":
    main()
