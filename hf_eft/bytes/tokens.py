"""Which bytes a token is."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from typing import Any

from transformers import ByT5Tokenizer

BYTES = 256
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
