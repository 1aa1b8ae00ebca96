"""The bytes of tokens, of any tokenizer that says what they are; and what cannot be read as bytes is refused."""

from __future__ import annotations

import pytest
import torch
from byte_members import generated, ids_of, members
from byte_oracle import VOCABULARIES, model, tokenizer
from transformers import QuantizedCache, StaticCache

from hf_eft import EFTForCausalLM, tiny
from hf_eft.bytes import ByteLevelModel
from hf_eft.bytes.tokens import ByteTokenizer, token_bytes

TEXTS = ["Hello", "Of course!  Two\n\nlines, 3500 a month.", "naïve Ω 日本 🙂", "a", "tab\tand\r\n"]


@pytest.mark.parametrize("which", ["family", "second"])
def test_bytes_of_tokens_make_up_the_text(which: str) -> None:
    cutter = tiny.load().tokenizer if which == "family" else tiny.load_second().tokenizer
    table = token_bytes(cutter)
    assert all(table[i] is None for i in cutter.all_special_ids)
    for text in TEXTS:
        spelled = b"".join(table[i] or b"" for i in cutter(text, add_special_tokens=False)["input_ids"])
        assert spelled == b" " + text.encode()


@pytest.mark.parametrize("kind", ["words", "wordpiece"])
def test_words_and_pieces_of_words(kind: str) -> None:
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    vocab = {"<eos>": 0, "play": 1, "##ing": 2, "is": 3, "[UNK]": 4}
    kinds = {"words": models.WordLevel(vocab, unk_token="[UNK]"), "wordpiece": models.WordPiece(vocab, unk_token="[UNK]")}
    made = Tokenizer(kinds[kind])
    made.decoder = decoders.WordPiece(cleanup=False) if kind == "wordpiece" else None
    table = token_bytes(PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<eos>", unk_token="[UNK]"))
    assert table == [None, b" play", b"ing" if kind == "wordpiece" else b" ##ing", b" is", None]


def test_bytes_of_the_byte_tokenizer_itself() -> None:
    table = token_bytes(ByteTokenizer())
    assert table[:3] == [None] * 3 and table[3:] == [bytes([byte]) for byte in range(256)]


def test_every_vocabulary_of_the_table_is_spelled_as_it_says() -> None:
    for name, tokens in VOCABULARIES.items():
        assert token_bytes(tokenizer(name)) == [None] * 3 + [text for _, text in tokens]


def test_a_chat_template_is_the_members_own() -> None:
    cutter = tiny.load().tokenizer
    chat = [{"role": "user", "content": "Who?"}]
    made = ByteTokenizer(cutter)
    ids = made.apply_chat_template(chat, return_tensors="pt")["input_ids"]
    assert made.decode(ids[0]) == cutter.apply_chat_template(chat, tokenize=False) == "<bos>Question: Who?\nAnswer:"


# Refused --------------------------------------------------------------------------------------------------------------


class Unknown:
    """A tokenizer that says nothing of its tokens."""

    all_special_ids: tuple[int, ...] = ()

    def get_vocab(self) -> dict[str, int]:
        return {"a": 0}


def test_refusals() -> None:
    from tokenizers import decoders

    small, cutter = model("nested", 1), tokenizer("nested")
    reader = ByteLevelModel(small, cutter)
    inputs = ids_of(b"ab")
    with pytest.raises(ValueError, match="cache that grows, got a StaticCache"):
        reader(**inputs, cache=StaticCache(config=reader.config, max_cache_len=8))
    with pytest.raises(ValueError, match=r"member 'base' cannot read on.*cache that grows, got a EFTStaticCache"):
        generated(EFTForCausalLM.from_models(**members()), cache_implementation="static")
    with pytest.raises(ValueError, match="cache that grows"):
        reader(**inputs, cache=QuantizedCache.__new__(QuantizedCache))
    with pytest.raises(ValueError, match="no embeddings"):
        reader(inputs_embeds=torch.zeros(1, 2, 1))
    with pytest.raises(ValueError, match="for every id"):
        reader(inputs["input_ids"], attention_mask=torch.ones(1, 5))
    with pytest.raises(ValueError, match="has padding in it"):
        reader(torch.tensor([[0, 100, 101]]), logits_to_keep=1)
    for options, said in (
        ({"covers": 0}, "1 or more"),
        ({"threshold": 1.0}, r"\[0, 1\)"),
        ({"prompt": "words"}, "tokens, bytes"),
    ):
        with pytest.raises(ValueError, match=said):
            ByteLevelModel(small, cutter, **options)
    with pytest.raises(NotImplementedError, match="a view"):
        reader.save_pretrained("nowhere")
    with pytest.raises(ValueError, match=r"is a ByteLevelModel.* could not bring it back"):
        EFTForCausalLM.from_models(**members()).save_pretrained("nowhere")
    with pytest.raises(ValueError, match="must be 'tokens', 'bytes', 'auto' or None"):
        EFTForCausalLM.from_models(small, tuned=small, reference=small, vocabulary="letters")
    with pytest.raises(ValueError, match="but 'tuned' has none"):
        EFTForCausalLM.from_models(small, tuned=small, reference=small, vocabulary="bytes", tokenizers={"base": cutter})
    with pytest.raises(ValueError, match=r"vocabulary='auto'"):
        EFTForCausalLM.from_models(small, tuned=small, tokenizers={"base": cutter, "tuned": tokenizer("overlapping")})
    with pytest.raises(ValueError, match="tokens of a Unknown are not known"):
        token_bytes(Unknown())
    strange = tokenizer("nested")
    strange.backend_tokenizer.decoder = decoders.CTC()
    with pytest.raises(ValueError, match=r"The member 'base' cannot be read as bytes.* decodes by CTC"):
        EFTForCausalLM.from_models(small, tuned=small, vocabulary="bytes", tokenizers=dict.fromkeys(("base", "tuned"), strange))
    headless = tokenizer("nested")
    headless.bos_token = headless.eos_token = None
    with pytest.raises(ValueError, match="no begin and no end"):
        ByteLevelModel(small, headless)(**inputs)
