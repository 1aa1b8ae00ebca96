"""How members in units read prompts: in tokens of the base, special ones by what they are for, up to wherever they end."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from byte_oracle import Enumeration, Oracle
from byte_oracle import model as byte_model
from byte_oracle import tokenizer as byte_tokenizer
from unit_members import (
    EXACT,
    PAIRS,
    cutters_of,
    enumeration,
    expanded,
    generated,
    ids_of,
    members,
    model,
    models_of,
    tokenizer,
    tokens_of,
)

from hf_eft import EFTForCausalLM
from hf_eft.units import common_units, read_in_units, unit_tokenizer

ALL: dict[str, Any] = {"covers": None, "threshold": 0.0}
PAIR = "bytes: shared"
A, B, AB = range(3)  # its units


def says(reader: Any, ids: list[int], **options: Any) -> torch.Tensor:
    """Probabilities of the units of the pair and the end, behind a prompt."""
    p = reader(input_ids=torch.tensor([ids]), logits_to_keep=1, **options).logits[0, -1].double().softmax(-1)
    return p[[*common_units(cutters_of(PAIR)).ids, tokenizer("bytes-many").eos_token_id]]


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=1e-5)


# The ids of the base, `bytes-many`: pad 0, begin 1, end 2, a 3, b 4, ab 5, aba 6, bb 7.
LONG = [1, 3, 5, 6, 7, 3, 5, 4]  # a ab aba bb a ab b


def test_the_base_reads_the_tokens_that_it_was_given_but_for_the_last_four() -> None:
    base = members(PAIR, **ALL)["base"]
    oracle = enumeration(PAIR, "base", LONG[:4])
    close(says(base, LONG), oracle.next(bytes([B, B, A, AB, B]), bytes(range(3))))
    other = [1, 3, 5, 5, 3, 7, 3, 5, 4]  # the same text, where `aba` is `ab a`
    close(says(base, other), enumeration(PAIR, "base", other[:5]).next(bytes([B, B, A, AB, B]), bytes(range(3))))
    assert not torch.allclose(says(base, LONG), says(base, other), atol=1e-3)
    again = [1, 4, 4, 7]  # `b b bb`, where the last token could be the first
    close(says(base, again), enumeration(PAIR, "base", [1]).next(bytes([B] * 4), bytes(range(3))))


def test_others_read_the_text_by_their_own_tokenizer_but_for_its_last_four_tokens() -> None:
    tuned, cutter = members(PAIR, **ALL)["tuned"], tokenizer("bytes-other")
    text = b"".join(tokens_of("bytes-many")[i] for i in LONG[1:]).decode()
    own = cutter(text)["input_ids"]
    assert own[0] == cutter.bos_token_id and len(own) > 6
    rest = b"".join(expanded(PAIR, "bytes-other")[i] for i in own[-4:])
    expected = enumeration(PAIR, "tuned", own[:-4]).next(rest, bytes(range(3)))
    close(says(tuned, LONG), expected)
    close(says(tuned, LONG[1:]), expected)  # a begin of text is each member's own


def test_special_tokens_are_what_they_are_for() -> None:
    """An end of text is the member's own, whichever id it has; a begin that is not at the begin is the text that it is written as."""
    given, cutter = members(PAIR, **ALL), tokenizer("bytes-other")
    begin, end = cutter.bos_token_id, cutter.eos_token_id
    ids = [1, 3, 5, 2, 3, 5]  # <bos> a ab <eos> a ab
    a, ab = (cutter.get_vocab()[token] for token in ("a", "ab"))
    expected = enumeration(PAIR, "tuned", [begin, a, ab, end]).next(bytes([A, AB]), bytes(range(3)))
    close(says(given["tuned"], ids), expected)
    close(says(given["base"], ids), enumeration(PAIR, "base", ids[:4]).next(bytes([A, AB]), bytes(range(3))))
    inside = [1, 3, 5, 1, 3, 5]  # `<bos>` is written alike in both
    expected = enumeration(PAIR, "tuned", [begin, a, ab, begin]).next(bytes([A, AB]), bytes(range(3)))
    close(says(given["tuned"], inside), expected)


