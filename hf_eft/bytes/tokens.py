"""Which bytes a token is, and the tokens of a vocabulary in the order of their bytes."""

from __future__ import annotations

import functools
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from transformers import ByT5Tokenizer

BYTES = 256
_LEAST = -1e300  # as good as no probability
_SENTENCEPIECE = {"Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"}


class ByteTokenizer(ByT5Tokenizer):
    r"""
    The tokenizer of byte-level members: transformers' [`ByT5Tokenizer`] without sentinels, for generation. It adds no end of text, pads on
    the left, and leaves the text of special tokens to the members' own tokenizers.

    Args:
        member (`PreTrainedTokenizerBase`, *optional*): The tokenizer whose chat template is used.

    Example:

    ```python
    >>> from hf_eft.bytes.tokens import ByteTokenizer

    >>> ByteTokenizer()("é")["input_ids"]
    [198, 172]
    ```
    """

    def __init__(self, member: Any = None, **kwargs: Any) -> None:
        super().__init__(**{"extra_ids": 0, "padding_side": "left", "split_special_tokens": True, **kwargs})
        self._member = member
        self.chat_template = getattr(member, "chat_template", None)

    def build_inputs_with_special_tokens(self, token_ids_0: list[int], token_ids_1: list[int] | None = None) -> list[int]:
        return token_ids_0 + (token_ids_1 or [])

    def apply_chat_template(self, conversation: Any, *args: Any, tokenize: bool = True, **kwargs: Any) -> Any:
        """The text that the member's own tokenizer makes of a conversation, in bytes; see transformers for the options."""
        if self._member is None:
            raise ValueError("This tokenizer has no chat template: make it from a member's, `ByteTokenizer(tokenizer)`.")
        shape = {key: kwargs.pop(key) for key in ("padding", "return_tensors") if key in kwargs}
        as_dict = kwargs.pop("return_dict", True)
        text = self._member.apply_chat_template(conversation, *args, tokenize=False, **kwargs)
        if not tokenize:
            return text
        made = self(text, **shape)
        return made if as_dict else made["input_ids"]


def token_bytes(tokenizer: Any) -> list[bytes | None]:
    r"""
    The bytes that each token puts into a text, in a text's middle.

    Byte-level BPE, SentencePiece's conventions (`▁`, bytes as a fallback), WordPiece and plain words are known by the tokenizer's decoder.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): A tokenizer of the `tokenizers` library, or a [`ByT5Tokenizer`].

    Returns:
        `list[bytes | None]`: By id; `None` for special tokens and for ids without a token, which are no text.

    Raises:
        `ValueError`: If the decoder does something else to tokens, naming it.
    """
    vocabulary = tokenizer.get_vocab()
    added = getattr(tokenizer, "added_tokens_decoder", {})
    special = {*tokenizer.all_special_ids, *(i for i, token in added.items() if token.special)}
    if isinstance(tokenizer, ByT5Tokenizer):
        spell = _one_byte
    elif hasattr(tokenizer, "backend_tokenizer"):
        decoder = tokenizer.backend_tokenizer.decoder
        spell = _speller(decoder and json.loads(decoder.__getstate__()))  # the state is what the file has of it
    else:
        raise ValueError(
            f"The bytes of the tokens of a {type(tokenizer).__name__} are not known: only tokenizers of the `tokenizers` library say how "
            "they decode. Load the fast tokenizer, or give the bytes yourself: `token_bytes=`."
        )
    table: list[bytes | None] = [None] * (max(vocabulary.values()) + 1)
    for token, i in vocabulary.items():
        if i not in special:
            table[i] = spell(token)
    return table


def _speller(decoder: Any) -> Any:
    """What makes bytes of a token's name."""
    if decoder is None:
        return lambda token: f" {token}".encode()  # tokens without a decoder are joined by spaces
    steps = decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
    kinds = [step["type"] for step in steps]
    if "ByteLevel" in kinds and set(kinds) <= {"ByteLevel", "Fuse"}:
        return _byte_level
    if kinds == ["WordPiece"] and not steps[0]["cleanup"]:
        prefix = steps[0]["prefix"]
        return lambda token: (token.removeprefix(prefix) if token.startswith(prefix) else f" {token}").encode()
    strips_all = "Strip" in kinds and "Fuse" not in kinds[: kinds.index("Strip")]
    if (
        set(kinds) <= _SENTENCEPIECE
        and not strips_all
        and all("String" in step.get("pattern", {"String": ""}) for step in steps)
    ):
        replaced = [(step["pattern"]["String"], step["content"]) for step in steps if step["type"] == "Replace"]
        replaced += [(step["replacement"], " ") for step in steps if step["type"] == "Metaspace"]
        return functools.partial(_sentencepiece, replaced=replaced, fallback="ByteFallback" in kinds)
    raise ValueError(
        f"The bytes of tokens are not known for a tokenizer that decodes by {' + '.join(kinds)}. Those of byte-level BPE, SentencePiece's "
        "conventions, WordPiece without tidying up and plain words are; otherwise give them yourself: `token_bytes=`."
    )


