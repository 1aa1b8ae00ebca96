"""Eight pairs of tokenizers: in which vocabulary they are combined, and why, as `hf-eft check` says before any weights are loaded."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trained_cutters as cutters
from cutter_pairs import Pair, apart, contained, digits, same, shared
from families import shared as model
from tokenizers import decoders, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

from hf_eft import tiny
from hf_eft.bytes.tokens import ByteTokenizer
from hf_eft.cli import app
from hf_eft.hub.compatibility import check_members
from hf_eft.members.vocabulary import check_tokenizers
from hf_eft.units import choose


def mixed(base: str, tuned: str) -> Pair:
    return {"base": cutters.trained(base, 500, 0), "tuned": cutters.trained(tuned, 500, 1)}


def one() -> Pair:
    return dict.fromkeys(("base", "tuned"), cutters.trained("gpt2", 500, 0))


PAIRS: dict[str, tuple[Callable[[], Pair], str | None, str]] = {
    "same": (one, None, "'base' and 'tuned' give every token one id"),
    "same, other ids": (same, "tokens", "'base', 'tuned' and 'reference' have one tokenizer, but for its ids"),
    "small contained in base": (
        functools.partial(contained, "tuned"),
        "tokens",
        "every token of 'base' and 'tuned' is made of tokens of 'tuned'",
    ),
    "base contained in small": (
        functools.partial(contained, "base"),
        "tokens",
        "every token of 'base' and 'tuned' is made of tokens of 'base'",
    ),
    "shared merges": (functools.partial(shared, "gpt2"), "tokens", "cut texts alike and share 15"),
    "Llama-3 and Qwen": (digits, "tokens", "cut texts alike but for digits, which 'tuned' reads one by one"),
    "GPT-2 and SentencePiece": (
        functools.partial(mixed, "gpt2", "sentencepiece"),
        "bytes",
        "'base' and 'tuned' cut texts at different places before they merge",
    ),
    "Unigram and BPE": (
        functools.partial(mixed, "gpt2", "unigram"),
        "bytes",
        "the tokenizer of 'tuned' (Unigram) does not merge by rank",
    ),
}


def saved(pair: Pair, folder: Path) -> dict[str, str]:
    """Members with these tokenizers, as far as they are looked at: weights are not read."""
    for member, tokenizer in pair.items():
        model("llama", 0).config.save_pretrained(folder / member)
        tokenizer.save_pretrained(folder / member)
        (folder / member / "model.safetensors").touch()
    return {member: str(folder / member) for member in pair}


@pytest.mark.parametrize("name", PAIRS)
def test_what_is_chosen_and_why(name: str, tmp_path: Path) -> None:
    make, vocabulary, reason = PAIRS[name]
    pair = make()
    choice = choose(pair)
    assert choice.vocabulary == vocabulary
    assert reason in choice.reason
    folders = saved(pair, tmp_path)
    findings = check_members(folders)
    told = [finding for finding in findings if finding.subject == "tokenizers"]
    if vocabulary is None:
        assert told == [] and all(finding.level != "refused" for finding in findings)
        return
    by = {"tokens": "combines them by tokens: ", "bytes": "combines them byte by byte, at a cost: "}[vocabulary]
    assert [finding.level for finding in told] == ["note"]
    assert told[0].text.endswith(by + choice.reason)
    assert [finding.subject for finding in findings if finding.level == "refused"] == ["vocabulary"], "said once"
    for asked in ("auto", "tokens", "bytes"):
        findings = check_members(folders, asked)
        [found] = [finding for finding in findings if finding.subject == "vocabulary"]
        if asked == "tokens" and choice.units is None:
            assert found.level == "refused" and choice.reason in found.text
            continue
        taken = vocabulary if asked == "auto" else asked
        level = "note" if (vocabulary, taken) == ("bytes", "tokens") else "ok"  # units may then differ between members
        by = {"tokens": "are combined by tokens: ", "bytes": "are combined byte by byte, at a cost: "}[taken]
        assert (found.level, found.text) == (level, "members' tokenizers differ, and " + by + choice.reason)
        assert all(finding.level != "refused" for finding in findings)


def test_members_that_cut_texts_into_tokens_not_all_know_are_combined_by_tokens(tmp_path: Path) -> None:
    merges = cutters.merges_of(cutters.trained("gpt2", 500, 0))
    pair = {"base": cutters.assembled("gpt2", merges), "tuned": cutters.assembled("gpt2", merges[:120])}
    check_tokenizers(pair)  # no id is another token's
    assert choose(pair).vocabulary == "tokens"
    assert choose({**pair, "tuned": cutters.assembled("gpt2", merges, added=["<tool>"])}).vocabulary is None
    folders = saved(pair, tmp_path)
    by_subject = {finding.subject: finding for finding in check_members(folders)}
    assert by_subject["tokenizers"].level == "note" and "combines them by tokens" in by_subject["tokenizers"].text
    [found] = [finding for finding in check_members(folders, "auto") if finding.subject == "vocabulary"]
    assert found.level == "ok" and "are combined by tokens" in found.text


def test_tokenizers_that_list_no_added_tokens_are_compared_by_all() -> None:
    """As mistral-common's do not."""
    ids = {"a": 0, "b": 1}
    pair: Any = {name: SimpleNamespace(get_vocab=lambda: ids) for name in ("base", "tuned")}
    assert choose(pair).vocabulary is None


