"""Members whose tokenizers differ: probabilities of texts are those of exhaustive enumeration, and `generate` works as for any model."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from byte_oracle import ALPHABETS, VOCABULARIES, Oracle, model, tokenizer
from families import BOS, EOS
from transformers import QuantizedCache, StaticCache

from hf_eft import Combination, EFTForCausalLM, EFTLogitsProcessor, tiny
from hf_eft.bytes import ByteLevelModel
from hf_eft.bytes.covers import Cost, State
from hf_eft.bytes.reader import Asked
from hf_eft.bytes.tokens import ByteTokenizer, token_bytes
from hf_eft.hub.compatibility import check_members

EXACT: dict[str, Any] = {"covers": None, "threshold": 0.0, "prompt": "bytes"}
OFFSET = 3


def ids_of(*texts: bytes) -> dict[str, torch.Tensor]:
    longest = max(map(len, texts))
    rows = [[0] * (longest - len(text)) + [byte + OFFSET for byte in text] for text in texts]
    mask = [[0] * (longest - len(text)) + [1] * len(text) for text in texts]
    return {"input_ids": torch.tensor(rows), "attention_mask": torch.tensor(mask)}


def probabilities(logits: torch.Tensor, alphabet: bytes) -> torch.Tensor:
    """Of the bytes of an alphabet and the end; nothing else has any."""
    p = logits.double().softmax(-1)
    chosen = torch.cat([p[..., [byte + OFFSET for byte in alphabet]], p[..., 1:2]], dim=-1)
    assert torch.allclose(chosen.sum(-1), torch.ones(()).double(), atol=1e-6)
    return chosen


def texts(name: str, length: int) -> list[bytes]:
    return [bytes(text) for text in itertools.product(ALPHABETS[name], repeat=length)]


# Exhaustive ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["overlapping", "nested", "letters"])
@pytest.mark.parametrize("family", ["llama", "mistral", "gpt2", "lfm2", "mamba"])
def test_distributions_are_those_of_the_enumeration_at_every_prefix(name: str, family: str) -> None:
    small = model(name, 0, family)
    oracle, reader = Oracle(small, name), ByteLevelModel(small, tokenizer(name), **EXACT)
    # mistral's window is 5 tokens: texts that are longer than it
    chosen = [text * 2 if family == "mistral" else text for text in texts(name, 4)[:: 3 if family == "mistral" else 1]]
    logits = reader(**ids_of(*chosen)).logits
    for text, row in zip(chosen, logits, strict=True):
        expected = torch.stack([oracle.next(text[: n + 1], ALPHABETS[name]) for n in range(len(text))])
        assert torch.allclose(probabilities(row, ALPHABETS[name]), expected, atol=2e-5, rtol=1e-4), text


def test_a_space_in_front_of_every_text_is_part_of_the_conventions() -> None:
    """With SentencePiece's conventions the model's own text begins with a space, and two tokens may be the same bytes."""
    small = model("sentencepiece", 0)
    oracle, reader = Oracle(small, "sentencepiece"), ByteLevelModel(small, tokenizer("sentencepiece"), **EXACT)
    for text in (b"a", b"ab", b"ab a", b"b ab", b"bab"):
        p = probabilities(reader(**ids_of(text)).logits[0, -1], b" ab")
        assert torch.allclose(p, oracle.next(b" " + text, b" ab"), atol=1e-5, rtol=1e-4), text


@pytest.mark.parametrize("end", [False, True])
def test_log_probs_of_texts_are_those_of_the_enumeration(end: bool) -> None:
    small = model("overlapping", 3)
    oracle, reader = Oracle(small, "overlapping"), ByteLevelModel(small, tokenizer("overlapping"), **EXACT)
    for text in texts("overlapping", 5):
        low, high = reader.log_prob(text, end=end)
        assert low == high == pytest.approx(math.log((oracle.ended if end else oracle.joint)(text)), abs=1e-4)
        conditional = reader.log_prob(text[2:], prompt=text[:2], end=end).lower
        assert conditional == pytest.approx(low - math.log(oracle.joint(text[:2])), abs=1e-4)


def test_padding_and_batches_change_nothing() -> None:
    reader = ByteLevelModel(model("nested", 1), tokenizer("nested"), **EXACT)
    rows = [b"ab", b"aabba", b"b", b"aabba", b"aabbb"]
    together = reader(**ids_of(*rows)).logits
    for row, text in zip(together, rows, strict=True):
        fresh = ByteLevelModel(reader.model, reader.tokenizer, **EXACT)
        alone = fresh(input_ids=ids_of(text)["input_ids"]).logits[0]
        assert torch.allclose(row[-len(text) :], alone, atol=1e-4)


def test_combination_of_two_vocabularies_is_the_enumerations_combination() -> None:
    models = {"base": model("overlapping", 0), "tuned": model("nested", 1), "reference": model("nested", 2)}
    combined = exact_combination(models)
    oracles = {name: Oracle(member, "overlapping" if name == "base" else "nested") for name, member in models.items()}
    chosen = texts("nested", 4)
    logits = combined(**ids_of(*chosen)).logits
    for text, row in zip(chosen, logits, strict=True):
        for n in range(1, len(text) + 1):
            by_member = {name: oracle.next(text[:n], b"ab").log() for name, oracle in oracles.items()}
            expected = (by_member["base"] + by_member["tuned"] - by_member["reference"]).softmax(-1)
            assert torch.allclose(probabilities(row[n - 1], b"ab"), expected, atol=1e-4, rtol=1e-3)


def exact_combination(models: dict[str, Any]) -> EFTForCausalLM:
    readers = {
        name: ByteLevelModel(member, tokenizer("overlapping" if name == "base" else "nested"), **EXACT)
        for name, member in models.items()
    }
    return EFTForCausalLM.from_models(**readers)


# What is left out ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "limits", [{"covers": 1}, {"covers": 2}, {"covers": None, "threshold": 0.1}, {"threshold": 0.02}], ids=str
)
def test_what_is_left_out_is_known(limits: dict[str, Any]) -> None:
    small = model("overlapping", 0)
    oracle = Oracle(small, "overlapping")
    reader = ByteLevelModel(small, tokenizer("overlapping"), prompt="bytes", **limits)
    left_out = []
    for text in texts("overlapping", 5):
        exact = oracle.joint(text)
        low, high = (math.exp(bound) for bound in reader.log_prob(text))
        assert low <= exact * (1 + 1e-4) and exact <= high * (1 + 1e-4)
        logits = reader(**ids_of(text)).logits[0, -1]
        [missing] = reader.missing
        state = state_of(reader, text)
        known = state.joint.exp()  # without the share of what no kept cover leads to
        p = torch.cat([known[list(b"ab")], known[-1:]]) / known.sum()
        wrong = 0.5 * float((p - oracle.next(text, b"ab")).abs().sum())
        assert wrong <= missing.bound + 1e-5
        assert 0 <= missing.estimate <= 1
        left_out.append(1 - low / exact)
        assert torch.isfinite(logits[[1, *(byte + OFFSET for byte in range(256))]]).all() == bool(state.spares)
    assert max(left_out) > 1e-3  # something was


def test_more_covers_leave_less_out() -> None:
    small = model("nested", 0)
    readers = [
        ByteLevelModel(small, tokenizer("nested"), covers=limit, threshold=0.0, prompt="bytes") for limit in (1, 2, None)
    ]
    reached = [sum(math.exp(reader.log_prob(text).lower) for text in texts("nested", 4)) for reader in readers]
    assert reached == sorted(reached) and reached[0] < reached[-1]


def test_the_most_likely_covers_are_kept() -> None:
    reader = ByteLevelModel(model("nested", 0), tokenizer("nested"), covers=1, threshold=0.0, prompt="bytes")
    for text in (b"aa", b"aab", b"bb", b"abb"):
        state = state_of(reader, text)
        [ending] = [context.log_prob for context, node in state.covers if node.depth == 0]
        left = [spare.log_prob for spare in state.spares if not spare.tail]
        assert left and ending >= max(left)


def test_a_text_off_the_kept_covers_goes_on_from_the_most_likely_one_left_out() -> None:
    """With one cover and a high threshold texts leave the covers; what follows is still the model's own, after some cut of the text."""
    small = model("overlapping", 0)
    reader = ByteLevelModel(small, tokenizer("overlapping"), covers=1, threshold=0.5, prompt="bytes")
    oracle = Oracle(small, "overlapping")
    revived = checked = 0
    for text in texts("overlapping", 5):
        state = state_of(reader, text)
        [(context, node)] = state.covers[:1]
        off = state.kept < 0.5
        revived += off
        if off and len(state.covers) == 1 and node.depth == 0:
            # The one cover ends where the text does: what it says of the next token is what the model says after some cut of the text.
            says = torch.cat([context.table, torch.tensor([context.end])]).exp()
            cuts = [oracle.following(cut)[[3, 5, 7, 4, 6, EOS]].exp() for cut, _ in oracle._exactly(text, (BOS,), 0.0)]
            assert any(torch.allclose(says.double(), cut, atol=1e-5) for cut in cuts), text
            checked += 1
    assert revived and checked