def _one_byte(token: str) -> bytes:
    return bytes([ord(token)])


@functools.cache
def _byte_of() -> dict[str, int]:
    """The byte that each letter of a byte-level BPE stands for: printable ones for themselves, the others in order from U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(BYTES) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


def _byte_level(token: str) -> bytes:
    known = _byte_of()
    # An added token that is not written in that alphabet stands for its own text.
    return bytes(known[letter] for letter in token) if all(letter in known for letter in token) else token.encode()


def _sentencepiece(token: str, replaced: Sequence[tuple[str, str]], fallback: bool) -> bytes:
    if fallback and len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return bytes([int(token[3:5], 16)])
    for pattern, content in replaced:
        token = token.replace(pattern, content)
    return token.encode()


@dataclass(eq=False)
class Node:
    r"""
    The tokens that begin with some bytes: `low:open` are these bytes, `open:high` go on. `next` has the next byte of each of the latter,
    `children` the node of each next byte.
    """

    depth: int
    low: int
    open: int
    high: int
    texts: Sequence[bytes]

    @functools.cached_property
    def next(self) -> torch.Tensor:
        return torch.tensor([text[self.depth] for text in self.texts[self.open : self.high]], dtype=torch.long)

    @functools.cached_property
    def children(self) -> dict[int, Node]:
        children, start = {}, self.open
        for byte, group in groupby(self.next.tolist()):
            high = start + sum(1 for _ in group)
            opened = start
            while opened < high and len(self.texts[opened]) == self.depth + 1:
                opened += 1
            children[byte] = Node(self.depth + 1, start, opened, high, self.texts)
            start = high
        return children


def masses(of: Sequence[tuple[torch.Tensor, Node]]) -> torch.Tensor:
    """For log-probs of all tokens in order, `(tokens,)`, and a node, the log-probability of each next byte, `(pairs, 256)`, float64."""
    values = torch.cat([table[node.open : node.high] for table, node in of]).double()
    pairs = torch.arange(len(of)).repeat_interleave(torch.tensor([node.high - node.open for _, node in of]))
    places = pairs * BYTES + torch.cat([node.next for _, node in of])
    return grouped_log_sum(values, places, len(of) * BYTES).view(len(of), BYTES)


def grouped_log_sum(values: torch.Tensor, groups: torch.Tensor, count: int) -> torch.Tensor:
    """The log of the sums of what values, `(n, ...)`, are the logs of, by group, `(n,)`: `(count, ...)`."""
    where = groups.view(-1, *[1] * (values.dim() - 1)).expand_as(values)
    top = values.new_full((count, *values.shape[1:]), -torch.inf).scatter_reduce_(0, where, values, "amax")
    top.clamp_(min=_LEAST)  # where there is none, not the difference of two infinities
    return torch.zeros_like(top).index_add_(0, groups, (values - top[groups]).exp()).log() + top


class Lexicon:
    r"""
    The tokens of a model that may follow in a text, in the order of their bytes.

    Args:
        tokens (`Sequence[bytes | None]`): The bytes of each token; those with none are never generated.
        ends (`Collection[int]`): The ids that end a text.
        width (`int`): How many logits the model returns.
    """

    def __init__(self, tokens: Sequence[bytes | None], ends: Collection[int], width: int) -> None:
        texts = sorted((text, i) for i, text in enumerate(tokens[:width]) if text and i not in ends)
        if not texts:
            raise ValueError("No token of the tokenizer is text that the model could write.")
        self.ids = torch.tensor([i for _, i in texts])  # (tokens,)
        self.ends = torch.tensor(sorted(i for i in ends if i < width), dtype=torch.long)
        self.root = Node(0, 0, 0, len(texts), [text for text, _ in texts])
        self._per_byte = self.root.next.bincount(minlength=BYTES)  # (256,): how many tokens begin with it

    def read(self, logits: torch.Tensor) -> tuple[torch.Tensor, list[float]]:
        """
        Log-probs of the tokens in order, `(rows, tokens)`, and of the end of text, of each row, from logits, `(rows, vocab)`; nothing else
        can follow.
        """
        ends = logits[:, self.ends].float()
        tokens = logits[:, self.ids].float()
        total = torch.cat([tokens, ends], dim=-1).logsumexp(-1, keepdim=True)
        over = ends.logsumexp(-1) - total[:, 0] if ends.shape[-1] else torch.full((len(logits),), -torch.inf)
        return tokens - total, over.tolist()

    def first(self, tables: torch.Tensor) -> torch.Tensor:
        """The log-probability of each byte as a token's first, `(rows, 256)`, float64, from log-probs of the tokens, `(rows, tokens)`."""
        values = tables.double()
        top = values.amax(-1, keepdim=True).clamp(min=_LEAST)
        per_byte = self._per_byte.expand(len(tables), -1).contiguous()
        return torch.segment_reduce((values - top).exp(), "sum", lengths=per_byte, axis=1).log() + top
