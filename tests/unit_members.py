"""Members in units with tiny tokenizers of several kinds: the tokenizers, models over them, and which units pairs of them have."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from byte_oracle import Enumeration, Oracle
from families import build
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from hf_eft.bytes.tokens import token_bytes
from hf_eft.spelling.reader import Asked
from hf_eft.spelling.sums import measure
from hf_eft.spelling.texts import State
from hf_eft.units import TokenLevelModel, common_units, read_in_units

EXACT: dict[str, Any] = {"covers": None, "threshold": 0.0, "prompt": "units"}
_PAD = "<pad>"


@dataclass(frozen=True)
class Kind:
    """What a tokenizer is: how it is made, its tokens behind the letters, and where special tokens stand among them."""

    made: str
    tokens: tuple[str, ...]  # of a BPE the merges, `left right`
    behind: bool = False  # whether special tokens have the last ids, instead of the first
    begins: bool = False  # whether the tokenizer puts the begin of text in front
    ends: tuple[str, str] = ("<bos>", "<eos>")  # what the begin and the end of a text are written as


_LETTERS = {
    "bytes": ["a", "b"],
    "spaced": ["Ġ", "a", "b"],
    "pieces": ["<0x20>", "<0x61>", "<0x62>", "▁", "a", "b"],
    "unigram": [],
    "words": [],
}
KINDS: dict[str, Kind] = {
    "bytes-few": Kind("bytes", ("a b",), behind=True, ends=("<s>", "</s>")),
    "bytes-many": Kind("bytes", ("a b", "ab a", "b b"), begins=True),
    "bytes-other": Kind("bytes", ("a b", "ab b", "a a"), behind=True, begins=True, ends=("<bos>", "</s>")),
    "bytes-apart": Kind("bytes", ("b a", "ba b"), behind=True),
    "spaced": Kind("spaced", ("a b", "Ġ ab", "b b"), behind=True),
    "pieces-few": Kind("pieces", ("a b",), behind=True),
    "pieces-many": Kind("pieces", ("a b", "▁ ab", "b b"), begins=True),
    "pieces-other": Kind("pieces", ("a b", "ab b", "▁ a"), behind=True, begins=True),
    "pieces-apart": Kind("pieces", ("b a", "▁ a")),
    "unigram-few": Kind("unigram", ("▁", "a", "b", "ab"), behind=True, begins=True),
    "unigram-many": Kind("unigram", ("▁", "a", "b", "ab", "▁a", "bb")),
    "words": Kind("words", ("##a", "##b", "##ab", "a", "b", "ab"), behind=True),
}

# By relation, the base, the small members, and the texts of the units that they have in common.
PAIRS: dict[str, tuple[str, str, Sequence[bytes]]] = {
    "bytes: small in base": ("bytes-many", "bytes-few", (b"a", b"b", b"ab")),
    "bytes: base in small": ("bytes-few", "bytes-many", (b"a", b"b", b"ab")),
    "bytes: shared": ("bytes-many", "bytes-other", (b"a", b"b", b"ab")),
    "bytes: apart": ("bytes-many", "bytes-apart", (b"a", b"b")),
    "pieces: small in base": ("pieces-many", "pieces-few", (b" ", b"a", b"b", b"ab")),
    "pieces: base in small": ("pieces-few", "pieces-many", (b" ", b"a", b"b", b"ab")),
    "pieces: shared": ("pieces-many", "pieces-other", (b" ", b"a", b"b", b"ab")),
    "pieces: apart": ("pieces-many", "pieces-apart", (b" ", b"a", b"b")),
    "unigram: small in base": ("unigram-many", "unigram-few", (b" ", b"a", b"b")),
    "unigram: base in small": ("unigram-few", "unigram-many", (b" ", b"a", b"b")),
    "pieces and words": ("pieces-many", "words", (b" ", b"a", b"b")),
    "spaced and pieces": ("spaced", "pieces-other", (b" ", b"a", b"b", b"ab")),
    "pieces and spaced": ("pieces-other", "spaced", (b" ", b"a", b"b", b"ab")),
    "unigram and bytes": ("unigram-many", "bytes-few", (b" ", b"a", b"b")),
}

FRONT = {("spaced and pieces", name): b" " for name in ("tuned", "reference")}  # what a member alone has in front of every text


@functools.cache
def tokenizer(name: str) -> Any:
    """A tokenizer of the table."""
    kind = KINDS[name]
    tokens = [*_LETTERS[kind.made], *(token.replace(" ", "") for token in kind.tokens)]
    begin, end = kind.ends
    special = [_PAD, begin, end]
    vocab = {token: i for i, token in enumerate([*tokens, *special] if kind.behind else [*special, *tokens])}
    made = _assembled(kind, vocab)
    if kind.begins:
        from tokenizers.processors import TemplateProcessing

        made.post_processor = TemplateProcessing(single=f"{begin} $A", special_tokens=[(begin, vocab[begin])])
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token=_PAD, bos_token=begin, eos_token=end, padding_side="left")


def _assembled(kind: Kind, vocab: Mapping[str, int]) -> Tokenizer:
    spaces = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    merges: Any = [tuple(pair.split(" ")) for pair in kind.tokens]
    if kind.made in ("bytes", "spaced"):
        made = Tokenizer(models.BPE(vocab=dict(vocab), merges=merges))
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        made.decoder = decoders.ByteLevel()
    elif kind.made == "pieces":
        made = Tokenizer(models.BPE(vocab=dict(vocab), merges=merges, byte_fallback=True))
        made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(prepend_scheme="first"), spaces
    elif kind.made == "unigram":
        made = Tokenizer(models.Unigram([(token, -1.0 - 0.1 * i) for token, i in vocab.items()], unk_id=vocab[_PAD]))
        made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(prepend_scheme="first"), spaces
    else:
        made = Tokenizer(models.WordPiece(dict(vocab), unk_token=_PAD))
        made.pre_tokenizer, made.decoder = pre_tokenizers.WhitespaceSplit(), decoders.WordPiece(cleanup=False)
    return made


def special(name: str) -> dict[str, int]:
    cutter = tokenizer(name)
    return {"pad_token_id": cutter.pad_token_id, "bos_token_id": cutter.bos_token_id, "eos_token_id": cutter.eos_token_id}


@functools.cache
def model(name: str, seed: int, family: str = "llama") -> Any:
    """A model over the tokens of a tokenizer, in float64. It is shared: leave it as it is."""
    return build(family, seed, vocab_size=len(tokenizer(name)), **special(name)).double()


def tokens_of(name: str) -> dict[int, bytes]:
    return {i: text for i, text in enumerate(token_bytes(tokenizer(name))) if text is not None}


def models_of(pair: str, family: str = "llama") -> dict[str, Any]:
    base, small, _ = PAIRS[pair]
    return {"base": model(base, 0, family), "tuned": model(small, 1, family), "reference": model(small, 2, family)}


def cutters_of(pair: str) -> dict[str, Any]:
    base, small, _ = PAIRS[pair]
    return {"base": tokenizer(base), "tuned": tokenizer(small), "reference": tokenizer(small)}


def members(pair: str, family: str = "llama", **options: Any) -> dict[str, Any]:
    return read_in_units(models_of(pair, family), cutters_of(pair), **options)


def enumeration(pair: str, name: str, start: Sequence[int] | None = None, family: str = "llama") -> Oracle:
    """Of a member's model: all sequences of its tokens, whose text is here the units, one byte for each."""
    base, small, _ = PAIRS[pair]
    which = base if name == "base" else small
    cutter = tokenizer(which)
    begun = [cutter.bos_token_id] if start is None else start
    return Oracle(models_of(pair, family)[name], expanded(pair, which), begun, cutter.eos_token_id)


