"""Tokenizers of the kinds and sizes in use, trained on text that is on the machine, and what units they have in common.

    python examples/benchmarks/tokenizer_kinds.py --output kinds        # on one CPU core; see `tokenizer_kinds.json` for the time
    python examples/benchmarks/tokenizer_kinds.py --output kinds --scale 0.02 --megabytes 1    # the same in small

The text is Python's own library and the packages that are installed: sources and documentation. Given the text, the tokenizers are the same
at every run. Those that lie in the folder are used as they are. Of the Llama-3 and Qwen kinds one beginning of merges is trained and each
goes on with its own, as theirs do. Then, for every two of them, `hf_eft.units.choose` says how members with these are combined, and files
that nothing was trained on are written in units by both. So are the questions and answers of the embedded family, by its two tokenizers.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sysconfig
import time
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import date
from itertools import accumulate, combinations, pairwise
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # a figure of one core

from machine import machine
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from hf_eft import tiny
from hf_eft.units import choose

_LETTERS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_PATTERNS = {
    "gpt2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "llama3": _LETTERS + r"|\p{N}{1,3}|" + _REST,
    "qwen": _LETTERS + r"|\p{N}|" + _REST,
}
_BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
_SIZES = {
    "trunk": 100_000,
    "llama3": 128_000,
    "qwen": 151_643,
    "gpt2": 50_257,
    "gpt2-small": 32_000,
    "sentencepiece": 32_000,
    "unigram": 32_000,
}
_SPECIAL = ["<|pad|>", "<|endoftext|>"]
_HELD_OUT = 11  # every so many files
_UNIGRAM_SHARE = 8  # its training takes that many times as long
_ROUNDS = 12  # in which a beginning of merges is gone on with
_TEXTS, _LENGTH = 300, 2000

Pairs = list[tuple[str, str]]


def files(megabytes: float) -> tuple[list[str], list[str]]:
    """Texts to learn from, so many megabytes of them, and texts that are held out."""
    roots = [Path(sysconfig.get_paths()[name]) for name in ("stdlib", "purelib")]
    found = {path for root in roots for kind in ("py", "rst", "md", "txt") for path in root.rglob(f"*.{kind}")}
    learnt, held, size = [], [], 0
    for k, path in enumerate(sorted(found, key=_mixed)):
        try:
            text = path.read_text(encoding="utf-8")
        except (UnicodeDecodeError, OSError):
            continue
        if k % _HELD_OUT == 0:
            held.append(text)
        else:
            learnt.append(text)
            size += len(text)
        if size > megabytes * 1e6:
            break
    return learnt, held


def _mixed(path: Path) -> tuple[str, str]:
    """An order that mixes packages, and does not depend on where they lie."""
    name = "/".join(path.parts[-3:])
    return hashlib.md5(name.encode(), usedforsecurity=False).hexdigest(), str(path)


def splits(kind: str) -> Any:
    if kind in ("sentencepiece", "unigram"):
        return pre_tokenizers.Metaspace(prepend_scheme="first")
    split = pre_tokenizers.Split(Regex(_PATTERNS[kind]), "isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def lines(texts: Sequence[str]) -> Iterator[str]:
    return (line for text in texts for line in text.splitlines(keepends=True))


def learn(kind: str, size: int, texts: Sequence[str]) -> Tokenizer:
    """A tokenizer of a kind, trained on texts."""
    made = Tokenizer(models.Unigram() if kind == "unigram" else models.BPE())
    made.pre_tokenizer = splits(kind)
    options: dict[str, Any] = {"vocab_size": size, "special_tokens": _SPECIAL, "show_progress": False}
    if kind == "unigram":
        trainer: Any = trainers.UnigramTrainer(unk_token="<unk>", **options)
    elif kind == "sentencepiece":
        trainer = trainers.BpeTrainer(limit_alphabet=1000, **options)
    else:
        trainer = trainers.BpeTrainer(initial_alphabet=_BYTES, **options)
    made.train_from_iterator(lines(texts), trainer)
    return made


def merges_of(made: Tokenizer) -> Pairs:
    return [(left, right) for left, right in json.loads(made.to_str())["model"]["merges"]]


def gone_on(merges: Pairs, count: int, kind: str, texts: Sequence[str]) -> Pairs:
    """Merges and behind them so many others: in each round the most frequent pairs of what the merges so far make of the texts."""
    pre_tokenizer = splits(kind)
    words = Counter(word for line in lines(texts) for word, _ in pre_tokenizer.pre_tokenize_str(line))
    merges, known = list(merges), dict.fromkeys([*_BYTES, *(left + right for left, right in merges)])
    for left_over in range(_ROUNDS, 0, -1):
        merging = models.BPE(vocab={token: k for k, token in enumerate(known)}, merges=merges)
        pairs: Counter[tuple[str, str]] = Counter()
        for word, often in words.items():
            made = [token.value for token in merging.tokenize(word)]
            for pair in pairwise(made):
                pairs[pair] += often
        wanted = -(-count // left_over)
        new = {left + right: (left, right) for (left, right), _ in pairs.most_common(2 * wanted) if left + right not in known}
        taken = list(new.items())[:wanted]
        known |= dict.fromkeys(token for token, _ in taken)
        merges += [pair for _, pair in taken]
        count -= len(taken)
    return merges


def all_pairs(merges: Pairs) -> Pairs:
    """As a list converted from ranks has them: for each token every pair of tokens that it could be made of."""
    rank = {token: k for k, token in enumerate([*_BYTES, *(left + right for left, right in merges)])}
    pairs: Pairs = []
    for token in list(rank)[len(_BYTES) :]:
        halves = [(token[:k], token[k:]) for k in range(1, len(token)) if token[:k] in rank and token[k:] in rank]
        pairs += sorted(halves, key=lambda pair: (rank[pair[0]], rank[pair[1]]))
    return pairs


def byte_level(kind: str, merges: Pairs, pairs: Pairs | None = None, **model: Any) -> Tokenizer:
    """A byte-level BPE of these merges; `pairs` in their place where a list of ranks is meant."""
    vocab = {token: k for k, token in enumerate([*_BYTES, *(left + right for left, right in merges)])}
    made = Tokenizer(models.BPE(vocab=vocab, merges=pairs or merges, **model))
    made.pre_tokenizer = splits(kind)
    made.add_special_tokens(_SPECIAL)
    return made


def sentencepiece(made: Tokenizer) -> Tokenizer:
    """A BPE of characters with bytes for those that it has no token for."""
    model = json.loads(made.to_str())["model"]
    names = [*_SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *(name for name in model["vocab"] if name not in _SPECIAL)]
    merges = [tuple(pair) for pair in model["merges"]]
    made.model = models.BPE(vocab={name: k for k, name in enumerate(names)}, merges=merges, byte_fallback=True)
    return made


def make(kind: str, sizes: dict[str, int], learnt: Sequence[str], folder: Path) -> Tokenizer:
    """A tokenizer of a kind; some begin with the merges of another that is in the folder."""
    if kind == "llama3":
        merges = gone_on(
            merges_of(read(folder / "trunk").backend_tokenizer), sizes["llama3"] - sizes["trunk"], kind, learnt[::2]
        )
        return byte_level(kind, merges, all_pairs(merges), ignore_merges=True)
    if kind == "qwen":
        digits = set("0123456789")
        begun = merges_of(read(folder / "trunk").backend_tokenizer)
        begun = [pair for pair in begun if not (len("".join(pair)) > 1 and digits & set("".join(pair)))]
        made = byte_level(kind, gone_on(begun, sizes["qwen"] - len(begun) - len(_BYTES), kind, learnt[1::2]))
        made.normalizer = normalizers.NFC()
        return made
    if kind == "gpt2-small":
        merges = merges_of(read(folder / "gpt2").backend_tokenizer)
        return byte_level("gpt2", merges[: sizes[kind] - len(_BYTES)])
    if kind == "sentencepiece":
        return sentencepiece(learn(kind, sizes[kind] - 256, learnt))
    if kind == "unigram":
        return learn(kind, sizes[kind], learnt[::_UNIGRAM_SHARE])
    pattern = "llama3" if kind == "trunk" else kind
    return byte_level(pattern, merges_of(learn(pattern, sizes[kind], learnt)))


def build(scale: float, learnt: Sequence[str], folder: Path) -> dict[str, float]:
    """Put the tokenizers of all kinds into a folder, where they are not yet, and say how long each took, in seconds."""
    sizes = {kind: max(400, int(size * scale)) for kind, size in _SIZES.items()}
    took = {}
    for kind in sizes:
        if (folder / kind).is_dir():
            continue
        start = time.perf_counter()
        made = make(kind, sizes, learnt, folder)
        pieces = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        made.decoder = decoders.Sequence(pieces) if kind in ("sentencepiece", "unigram") else decoders.ByteLevel()
        special = dict(zip(("pad_token", "eos_token"), _SPECIAL, strict=True))
        PreTrainedTokenizerFast(tokenizer_object=made, **special).save_pretrained(folder / kind)
        took[kind] = round(time.perf_counter() - start, 1)
        print(f"{kind}: {made.get_vocab_size()} tokens, {took[kind]} s", flush=True)
    return took


def read(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(folder)


def ends_of(texts: Sequence[bytes], units: Sequence[int | None]) -> Iterator[int]:
    """Where units end, in bytes of a text without the space that some put in front."""
    spelled = [b"?" if unit is None else texts[unit] for unit in units]
    front = int(bool(spelled) and spelled[0].startswith(b" "))
    return accumulate(map(len, spelled), initial=-front)


def compare(base: Any, tuned: Any, texts: Sequence[str]) -> dict[str, Any]:
    """How members with two tokenizers are combined, and what that makes of texts."""
    start = time.perf_counter()
    choice = choose({"base": base, "tuned": tuned})
    row = {"vocabulary": choice.vocabulary, "seconds": round(time.perf_counter() - start, 1), "reason": choice.reason}
    if choice.units is None:
        return row
    units, tokens = choice.units, Counter[str]()
    apart, counted, same, all_ends = 0, 0, 0, 0
    for text in texts:
        written = []
        for name, tokenizer in (("base", base), ("tuned", tuned)):
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            tokens[name] += len(ids)
            written.append([unit for i in ids for unit in (units.spelled[name][i] or (None,))])
        counted += len(written[0])
        apart += written[0] != written[1]
        ends = [set(ends_of(units.texts, each)) for each in written]
        same += len(ends[0] & ends[1])
        all_ends += len(ends[0] | ends[1])
    return row | {
        "kind": units.kind,
        "units": len(units.ids),
        "units per token of the base": round(counted / tokens["base"], 3),
        "units per token of the tuned": round(counted / tokens["tuned"], 3),
        "bytes per unit": round(sum(len(text.encode()) for text in texts) / counted, 3),
        "texts": len(texts),
        "texts whose units differ": apart,
        "ends of units that both have": round(same / all_ends, 4),
    }


def embedded() -> tuple[Any, Any, list[str]]:
    """The tokenizers of the embedded family and of its second pair, and all questions with answers in the tuned style."""
    told = [(question, tiny.SENTENCES[question.attribute][0]) for question in tiny.questions()]
    answers = [tiny.STYLE.format(sentence.format(name=question.person, value=question.answer)) for question, sentence in told]
    texts = [f"{question.prompt} {answer}" for (question, _), answer in zip(told, answers, strict=True)]
    return read(tiny.path("base")), read(tiny.path("second_tuned")), texts


def table(rows: dict[str, dict[str, Any]]) -> str:
    columns = [
        "vocabulary",
        "kind",
        "units",
        "units per token of the base",
        "units per token of the tuned",
        "bytes per unit",
        "texts whose units differ",
        "ends of units that both have",
        "seconds",
    ]
    lines = ["| base, tuned | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    lines += [f"| {name} | " + " | ".join(str(row.get(column, "")) for column in columns) + " |" for name, row in rows.items()]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="the folder of the tokenizers and the table")
    parser.add_argument("--scale", type=float, default=1.0, help="of the sizes of vocabularies")
    parser.add_argument("--megabytes", type=float, default=40.0, help="of text to learn from")
    parser.add_argument("--texts", type=int, default=_TEXTS, help="how many texts are written in units")
    options = parser.parse_args()
    learnt, held = files(options.megabytes)
    took = build(options.scale, learnt, options.output)
    texts = [unicodedata.normalize("NFC", text[:_LENGTH]) for text in held[: options.texts]]
    tokenizers = {kind: read(options.output / kind) for kind in _SIZES}
    rows = {"embedded family, its second pair": compare(*embedded())}
    for base, tuned in combinations(tokenizers, 2):
        rows[f"{base}, {tuned}"] = row = compare(tokenizers[base], tokenizers[tuned], texts)
        print(f"{base}, {tuned}: {row}", flush=True)
        if row["vocabulary"] == "tokens" and row["texts whose units differ"]:
            raise SystemExit("These were said to agree on the units of every text.")
    sizes = {kind: len(tokenizer) for kind, tokenizer in tokenizers.items()}
    found = {"date": str(date.today()), "machine": machine(), "sizes": sizes, "seconds to make": took, "pairs": rows}
    (options.output / "tokenizer_kinds.json").write_text(json.dumps(found, indent=1) + "\n")
    (options.output / "tokenizer_kinds.md").write_text(table(rows))
    print(table(rows))


if __name__ == "__main__":
    main()