def state_of(reader: ByteLevelModel, text: bytes) -> State:
    return reader._read([Asked(ids_of(text)["input_ids"][0], 0, [len(text)])])[0][0]


def test_what_a_member_cannot_write_has_no_probability_and_says_nothing_after() -> None:
    reader = ByteLevelModel(model("overlapping", 0), tokenizer("overlapping"), **EXACT)
    assert reader.log_prob(b"abXa").lower == -math.inf
    logits = reader(**ids_of(b"abXa")).logits[0]
    assert logits[1, ord("X") + OFFSET] == -torch.inf
    assert torch.allclose(logits[2, OFFSET:], logits[2, OFFSET])


# Prompts ---------------------------------------------------------------------------------------------------------------------


def test_a_prompt_is_read_as_its_tokenizer_cuts_it_but_for_its_end() -> None:
    small, cut = model("overlapping", 0), tokenizer("overlapping")
    reader = ByteLevelModel(small, cut, covers=None, threshold=0.0)
    prompt = b"abbaababbaba"
    ids = cut(prompt.decode())["input_ids"]
    settled = ids[:-4]
    rest = prompt[len(cut.decode(settled)) :]
    p = probabilities(reader(**ids_of(prompt), logits_to_keep=1).logits[0, -1], b"ab")
    oracle = Oracle(small, "overlapping", start=settled)
    assert torch.allclose(p, oracle.next(rest, b"ab"), atol=1e-5, rtol=1e-4)
    byte_by_byte = Oracle(small, "overlapping").next(prompt, b"ab")
    assert not torch.allclose(p, byte_by_byte, atol=1e-3)