def test_one_id_for_each_token_suffices_where_nothing_is_proved_of_units() -> None:
    merges = cutters.merges_of(cutters.trained("gpt2", 500, 0))
    pair = {"base": cutters.assembled("gpt2", merges), "tuned": cutters.assembled("gpt2", merges[:120], dropout=0.5)}
    choice = choose(pair)
    assert choice.vocabulary is None and choice.units is None and "one id" in choice.reason


@pytest.mark.parametrize("space", [False, True])
def test_the_pattern_of_gpt2_is_one_however_it_is_written(space: bool) -> None:
    merges = cutters.merges_of(cutters.trained("gpt2", 500, 0))
    written = pre_tokenizers.ByteLevel(add_prefix_space=space)  # its pattern is its own
    pair = {
        "base": cutters.assembled("gpt2", merges),
        "tuned": cutters.assembled("gpt2", merges[:120], shuffled=1, pre_tokenizer=written),
    }
    pieces = [
        [piece for piece, _ in each.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)]
        for each in pair.values()
        for text in cutters.texts(0)
    ]
    alike = pieces[: len(pieces) // 2] == pieces[len(pieces) // 2 :]
    assert alike is not space
    choice = choose(pair)
    assert choice.vocabulary == ("bytes" if space else "tokens"), choice.reason


def test_the_command_goes_by_the_vocabulary() -> None:
    places = [str(tiny.path(name)) for name in ("base", "second_tuned", "second_reference")]
    assert CliRunner().invoke(app, ["check", *places]).exit_code == 1
    done = CliRunner().invoke(app, ["check", *places, "--vocabulary", "auto", "--json"])
    assert done.exit_code == 0 and "are combined byte by byte, at a cost" in done.output
    assert CliRunner().invoke(app, ["check", *places, "--vocabulary", "letters"]).exit_code == 2
    with pytest.raises(ValueError, match="`vocabulary` must be 'tokens', 'bytes', 'auto' or None, got 'letters'"):
        check_members(dict(zip(("base", "tuned", "reference"), places, strict=True)), "letters")


def test_the_command_says_so() -> None:
    done = CliRunner().invoke(
        app, ["check", *(str(tiny.path(name)) for name in ("base", "second_tuned", "second_reference")), "--json"]
    )
    by_subject = {each["subject"]: each["text"] for each in json.loads(done.output)}
    assert (
        "vocabulary='auto')` combines them byte by byte, at a cost: units may differ between members: "
        in by_subject["tokenizers"]
    )


def test_units_that_cannot_be_had_are_no_choice() -> None:
    words: Any = {"base": cutters.words(["play", "run"]), "tuned": cutters.trained("gpt2", 500, 0)}
    choice = choose(words)
    assert choice.vocabulary == "bytes" and choice.units is None
    assert choice.reason == "The base 'base' has no tokens that those of the member 'base' are made of."


def test_a_member_of_bytes_is_combined_byte_by_byte() -> None:
    choice = choose({"base": cutters.trained("gpt2", 500, 0), "tuned": ByteTokenizer()})
    assert choice.vocabulary == "bytes" and "(ByteTokenizer) does not merge by rank" in choice.reason
    assert choice.units is not None and len(choice.units.ids) == 256


def test_refusals() -> None:
    with pytest.raises(ValueError, match="got none"):
        choose({})
    strange = cutters.assembled("gpt2", [("a", "b")])
    strange.backend_tokenizer.decoder = decoders.CTC()
    pair = {"base": cutters.trained("gpt2", 500, 0), "tuned": strange, "reference": strange}
    with pytest.raises(
        ValueError, match=r"neither by tokens nor byte by byte\..*'tuned': .* by CTC.* 'reference': .* one model family"
    ):
        choose(pair)


def test_members_that_learnt_apart_are_combined_by_tokens_where_they_cut_alike() -> None:
    assert choose(apart("gpt2")).vocabulary == "tokens"
    assert isinstance(apart("gpt2")["base"], PreTrainedTokenizerFast)