def test_a_begin_of_text_is_each_members_own() -> None:
    """Whatever it is written as."""
    pair = "bytes: small in base"
    tuned, begin = members(pair, **ALL)["tuned"], tokenizer("bytes-few").bos_token_id
    assert tokenizer("bytes-few").bos_token != tokenizer("bytes-many").bos_token
    oracle = enumeration(pair, "tuned", [begin])
    close(says(tuned, [1, 3, 5, 4]), oracle.next(bytes([A, AB, B]), bytes(range(3))))
    close(says(tuned, [3, 5, 4]), oracle.next(bytes([A, AB, B]), bytes(range(3))))
    close(says(tuned, [1]), oracle.next(b"", bytes(range(3))))
    spaced = members("spaced and pieces", **ALL)["tuned"]  # padding is masked, which here is `a` if it is not
    begin = spaced.config.bos_token_id
    padded, mask = torch.tensor([[0, 0, begin], [begin, 1, 2]]), torch.tensor([[0, 0, 1], [1, 1, 1]])
    alone = spaced(input_ids=torch.tensor([[begin]])).logits[0, -1]
    torch.testing.assert_close(
        spaced(input_ids=padded, attention_mask=mask).logits[0, -1].exp(), alone.exp(), atol=1e-6, rtol=1e-5
    )


def test_padding_with_the_end_leaves_an_end_in_a_prompt() -> None:
    models, cutters = models_of(PAIR), cutters_of(PAIR)
    padding = tokenizer.__wrapped__("bytes-many")
    padding.pad_token = padding.eos_token
    given = read_in_units(models, {**cutters, "base": padding}, **ALL)
    for name, reader in members(PAIR, **ALL).items():
        close(says(given[name], [1, 5, 3, 2]), says(reader, [1, 5, 3, 2]))


def test_several_ends_are_one() -> None:
    """Whichever of its ends a member writes, the text ends; what is written is the tokenizer's own."""
    pad, end = tokenizer("bytes-many").pad_token_id, tokenizer("bytes-many").eos_token_id
    base = model.__wrapped__("bytes-many", 0)
    base.generation_config.eos_token_id = [pad, end]
    reader = read_in_units({**models_of(PAIR), "base": base}, cutters_of(PAIR), **ALL)["base"]
    tokens = expanded(PAIR, "bytes-many")

    def following(sequence: tuple[int, ...]) -> torch.Tensor:
        with torch.no_grad():
            logits = base(torch.tensor([sequence]), use_cache=False).logits[0, -1]
        logits[[i for i in range(len(logits)) if i not in {*tokens, pad, end}]] = -torch.inf
        log_probs = logits.log_softmax(-1)
        log_probs[end] = log_probs[[pad, end]].logsumexp(-1)
        return log_probs

    expected = Enumeration(following, tokens, end, [1]).next(bytes([A, AB]), bytes(range(3)))
    close(says(reader, [1, 3, 5]), expected)
    assert reader.generation_config.eos_token_id == reader.config.eos_token_id == end


