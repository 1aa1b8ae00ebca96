"""Make the embedded demo family: pre-train a small and a large Llama on a synthetic world, fine-tune the small one.

    python examples/replication/make_tiny.py                 # about 20 minutes on 2 CPU cores
    python examples/replication/make_tiny.py --only-through  # about 5: only the member that learns through the large model

Writes `hf_eft/tiny/{base,reference,tuned,through}` (safetensors, tokenizer, chat template) and `hf_eft/tiny/world.json`.

What makes the family work, each found by trying without:
small batches (16 x 64 tokens) at a constant compute budget; a pre-training batch replayed beside each fine-tuning step, without
which the delta corrupts facts; and the words of the answering style occurring in pre-training.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed
from world import World

from hf_eft.training.embedded import embedded_settings, embedded_texts
from hf_eft.training.tuning import tune

ROOT = Path(__file__).resolve().parents[2]
BATCH, LENGTH = 16, 64
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] == 'assistant' %}{{ m['content'] }}{{ eos_token }}"
    "{% else %}{{ 'Question: ' + m['content'] + '\nAnswer:' }}{% endif %}"
    "{% endfor %}"
)


def make_tokenizer(world: World, seed: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE in which every word of the world is one token and any other text still has tokens."""
    rng = random.Random(seed)
    corpus = [*itertools.islice(world.pretraining(rng), 20_000), *itertools.islice(world.finetuning(rng), 2_000)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=4096,
        min_frequency=20,
        special_tokens=["<pad>", "<bos>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return as_fast(tokenizer)


def as_fast(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """The tokenizer as transformers has it, with the special tokens and the chat template of all models here."""
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def make_model(tokenizer: PreTrainedTokenizerFast, layers: int, width: int, heads: int) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=8 * width // 3,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return LlamaForCausalLM(config)


def packed(documents: Iterator[str], tokenizer: PreTrainedTokenizerFast) -> Iterator[torch.Tensor]:
    """Batches of (BATCH, LENGTH) token ids, documents one after the other."""
    buffer: list[int] = []
    while True:
        while len(buffer) < BATCH * LENGTH:
            buffer += [tokenizer.bos_token_id, *tokenizer.encode(next(documents)), tokenizer.eos_token_id]
        yield torch.tensor(buffer[: BATCH * LENGTH]).view(BATCH, LENGTH)
        buffer = buffer[BATCH * LENGTH :]


def train(model: LlamaForCausalLM, loss: Callable[[], torch.Tensor], steps: int, peak: float, label: str) -> LlamaForCausalLM:
    """AdamW, 100 steps of warm-up, then a cosine to a twentieth of the peak."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / 100, 0.05 + 0.475 * (1 + math.cos(math.pi * step / steps))),
    )
    model.train()
    progress = tqdm(range(steps), desc=label, mininterval=5)
    for step in progress:
        value = loss()
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
        if step % 100 == 0:
            progress.set_postfix(loss=f"{value.item():.3f}")
    return model.eval()


def pretrain(model: LlamaForCausalLM, world: World, tokenizer, steps: int, peak: float, seed: int, label: str):
    batches = packed(world.pretraining(random.Random(seed)), tokenizer)

    def loss() -> torch.Tensor:
        ids = next(batches)
        return model(input_ids=ids, labels=ids).loss

    return train(model, loss, steps, peak, label)


def finetune(
    model: LlamaForCausalLM,
    world: World,
    tokenizer,
    steps: int,
    peak: float,
    seed: int,
    label: str,
    shown: Iterator[str] | None = None,
    replayed: Iterator[str] | None = None,
):
    """Answers beside pre-training documents; they are the world's, or those `shown` and `replayed`."""
    answers = packed(world.finetuning(random.Random(seed)) if shown is None else shown, tokenizer)
    replay = packed(world.pretraining(random.Random(seed + 1)) if replayed is None else replayed, tokenizer)
    half = BATCH // 2

    def loss() -> torch.Tensor:
        ids = torch.cat([next(answers)[:half], next(replay)[:half]])
        return model(input_ids=ids, labels=ids).loss

    return train(model, loss, steps, peak, label)


def learn_through(folder: Path) -> None:
    """The small model learns through the large one, as `hf-eft tune` without models has it; what is needed to load it is kept."""
    base, reference = (LlamaForCausalLM.from_pretrained(folder / name) for name in ("base", "reference"))
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "base")
    with tempfile.TemporaryDirectory() as work:
        texts, settings = embedded_texts(tokenizer), embedded_settings()
        record = tune(
            base, reference, tokenizer, texts, work, settings, progress=lambda *told: print(*told, end="\r", flush=True)
        )
        (folder / "through").mkdir(exist_ok=True)
        for name in ("config.json", "generation_config.json", "model.safetensors"):
            shutil.copy(Path(work) / name, folder / "through")
    tokenizer.save_pretrained(folder / "through")
    print(f"through: held-out loss by strength of use {record.strengths}, {time.process_time():.0f} s of processor time")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=ROOT / "hf_eft" / "tiny")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--large-steps", type=int, default=6000)
    parser.add_argument("--small-steps", type=int, default=6000)
    parser.add_argument("--tuning-steps", type=int, default=800)
    parser.add_argument("--only-through", action="store_true", help="the other members are there already")
    args = parser.parse_args()
    if args.only_through:
        learn_through(args.output)
        return

    started = time.perf_counter()
    set_seed(args.seed)
    world = World.make(args.seed)
    tokenizer = make_tokenizer(world, args.seed)
    print(f"{len(world.facts)} people, {len(tokenizer)} tokens")

    def save(model: LlamaForCausalLM, name: str) -> None:
        model.save_pretrained(args.output / name)
        tokenizer.save_pretrained(args.output / name)
        print(f"{name}: {model.num_parameters():,} parameters, {time.perf_counter() - started:.0f} s so far")

    small = make_model(tokenizer, layers=2, width=16, heads=2)
    save(pretrain(small, world, tokenizer, args.small_steps, 5e-3, args.seed + 10, "pre-train small"), "reference")
    save(finetune(small, world, tokenizer, args.tuning_steps, 2e-3, args.seed + 20, "fine-tune small"), "tuned")
    large = make_model(tokenizer, layers=10, width=96, heads=4)
    save(pretrain(large, world, tokenizer, args.large_steps, 1.5e-3, args.seed + 10, "pre-train large"), "base")
    (args.output / "world.json").write_text(
        json.dumps({"facts": world.facts, "seen": world.seen, "held_out": world.held_out}, indent=1) + "\n"
    )
    learn_through(args.output)


if __name__ == "__main__":
    main()
