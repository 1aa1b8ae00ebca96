"""Trainers of transformers and TRL take the combination as a model; what they write is the learner, from which they go on."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from adapted import PEFT_SAYS
from families import build, tokenizer
from peft import PeftModel
from taught import batch_of, rows
from tokenizers import ByteLevelBPETokenizer
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Trainer, TrainingArguments

from hf_eft import EFTForCausalLM
from hf_eft.training import EFTForTraining, EFTTeacher

pytestmark = PEFT_SAYS
ADAPTER = {"r": 2, "target_modules": "all-linear", "lora_dropout": 0.2, "init_lora_weights": False}


def arguments(folder: Path, steps: int, kind: Any = TrainingArguments, **options: Any) -> Any:
    common = {"max_steps": steps, "save_steps": 2, "per_device_train_batch_size": 2, "learning_rate": 0.05, "use_cpu": True}
    return kind(str(folder), **common, report_to=[], disable_tqdm=True, logging_steps=1, **options)


def learning(adapter: bool, bases: int = 1) -> EFTForTraining:
    torch.manual_seed(0)
    config = peft.LoraConfig(**ADAPTER) if adapter else None
    through = [build("llama", seed) for seed in (0, 5)][:bases]
    return EFTForTraining.from_models(through, reference=build("qwen3", 2), alpha=0.5, peft_config=config)


def weights(model: EFTForTraining) -> list[torch.Tensor]:
    return [p.detach() for p in model.parameters() if p.requires_grad]


@pytest.mark.parametrize("adapter", [False, True])
def test_a_run_that_was_stopped_goes_on_to_the_same_weights(tmp_path: Path, adapter: bool) -> None:
    batches = batch_of(rows([6, 9, 5, 8, 7, 9], seed=1), "right")
    data = [{key: value[i] for key, value in batches.items()} for i in range(6)]

    def run(name: str, steps: int, resume: bool) -> EFTForTraining:
        model = learning(adapter, bases=2)
        arguments_ = arguments(tmp_path / name, steps, gradient_accumulation_steps=2, lr_scheduler_type="constant")
        Trainer(model, arguments_, train_dataset=data).train(resume_from_checkpoint=resume)
        return model

    whole, stopped = run("whole", 4, False), run("stopped", 2, False)
    resumed = run("stopped", 4, True)
    torch.testing.assert_close(weights(resumed), weights(whole), atol=0, rtol=0)
    assert not all(map(torch.equal, weights(stopped), weights(whole)))

    written = tmp_path / "whole" / "checkpoint-4"
    reference = build("qwen3", 2)
    read = PeftModel.from_pretrained(reference, str(written)) if adapter else AutoModelForCausalLM.from_pretrained(written)
    again = EFTForCausalLM.from_models(build("llama", 0), tuned=read, reference=reference, alpha=0.5)
    batch = {key: batches[key] for key in ("input_ids", "attention_mask")}
    torch.testing.assert_close(again(**batch).logits, whole.eval()(**batch).logits)


def test_the_checkpoint_of_another_learner_is_refused(tmp_path: Path) -> None:
    model, other = learning(True), learning(False)
    for learner, given in ((model, other.learner.state_dict()), (other, {"lm_head.weight": torch.zeros(2, 2)})):
        with pytest.raises(ValueError, match="no checkpoint of the member that learns"):
            learner.load_state_dict(given)


def test_numbers_of_each_token_are_those_that_trl_computes_of_one_model() -> None:
    from trl.trainer.utils import add_fused_lm_head

    wanted = ("log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1")
    alone, policy = build("llama", 0), learning(True).reference_policy()
    policy.positions_per_piece = 4
    for model in (alone, policy):
        add_fused_lm_head(model, temperature=0.7, outputs=wanted)
    batch = batch_of(rows(), "right")
    expected, found = alone(**batch, fused_lm_head=True), policy(**batch, fused_lm_head=True)
    for key in (*wanted, "label_mask", "loss"):
        torch.testing.assert_close(found[key].float(), expected[key].float(), atol=1e-4, rtol=1e-4, msg=key)
    torch.testing.assert_close(policy(**batch).loss, alone(**batch).loss)  # at temperature 1
    with pytest.raises(ValueError, match="cast_lm_head_to_fp32"):
        add_fused_lm_head(learning(True), cast_lm_head_to_fp32=True)


def spelling() -> Any:
    """A tokenizer of bytes, which GOLD needs, with a chat template."""
    made = ByteLevelBPETokenizer()
    made.train_from_iterator([], vocab_size=258, special_tokens=["<pad>", "</s>"], show_progress=False)
    found = PreTrainedTokenizerFast(tokenizer_object=made._tokenizer, pad_token="<pad>", eos_token="</s>")
    found.chat_template = "{% for m in messages %}{{ m.content + ' ' }}{% endfor %}"
    return found


CHATS = [{"prompt": f"w{i} w{i + 1}", "completion": f"w{i + 2} w{i + 3} w{i + 4}"} for i in range(4, 40, 4)]
PAIRS = [{"prompt": c["prompt"], "chosen": c["completion"], "rejected": c["prompt"]} for c in CHATS]


@pytest.mark.filterwarnings("ignore")
def test_trl_trainers(tmp_path: Path) -> None:
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

    def reward(completions: list[str], **_: Any) -> list[float]:
        return [float(zlib.crc32(text.encode()) % 1009) for text in completions]  # other texts, other rewards

    def trained(model: EFTForTraining, trainer: Any) -> list[dict[str, float]]:
        before = [w.clone() for w in weights(model)]
        trainer.train()
        assert not all(map(torch.equal, before, weights(model)))
        frozen = {name: member for name, member in model.members.items() if name != "tuned"}
        fresh = {"base": build("llama", 0), "reference": build("qwen3", 2)}
        for name, member in frozen.items():
            torch.testing.assert_close(member.state_dict(), fresh[name].state_dict(), atol=0, rtol=0)
        return trainer.state.log_history

    model = learning(True)
    data = Dataset.from_list(CHATS)
    config = arguments(tmp_path / "sft", 1, SFTConfig)
    trained(model, SFTTrainer(model, config, train_dataset=data, processing_class=tokenizer()))

    model = learning(True)
    with torch.no_grad():
        for name, parameter in model.learner.named_parameters():
            if "lora_B" in name:
                parameter.zero_()
    policy = model.reference_policy()
    config = arguments(tmp_path / "dpo", 1, DPOConfig)
    pairs = Dataset.from_list(PAIRS)
    log = trained(model, DPOTrainer(model, policy, args=config, train_dataset=pairs, processing_class=tokenizer()))
    assert (
        abs(log[0]["loss"] - 0.6931) < 1e-3 and abs(log[0]["rewards/margins"]) < 1e-4
    )  # it begins as the policy it is held to

    model = learning(True)
    model.rollouts = {"assistant_model": model.tuned}
    config = arguments(tmp_path / "grpo", 1, GRPOConfig, num_generations=2, max_completion_length=5)
    trained(model, GRPOTrainer(model, reward, args=config, train_dataset=data, processing_class=tokenizer()))
    assert model.speculation is not None and model.speculation.rounds  # drafts were made


def test_what_is_learnt_from_is_not_generated_where_the_base_is_drawn() -> None:
    model, batch = learning(False, bases=2), batch_of(rows(), "left")
    read = {key: batch[key] for key in ("input_ids", "attention_mask")}
    with pytest.raises(ValueError, match="With several bases, texts that are learnt from must not be generated"):
        model.train().generate(**read, max_new_tokens=2)
    one = EFTForCausalLM.from_models(build("llama", 0), tuned=model.learner, reference=build("qwen3", 2), alpha=0.5)
    assert model.eval().generate(**read, max_new_tokens=2).equal(one.generate(**read, max_new_tokens=2))
    assert learning(False).train().generate(**read, max_new_tokens=2).shape[1] == read["input_ids"].shape[1] + 2


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["GKD", "GOLD"])
def test_trainers_that_read_a_teachers_logits_take_the_combination(tmp_path: Path, kind: str, monkeypatch: Any) -> None:
    """With `lmbda=0` the texts of the data are learnt from: the first loss is the divergence of teacher and student on these."""
    pytest.importorskip("trl")
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    from datasets import Dataset
    from trl.experimental.gkd import GKDConfig, GKDTrainer
    from trl.experimental.gold import GOLDConfig, GOLDTrainer

    trainer_kind, config_kind = {"GKD": (GKDTrainer, GKDConfig), "GOLD": (GOLDTrainer, GOLDConfig)}[kind]
    speaks = spelling()
    members = [build(kind, seed, vocab_size=len(speaks)) for seed, kind in enumerate(("llama", "qwen3", "qwen3", "llama"))]
    student, teacher = members[3], EFTForCausalLM.from_models(*members[:3], alpha=0.5)
    before = [[p.clone() for p in member.parameters()] for member in members]
    short = {"GKD": {"max_new_tokens": 8}, "GOLD": {"max_completion_length": 8}}[kind]
    options = {"lmbda": 0.0, "beta": 0.0, "temperature": 1.0, "max_length": 64, **short}
    config = arguments(tmp_path / kind, 1, config_kind, **options)
    said = [{"role": "user", "content": CHATS[0]["prompt"]}, {"role": "assistant", "content": CHATS[0]["completion"]}]
    data = Dataset.from_list([{"messages": said}] * 2)
    trainer = trainer_kind(student, teacher, args=config, train_dataset=data, processing_class=speaks)
    batch = next(iter(trainer.get_train_dataloader()))
    with torch.no_grad():
        told, guessed = (m(input_ids=batch["input_ids"]).logits[:, :-1].log_softmax(-1) for m in (teacher, student))
    divergences = (told.exp() * (told - guessed)).sum(-1)[batch["labels"][:, 1:] != -100]
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(float(divergences.mean()), rel=1e-3)
    same = [all(map(torch.equal, old, member.parameters())) for old, member in zip(before, members, strict=True)]
    assert same == [True, True, True, False]


def test_one_body_and_one_head_are_the_combination() -> None:
    given = {"base": build("llama", 0), "tuned": build("qwen3", 1), "reference": build("qwen3", 2)}
    model = EFTForCausalLM.from_models(**given, alpha=0.6)
    teacher = EFTTeacher.of(model)
    batch = batch_of(rows(), "left")
    read = {key: batch[key] for key in ("input_ids", "attention_mask")}
    found = teacher.get_output_embeddings()(teacher.base_model(**read).last_hidden_state)
    torch.testing.assert_close(found, model(**read).logits, atol=1e-4, rtol=1e-4)
    for options, said in [
        ({"alpha": [0.5, 1.0]}, "no plain sum"),
        ({"tuned": build("qwen3", 1, vocab_size=70)}, "of the widths"),
    ]:
        with pytest.raises(ValueError, match=said):
            EFTTeacher.of(EFTForCausalLM.from_models(**{**given, **options}))