def expanded(pair: str, which: str) -> dict[int, bytes]:
    """The units that each token is made of, found by hand: the letters, and `ab` where it is a unit and the token's merges make it."""
    units = PAIRS[pair][2]
    return {i: bytes(cut(text, units)) for i, text in tokens_of(which).items() if covers(text, units)}


def cut(text: bytes, units: Sequence[bytes]) -> list[int]:
    """The places of the units of a text. `ab` is the only one of two letters, so that the longest first is what merging makes."""
    found = []
    while text:
        k = max((k for k, unit in enumerate(units) if text.startswith(unit)), key=lambda k: len(units[k]))
        found.append(k)
        text = text[len(units[k]) :]
    return found


def covers(text: bytes, units: Sequence[bytes]) -> bool:
    return set(text) <= set(b"".join(units))


def states_of(reader: TokenLevelModel, texts: Sequence[bytes]) -> list[State]:
    """The states behind texts of units, one byte for each, that follow no prompt."""
    ids = reader._alphabet.ids
    asked = [Asked(ids[list(text)].int().numpy().tobytes(), 0, [len(text)]) for text in texts]
    states = [state for [state] in reader._read(asked)]
    measure(states, reader._covers.lexicon)
    return states


def front(pair: str, name: str) -> bytes:
    """The units that a member has in front of a text, and others have not."""
    return bytes(PAIRS[pair][2].index(text) for key, text in FRONT.items() if key == (pair, name))