def test_another_special_token_is_the_text_that_it_is_written_as() -> None:
    """Where a member does not know it, it reads its letters."""
    models, cutters = models_of(PAIR), cutters_of(PAIR)
    asked = tokenizer.__wrapped__("bytes-many")
    asked.add_special_tokens({"additional_special_tokens": ["ba"]})  # written in letters that the others know
    base = models["base"]
    wide = type(base)(type(base.config)(**{**base.config.to_dict(), "vocab_size": 9})).eval().double()
    wide.generation_config = base.generation_config
    given = read_in_units({**models, "base": wide}, {**cutters, "base": asked}, **ALL)
    small = cutters["tuned"]
    text = small("ababab" + "ba" + "a")["input_ids"]
    rest = b"".join(expanded(PAIR, "bytes-other")[i] for i in text[-4:])
    expected = enumeration(PAIR, "tuned", text[:-4]).next(rest, bytes(range(3)))
    close(says(given["tuned"], [1, 5, 5, 5, 8, 3]), expected)
    assert int(says(given["base"], [1, 5, 5, 5, 8, 3]).argmax()) >= 0  # its own id for it, read as it is
    assert float(given["base"](input_ids=torch.tensor([[1, 5]])).logits[0, -1, 8]) == -torch.inf  # and never written


def test_a_prompt_may_end_in_the_middle_of_a_letter() -> None:
    """Units of bytes: the first byte of `é` is the prompt's, the second what follows."""
    cutters = {"base": byte_tokenizer("letters"), "tuned": other_letters()}
    models = {"base": byte_model("letters", 0), "tuned": byte_model("letters", 1)}
    given = read_in_units(models, cutters, **ALL)
    tokens = {
        "base": {3: b"a", 4: b"\xc3", 5: b"\xa9", 6: b"\xc3\xa9", 7: b"a\xc3"},
        "tuned": {3: b"\xc3", 4: b"a", 5: b"\xa9"},
    }
    ids = torch.tensor([[1, 3, 3, 4]])  # a a \xc3
    for name, reader in given.items():
        p = reader(input_ids=ids, logits_to_keep=1).logits[0, -1].double().softmax(-1)
        close(p[[3, 4, 5, 2]], Oracle(models[name], tokens[name]).next(b"aa\xc3", b"a\xc3\xa9"))


