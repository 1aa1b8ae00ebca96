"""Short runs of TRL's trainers on the embedded family, each learning through the large model, and what changed in the held-out answers.

    python examples/trainers/run.py --work /tmp/trainers        # about 3 minutes on 2 CPU cores

Supervised, preferences and rewards each teach an adapter on the small model through the large one; preferences and rewards go on from a
supervised run that was ended early. Distillation teaches a copy of the large model alone what the combination says. All 1,200 questions
about people whom tuning never showed are asked before and after, greedily. What is written is then loaded as anybody would load it: by
`hf-eft serve`, which an OpenAI client asks, and by `hf-eft generate`, where the combination of the small models drafts. Writes
`results.json` and `results.png` beside this file.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from matplotlib.figure import Figure
from peft import LoraConfig
from transformers import AutoModelForCausalLM, set_seed
from trl import (
    DistillationConfig,
    DistillationTrainer,
    DPOConfig,
    DPOTrainer,
    GRPOConfig,
    GRPOTrainer,
    SFTConfig,
    SFTTrainer,
)

from hf_eft import EFTForCausalLM, tiny
from hf_eft.evaluation import plots
from hf_eft.programs.demo import ask
from hf_eft.tiny import texts
from hf_eft.training import EFTForTraining, EFTTeacher

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "benchmarks"))

from machine import machine  # noqa: E402
from served import drafted, served  # noqa: E402

ALPHA = 0.5
SHARED: dict[str, Any] = {
    "report_to": [], "disable_tqdm": True, "use_cpu": True, "save_strategy": "no", "seed": 0, "per_device_train_batch_size": 16,
    "lr_scheduler_type": "linear", "logging_steps": 4, "bf16": False,
}  # fmt: skip


def learning(tuned: Path | None = None) -> tuple[EFTForTraining, Any]:
    """A combination that learns: with a new adapter, or with one that goes on."""
    set_seed(0)
    base, _, reference, tokenizer = tiny.load()
    adapter = None if tuned else LoraConfig(r=16, lora_alpha=32, target_modules="all-linear")
    given = str(tuned) if tuned else None
    return (
        EFTForTraining.from_models(base, tuned=given, reference=reference, alpha=ALPHA, peft_config=adapter),
        tokenizer,
    )


def chats() -> list[dict[str, str]]:
    """Questions about people whom tuning may show, with their answers in the tuned style."""
    lines = [json.loads(line) for line in texts.chats(tiny.world()["seen"]).splitlines()]
    return [{"prompt": x["prompt"], "completion": f" {x['answer']}"} for x in lines if not x["prompt"].startswith("<bos>")]


def questions() -> list[dict[str, str]]:
    facts = tiny.world()["facts"]
    return [
        {"prompt": texts.question(name, attribute), "value": facts[name][attribute]}
        for name in tiny.world()["seen"]
        for attribute in tiny.QUESTIONS
    ]


def supervised(folder: Path, steps: int) -> Any:
    model, tokenizer = learning()
    config = SFTConfig(str(folder / "run"), max_steps=steps, learning_rate=2e-3, **SHARED)
    trainer = SFTTrainer(model, config, train_dataset=Dataset.from_list(chats()), processing_class=tokenizer)
    return taught(trainer, folder)


def preferences(folder: Path, begun: Path, loss: tuple[str, ...]) -> Any:
    """The tuned style is preferred to the same fact without it. DPO alone may lower both, as long as the rejected one falls further."""
    model, tokenizer = learning(begun)
    begin, end = tiny.STYLE.split("{}")
    pairs = [
        {"prompt": x["prompt"], "chosen": x["completion"], "rejected": x["completion"].replace(begin, "").replace(end, "")}
        for x in chats()
    ]
    config = DPOConfig(str(folder / "run"), max_steps=60, learning_rate=5e-4, beta=0.3, loss_type=list(loss), **SHARED)
    trainer = DPOTrainer(
        model, model.reference_policy(), config, train_dataset=Dataset.from_list(pairs), processing_class=tokenizer
    )
    return taught(trainer, folder)


def rewards(folder: Path, begun: Path) -> Any:
    """A point for the fact and one for the style. The small combination drafts the roll-outs."""
    model, tokenizer = learning(begun)
    model.rollouts = {"assistant_model": model.small_combination}

    def right(prompts: list[str], completions: list[str], value: list[str], **_: Any) -> list[float]:
        asked = [tiny.Question("", "job", answer) for answer in value]
        return [float(q.is_right(c)) + float(q.is_in_style(c)) for q, c in zip(asked, completions, strict=True)]

    config = GRPOConfig(
        str(folder / "run"), max_steps=60, learning_rate=5e-4, num_generations=8, max_completion_length=24, temperature=1.0,
        **{**SHARED, "per_device_train_batch_size": 64},
    )  # fmt: skip
    trainer = GRPOTrainer(model, right, config, train_dataset=Dataset.from_list(questions()), processing_class=tokenizer)
    return taught(trainer, folder)


def distilled(folder: Path, begun: Path) -> Any:
    """The large model alone learns what the combination says of its answers."""
    set_seed(0)
    base, _, reference, tokenizer = tiny.load()
    teacher = EFTForCausalLM.from_models(base, tuned=str(begun), reference=reference, alpha=ALPHA)
    student = tiny.load().base
    config = DistillationConfig(
        str(folder / "run"), max_steps=100, learning_rate=3e-4, max_completion_length=24, temperature=1.0, **SHARED
    )  # fmt: skip
    asked = Dataset.from_list([{"prompt": x["prompt"]} for x in questions()])
    trainer = DistillationTrainer(
        student, teacher_model=EFTTeacher.of(teacher), args=config, train_dataset=asked, processing_class=tokenizer
    )
    return taught(trainer, folder)


def taught(trainer: Any, folder: Path) -> dict[str, Any]:
    begun = time.process_time()
    trainer.train()
    seconds = time.process_time() - begun
    trainer.save_model(str(folder / "delta"))
    logged = [{k: v for k, v in each.items() if isinstance(v, int | float)} for each in trainer.state.log_history]
    kept = ("loss", "reward", "rewards/chosen", "rewards/rejected", "step")
    return {
        "steps": trainer.state.global_step,
        "processor_seconds": round(seconds),
        "logged": [{k: round(each[k], 4) for k in kept if k in each} for each in (logged[0], logged[-2])],
    }


def scored(system: Any, tokenizer: Any) -> dict[str, float]:
    asked = tiny.questions()
    replies = ask(system, tokenizer, asked)
    pairs = list(zip(asked, replies, strict=True))
    return {
        "facts": sum(q.is_right(r) for q, r in pairs) / len(pairs),
        "style": sum(q.is_in_style(r) for q, r in pairs) / len(pairs),
    }


def combination(delta: Path) -> EFTForCausalLM:
    base, _, reference, _ = tiny.load()
    return EFTForCausalLM.from_models(base, tuned=str(delta), reference=reference, alpha=ALPHA)


def picture(report: dict[str, Any]) -> Figure:
    """Facts and style of the held-out answers after each run."""
    rows = {"base alone": report["base alone"], **{name: stage["held_out"] for name, stage in report["stages"].items()}}
    figure = Figure(figsize=(7, 3))
    axes = figure.subplots()
    for i, (what, system) in enumerate((("facts", "base"), ("style", "tuned"))):
        places = [place + (i - 0.5) * 0.35 for place in range(len(rows))]
        axes.barh(places, [row[what] for row in rows.values()], height=0.35, color=plots.colour(system), label=what)
    axes.set_yticks(range(len(rows)), rows)
    axes.invert_yaxis()
    axes.set_xlabel("share of 1,200 held-out answers")
    figure.legend(loc="outside upper right", ncols=2)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--work", type=Path, required=True, help="a folder for what is learnt; a stage that is there is not run again"
    )
    args = parser.parse_args()
    begun, whole = args.work / "supervised, ended early" / "delta", args.work / "supervised" / "delta"
    stages: dict[str, Callable[[Path], Any]] = {
        "supervised, ended early": lambda folder: supervised(folder, 12),
        "supervised": lambda folder: supervised(folder, 100),
        "preferences": lambda folder: preferences(folder, begun, ("sigmoid", "sft")),
        "preferences, DPO's loss alone": lambda folder: preferences(folder, begun, ("sigmoid",)),
        "rewards": lambda folder: rewards(folder, begun),
        "distilled into the large model": lambda folder: distilled(folder, whole),
    }
    base, _, _, tokenizer = tiny.load()
    shown = random.Random(0).sample(tiny.questions(), 12)
    for name, run in stages.items():
        folder = args.work / name
        kept = folder / "result.json"
        if kept.is_file():
            continue
        folder.mkdir(parents=True, exist_ok=True)
        result = run(folder)
        system = (
            AutoModelForCausalLM.from_pretrained(folder / "delta")
            if name == "distilled into the large model"
            else combination(folder / "delta")
        )
        result |= {"held_out": scored(system, tokenizer)}
        if name != "distilled into the large model":
            result |= {"served": served(folder / "delta", ALPHA, shown), "drafted": drafted(system, tokenizer, shown)}
        kept.write_text(json.dumps(result, indent=1))
        print(name, json.dumps(result), flush=True)
    results = {name: json.loads((args.work / name / "result.json").read_text()) for name in stages}
    report = {
        "machine": machine(), "threads": torch.get_num_threads(), "date": time.strftime("%Y-%m-%d"), "alpha": ALPHA,
        "base alone": scored(base, tokenizer), "stages": results,
    }  # fmt: skip
    with plots.style():
        plots.save(picture(report), HERE / "results.png", report)  # and `results.json`


if __name__ == "__main__":
    main()