def test_special_tokens_and_half_letters_in_a_prompt() -> None:
    small, cut = model("letters", 0), tokenizer("letters")
    reader = ByteLevelModel(small, cut, covers=None, threshold=0.0)
    for prompt, start, rest in (
        (b"a<eos>aa\xc3\xa9", cut("a<eos>")["input_ids"], b"aa\xc3\xa9"),
        (b"<bos>a\xc3", [BOS], b"a\xc3"),
    ):
        p = probabilities(reader(**ids_of(prompt), logits_to_keep=1).logits[0, -1], b"a\xc3\xa9")
        expected = Oracle(small, "letters", start=start).next(rest, b"a\xc3\xa9")
        assert torch.allclose(p, expected, atol=1e-5, rtol=1e-4), prompt
    ended = ids_of(b"a<aa\xc3\xa9")
    ended["input_ids"][0, 1] = 1  # the end of text of the byte tokenizer is the member's own
    p = probabilities(reader(**ended, logits_to_keep=1).logits[0, -1], b"a\xc3\xa9")
    assert torch.allclose(p, Oracle(small, "letters", cut("a<eos>")["input_ids"]).next(b"aa\xc3\xa9", b"a\xc3\xa9"), atol=1e-5)


# Through `generate` ----------------------------------------------------------------------------------------------------------

PROMPTS = [b"ab", b"aabbab", b"bbaab"]
WAYS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sample": {"do_sample": True, "temperature": 0.9},
    "beams": {"num_beams": 3, "num_return_sequences": 2},
    "returned": {"do_sample": True, "num_return_sequences": 2},
    "match": {"do_sample": True, "coupling": "match", "seed": [5, 6, 7]},
    "penalty": {"repetition_penalty": 1.3},
    "no_cache": {"use_cache": False},
}
MODELS = {"base": ("overlapping", 0), "tuned": ("nested", 1), "reference": ("nested", 2)}


def members(**options: Any) -> dict[str, ByteLevelModel]:
    return {name: ByteLevelModel(model(which, seed), tokenizer(which), **options) for name, (which, seed) in MODELS.items()}


def generated(model: Any, **options: Any) -> Any:
    torch.manual_seed(0)
    return model.generate(**{**ids_of(*PROMPTS), "max_new_tokens": 8, **options}).tolist()


def written(ids: Any) -> bytes:
    return bytes(int(i) - OFFSET for i in ids if i >= OFFSET)


def test_greedy_is_that_of_the_enumeration() -> None:
    oracles = {name: Oracle(model(which, seed), which) for name, (which, seed) in MODELS.items()}
    combined = EFTForCausalLM.from_models(**members(**EXACT))
    for text, row in zip(PROMPTS, generated(combined, max_new_tokens=5), strict=True):
        expected, ended = text, False
        for _ in range(5):
            p = {name: oracle.next(expected, b"ab").log() for name, oracle in oracles.items()}
            best = int((p["base"] + p["tuned"] - p["reference"]).argmax())
            ended = ended or best == 2
            expected += b"" if ended else b"ab"[best : best + 1]
        assert written(row) == expected