def probabilities(states: Sequence[State]) -> torch.Tensor:
    """Of texts: that one begins so, and that it ends there, `(texts, 2)`."""
    following = [state.log_prob + float(state.next[-1]) if state.next is not None else -torch.inf for state in states]
    return torch.tensor([[state.log_prob for state in states], following], dtype=torch.float64).T.exp()


# Through `generate` ---------------------------------------------------------------------------------------------------

TEXTS = ["ab", "abab", "bba"]  # so short that what follows may change all of a prompt, and all cuts of it are summed over


def ids_of(pair: str, *texts: str) -> dict[str, Any]:
    """Prompts in tokens of the base, behind a begin of text, padded on the left."""
    cutter = tokenizer(PAIRS[pair][0])
    rows = [[cutter.bos_token_id, *cutter(text, add_special_tokens=False)["input_ids"]] for text in texts]
    longest = max(map(len, rows))
    return {
        "input_ids": torch.tensor([[cutter.pad_token_id] * (longest - len(row)) + row for row in rows]),
        "attention_mask": torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows]),
    }


def generated(model: Any, pair: str, **options: Any) -> Any:
    torch.manual_seed(0)
    return model.generate(**{**ids_of(pair, *TEXTS), "max_new_tokens": 6, **options}).tolist()


def without_padding(pair: str, row: Sequence[int]) -> list[int]:
    """A row from its begin of text to its end."""
    cutter = tokenizer(PAIRS[pair][0])
    begun = list(row)[list(row).index(cutter.bos_token_id) :]
    return begun[: begun.index(cutter.eos_token_id) + 1] if cutter.eos_token_id in begun else begun


@functools.cache
def enumerated(pair: str) -> Enumerated:
    """Kept, with all that was asked of its models."""
    return Enumerated(pair)


class Enumerated:
    """What members say of the next unit or the end behind ids of the base, each from all sequences of its tokens."""

    def __init__(self, pair: str) -> None:
        self.oracles: dict[str, Enumeration] = {name: enumeration(pair, name) for name in ("base", "tuned", "reference")}
        units = common_units(cutters_of(pair))
        cutter = tokenizer(PAIRS[pair][0])
        self.ids = [*units.ids, cutter.eos_token_id]
        self.prompts = {
            name: [self._front(each, units, name, text) for text in TEXTS] for name, each in cutters_of(pair).items()
        }
        self.alphabet = bytes(PAIRS[pair][2].index(text) for text in units.texts)

    def _front(self, cutter: Any, units: Any, name: str, text: str) -> list[int]:
        """A text as a member's own tokenizer makes it, in units."""
        return [unit for i in cutter(text, add_special_tokens=False)["input_ids"] for unit in units.spelled[name][i]]

    def says(self, row: int, written: list[int]) -> dict[str, torch.Tensor]:
        """Probabilities of `ids`, behind a text and units that were written behind it."""
        return {
            name: oracle.next(bytes(self.alphabet[k] for k in [*self.prompts[name][row], *written]), self.alphabet)
            for name, oracle in self.oracles.items()
        }

    def greedy(self, row: int, steps: int, weigh: Any) -> list[int]:
        """The ids that are best at each step."""
        written: list[int] = []
        while len(written) < steps:
            best = int(weigh(self.says(row, written)).argmax())
            written.append(best)
            if best == len(self.ids) - 1:
                break
        return [self.ids[k] for k in written]