def other_letters() -> Any:
    """The letters of `letters` with other ids, and no merges; the model's other ids are nothing."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocab = {token: i for i, token in enumerate(["<pad>", "<bos>", "<eos>", "Ã", "a", "©"])}
    made = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>")


# Whole texts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pair", [PAIR, "pieces: shared", "spaced and pieces"])
def test_a_text_is_scored_from_its_begin(pair: str) -> None:
    """Without `logits_to_keep`: every position is what follows the begin of text and the units so far."""
    given, cutter = members(pair, **ALL), cutters_of(pair)["base"]
    speaker = unit_tokenizer(cutter, common_units(cutters_of(pair)))
    ids = [cutter.bos_token_id, *speaker("abba", add_special_tokens=False)["input_ids"]]
    whole = {name: member(input_ids=torch.tensor([ids])).logits[0] for name, member in given.items()}
    for n in range(1, len(ids) + 1):
        for name, member in given.items():
            cut = member(input_ids=torch.tensor([ids[:n]]), logits_to_keep=1).logits[0, -1]
            torch.testing.assert_close(whole[name][n - 1].exp(), cut.exp(), atol=1e-6, rtol=1e-5)
    labels = torch.tensor([[-100, *ids[1:]]])
    model = EFTForCausalLM.from_models(**given)
    log_p = (whole["base"] + whole["tuned"] - whole["reference"]).nan_to_num(-torch.inf).log_softmax(-1)
    expected = -torch.stack([log_p[n, ids[n + 1]] for n in range(len(ids) - 1)]).mean()
    torch.testing.assert_close(
        model(input_ids=torch.tensor([ids]), labels=labels).loss.double(), expected.double(), atol=1e-5, rtol=1e-5
    )


def test_a_longer_token_of_the_base_is_read_as_its_units() -> None:
    for reader in members(PAIR, **ALL).values():
        longer, spelled = (reader(input_ids=torch.tensor([ids])).logits[0] for ids in ([1, 6, 7, 3], [1, 5, 3, 4, 4, 3]))
        torch.testing.assert_close(longer[[0, 1, 2, 3]].exp(), spelled[[0, 2, 4, 5]].exp(), atol=1e-6, rtol=1e-5)


def test_special_tokens_inside_a_text_that_is_scored() -> None:
    """What stands before the last of them is a prompt at every position; rows beside each other, padded."""
    tuned = members(PAIR, **ALL)["tuned"]
    rows = [[1, 3, 2, 5, 4], [1, 5], [5, 4, 2]]  # the last ends with its end
    padded = torch.tensor([[0] * (5 - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (5 - len(row)) + [1] * len(row) for row in rows])
    found = tuned(input_ids=padded, attention_mask=mask).logits
    for row, logits in zip(rows, found, strict=True):
        for n in range(1, len(row) + (row[-1] != 2)):
            expected = tuned(input_ids=torch.tensor([row[:n]]), logits_to_keep=1).logits[0, -1]
            torch.testing.assert_close(logits[5 - len(row) + n - 1].exp(), expected.exp(), atol=1e-6, rtol=1e-5)
    unit_by_unit = members(PAIR, **EXACT)["tuned"]
    with pytest.raises(ValueError, match=r"reads plain text, and was given special tokens"):
        unit_by_unit(input_ids=torch.tensor([rows[0]]))
    assert torch.isfinite(unit_by_unit(input_ids=torch.tensor([[1, 5, 4]])).logits[0, :, [3, 4, 5]]).all()


# Rows that have ended ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pad", ["its own", "the end"])
def test_rows_that_ended_are_padded_while_others_go_on(pad: str) -> None:
    model = EFTForCausalLM.from_models(**members(PAIR))
    cutter = tokenizer("bytes-many")
    options = {"pad_token_id": cutter.pad_token_id if pad == "its own" else cutter.eos_token_id, "max_new_tokens": 12}
    inputs = ids_of(PAIR, "ab", "abab", "bba", "b", "a", "aab")
    torch.manual_seed(3)
    together = model.generate(**inputs, do_sample=True, coupling="match", seed=[1, 2, 3, 4, 5, 6], **options)
    new = together[:, inputs["input_ids"].shape[1] :]
    ended = [row.tolist().index(cutter.eos_token_id) for row in new if cutter.eos_token_id in row.tolist()]
    assert ended and min(ended) < 8 and len(new[0]) == 12
    for i in range(len(new)):
        alone = {key: value[i : i + 1][:, inputs["attention_mask"][i] == 1] for key, value in inputs.items()}
        row = model.generate(**alone, do_sample=True, coupling="match", seed=[i + 1], **options)[
            0, alone["input_ids"].shape[1] :
        ]
        assert new[i].tolist()[: len(row)] == row.tolist()
        assert set(new[i].tolist()[len(row) :]) <= {options["pad_token_id"]}


def test_what_is_written_are_units_and_one_end() -> None:
    base, units = members(PAIR)["base"], common_units(cutters_of(PAIR))
    logits = base(**ids_of(PAIR, "ab", "bb")).logits
    written = {*units.ids, tokenizer(PAIRS[PAIR][0]).eos_token_id}
    others = [i for i in range(logits.shape[-1]) if i not in written]
    assert others and bool((logits[..., others] == -torch.inf).all())
    assert {i for row in generated(base, PAIR, do_sample=True) for i in row[4:]} <= {*written, 0}


def test_what_a_member_says_of_its_own_ids_is_not_taken_for_the_bases() -> None:
    small = model.__wrapped__("bytes-other", 1)
    small.generation_config.suppress_tokens = [3, 4]
    small.generation_config.temperature = 0.7
    tuned = read_in_units({**models_of(PAIR), "tuned": small}, cutters_of(PAIR))["tuned"]
    assert tuned.generation_config.suppress_tokens is None and tuned.generation_config.temperature == 0.7
    assert tuned.generation_config.pad_token_id == tokenizer("bytes-many").pad_token_id
    assert small.generation_config.suppress_tokens == [3, 4]