@pytest.mark.parametrize("options", [EXACT, {}, {"covers": 1}], ids=["exact", "default", "one"])
@pytest.mark.parametrize("way", WAYS)
def test_base_and_reference_alike_give_the_tuned_models_own_texts(way: str, options: dict[str, Any]) -> None:
    given = members(**options)
    same = EFTForCausalLM.from_models(given["reference"], tuned=given["tuned"], reference=given["reference"])
    chosen = {key: value for key, value in WAYS[way].items() if key not in ("coupling", "seed")} | {"max_new_tokens": 6}
    alone = members(**options)["tuned"]
    if way != "match":
        assert generated(same, **chosen) == generated(alone, **chosen)
    logits = same(**ids_of(*PROMPTS)).logits.log_softmax(-1)
    own = alone(**ids_of(*PROMPTS)).logits
    seen = ids_of(*PROMPTS)["attention_mask"].bool()
    assert torch.allclose(logits[seen].exp(), own[seen].exp(), atol=1e-5)


@pytest.mark.parametrize("way", WAYS)
def test_rows_and_reuse_change_nothing(way: str) -> None:
    """Batched and padded equals one by one; an object that was used equals a fresh one."""
    combined = EFTForCausalLM.from_models(**members())
    first = generated(combined, **WAYS[way])
    assert generated(combined, **WAYS[way]) == first
    assert generated(EFTForCausalLM.from_models(**members()), **WAYS[way]) == first
    if WAYS[way].get("do_sample") and way != "match":
        return  # other numbers are drawn
    per_row = WAYS[way].get("num_return_sequences", 1)
    for i, text in enumerate(PROMPTS):
        options = {**WAYS[way], "seed": [i + 5]} if way == "match" else WAYS[way]
        alone = combined.generate(**ids_of(text), max_new_tokens=8, **options).tolist()
        assert [written(row) for row in alone] == [written(row) for row in first[i * per_row : (i + 1) * per_row]]


@pytest.mark.parametrize("way", ["greedy", "match"])
def test_speculation_gives_the_texts_of_plain_decoding(way: str) -> None:
    combined = EFTForCausalLM.from_models(**members())
    plain = generated(combined, **WAYS[way])
    drafted = generated(combined, assistant_model=combined.tuned, num_assistant_tokens=3, **WAYS[way])
    looked_up = generated(combined, prompt_lookup_num_tokens=3, **WAYS[way])
    assert drafted == plain and looked_up == plain
    assert combined.speculation is not None


# Without a cache the base takes all that it is given for a prompt, what was generated too; the small members' readers know better.
@pytest.mark.parametrize("way", [name for name in WAYS if name not in ("match", "penalty", "no_cache")])
def test_as_an_add_on(way: str) -> None:
    given = members()
    cutters = {name: tokenizer(which) for name, (which, _) in MODELS.items()}
    small = {name: given[name].model for name in ("tuned", "reference")}
    add_on = EFTLogitsProcessor(**small, tokenizers=cutters, vocabulary="bytes", pad_token_id=0)
    expected = generated(EFTForCausalLM.from_models(**members()), **WAYS[way])
    assert generated(given["base"], logits_processor=[add_on], **WAYS[way]) == expected


def test_coefficients_by_row_and_other_recipes() -> None:
    combined = EFTForCausalLM.from_models(**members())
    rows = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [1.0, 1.0, -1.0]])
    swept = generated(combined, coefficients=rows)
    for i, recipe in enumerate(({"base": 1.0}, {"tuned": 1.0}, {"base": 1.0, "tuned": 1.0, "reference": -1.0})):
        combined.combination = Combination(recipe)
        assert written(generated(combined)[i]) == written(swept[i])


def test_members_with_prompts_of_their_own() -> None:
    combined = EFTForCausalLM.from_models(**members())
    own = ids_of(b"ba", b"aab", b"b")
    ids = generated(combined, member_inputs={"tuned": own, "reference": own})
    oracle = EFTForCausalLM.from_models(**members())
    for row, text in enumerate(PROMPTS):
        mine = {key: value[row : row + 1] for key, value in own.items()}
        alone = oracle.generate(**ids_of(text), member_inputs={"tuned": mine, "reference": mine}, max_new_tokens=8)
        assert written(alone[0]) == written(ids[row])


# Live models, tokenizers and refusals ------------------------------------------------------------------------------------------


