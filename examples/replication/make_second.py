"""Make the embedded family's second small pair, which reads another tokenizer: before and after fine-tuning, on the same world.

    python examples/replication/make_second.py            # minutes on one CPU core

Its tokenizer is of the other kind in use: SentencePiece's conventions (`▁` for a space, a space in front of every text, bytes as a
fallback) and pieces of words, where the family's own is a byte-level BPE of whole words. Writes `hf_eft/tiny/second_{reference,tuned}`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
from pathlib import Path

from make_tiny import ROOT, as_fast, finetune, make_model, pretrain
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, set_seed
from world import World

SIZE = 700  # 3 special tokens, 256 bytes, the alphabet, and pieces: names take two or three


def make_tokenizer(world: World, seed: int) -> PreTrainedTokenizerFast:
    """A BPE of pieces with SentencePiece's conventions."""
    rng = random.Random(seed)
    corpus = [*itertools.islice(world.pretraining(rng), 20_000), *itertools.islice(world.finetuning(rng), 2_000)]
    tokenizer = Tokenizer(models.BPE(byte_fallback=True))
    lines = pre_tokenizers.Split(Regex(r"\n"), "isolated")  # no piece crosses a line
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(prepend_scheme="first"), lines])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<pad>", "<bos>", "<eos>"]
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE - 256, special_tokens=special, initial_alphabet=["▁", "\n"], show_progress=False
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return as_fast(with_bytes(tokenizer, len(special)))


def with_bytes(tokenizer: Tokenizer, after: int) -> Tokenizer:
    """The same tokenizer, with a token for each byte put in behind the special ones."""
    state = json.loads(tokenizer.to_str())
    ordered = sorted(state["model"]["vocab"], key=state["model"]["vocab"].get)
    tokens = [*ordered[:after], *(f"<0x{byte:02X}>" for byte in range(256)), *ordered[after:]]
    state["model"]["vocab"] = {token: i for i, token in enumerate(tokens)}
    return Tokenizer.from_str(json.dumps(state))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=ROOT / "hf_eft" / "tiny")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--tuning-steps", type=int, default=1200)
    parser.add_argument("--width", type=int, default=24)
    args = parser.parse_args()

    set_seed(args.seed)
    world = World.make(args.seed)
    tokenizer = make_tokenizer(world, args.seed)
    print(f"{len(tokenizer)} tokens; {tokenizer.tokenize(world.question(world.seen[0], 'job'))}")
    model = make_model(tokenizer, layers=2, width=args.width, heads=2)
    for name, training, steps, peak, seed in (
        ("reference", pretrain, args.steps, 5e-3, args.seed + 10),
        ("tuned", finetune, args.tuning_steps, 2e-3, args.seed + 20),
    ):
        model = training(model, world, tokenizer, steps, peak, seed, name)
        model.save_pretrained(args.output / f"second_{name}")
        tokenizer.save_pretrained(args.output / f"second_{name}")
        print(f"{name}: {model.num_parameters():,} parameters")


if __name__ == "__main__":
    main()