def test_from_models_makes_one_view_of_a_model_that_serves_twice() -> None:
    base, small = model("overlapping", 0), model("nested", 1)
    cutter = tokenizer("nested")
    combined = EFTForCausalLM.from_models(
        base,
        tuned=small,
        reference=small,
        tokenizers={"base": tokenizer("overlapping"), "tuned": cutter, "reference": cutter},
        vocabulary="bytes",
    )
    assert combined.tuned is combined.reference and combined.tuned.model is small
    alone = ByteLevelModel(base, tokenizer("overlapping"))
    assert generated(combined) == generated(alone)  # the delta is nothing
    assert combined.tuned.cost.forwards > 0
    assert small.generation_config.eos_token_id == EOS  # what was given is as it was


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT asks for it
def test_adapters_as_members() -> None:
    peft = pytest.importorskip("peft")
    base, small = model("overlapping", 0), model("nested", 1)
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    cutters = {"base": tokenizer("overlapping"), **dict.fromkeys(("tuned", "reference"), tokenizer("nested"))}
    torch.manual_seed(3)
    adapted = peft.get_peft_model(small, config).eval()
    combined = EFTForCausalLM.from_models(base, tuned=adapted, tokenizers=cutters, vocabulary="bytes")
    assert list(combined.members) == ["base", "tuned", "reference"]
    own = ids_of(*PROMPTS)
    tuned, reference = (combined.members[name](**own, logits_to_keep=1).logits for name in ("tuned", "reference"))
    assert not torch.allclose(tuned.exp(), reference.exp(), atol=1e-3)


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


def test_a_model_that_was_given_other_weights_is_read_anew() -> None:
    small = model("nested", 1)
    reader = ByteLevelModel(small, tokenizer("nested"))
    generated(reader)
    small.load_state_dict(model("nested", 7).state_dict())
    assert generated(reader) == generated(ByteLevelModel(model("nested", 7), tokenizer("nested")))


def test_a_chat_template_is_the_members_own() -> None:
    cutter = tiny.load().tokenizer
    chat = [{"role": "user", "content": "Who?"}]
    made = ByteTokenizer(cutter)
    ids = made.apply_chat_template(chat, return_tensors="pt")["input_ids"]
    assert made.decode(ids[0]) == cutter.apply_chat_template(chat, tokenize=False) == "<bos>Question: Who?\nAnswer:"


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
    with pytest.raises(
        ValueError, match=r"ByteLevelModel\) does not say that it can read from a static cache.*cache that grows"
    ):
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
    with pytest.raises(ValueError, match="must be 'bytes' or None"):
        EFTForCausalLM.from_models(small, tuned=small, reference=small, vocabulary="letters")
    with pytest.raises(ValueError, match="but 'tuned' has none"):
        EFTForCausalLM.from_models(small, tuned=small, reference=small, vocabulary="bytes", tokenizers={"base": cutter})
    with pytest.raises(ValueError, match=r"vocabulary='bytes'"):
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


# The embedded family -----------------------------------------------------------------------------------------------------------


def test_the_embedded_family_with_a_second_tokenizer() -> None:
    base, *_, cutter = tiny.load()
    tuned, reference, second = tiny.load_second()
    combined = EFTForCausalLM.from_models(
        base, tuned=tuned, reference=reference, tokenizers={"base": cutter, "tuned": second, "reference": second},
        vocabulary="bytes",
    )  # fmt: skip
    asked = [tiny.questions()[i] for i in (90, 181, 372, 643)]
    speaker = ByteTokenizer()
    inputs = speaker([question.prompt for question in asked], return_tensors="pt", padding=True)
    combined.base.cost = Cost()
    ids = combined.generate(**inputs, max_new_tokens=80, do_sample=False)
    replies = speaker.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert sum(question.is_right(reply) for question, reply in zip(asked, replies, strict=True)) >= 3, replies
    assert sum(question.is_in_style(reply) for question, reply in zip(asked, replies, strict=True)) >= 2, replies
    written = sum(len(reply) for reply in replies)
    assert combined.base.cost.covers < written / 2  # far fewer forwards of a row than bytes


def test_the_check_says_that_bytes_are_possible() -> None:
    findings = check_members({"base": str(tiny.path("base")), "tuned": str(tiny.path("second_tuned"))})
    by_subject = {finding.subject: finding for finding in findings}
    assert by_subject["vocabulary"].level == "refused"
    assert by_subject["bytes"].level == "note" and "can be combined byte by byte" in by_subject["bytes"].text


def test_every_vocabulary_of_the_table_is_spelled_as_it_says() -> None:
    for name, tokens in VOCABULARIES.items():
        assert token_bytes(tokenizer(name)) == [None] * 3 + [text for _, text in tokens]
