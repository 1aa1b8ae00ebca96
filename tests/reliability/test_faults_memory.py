"""Memory that runs out: what failed is let go, is not taken for a property of the model, and half-changed states are refused."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from typing import Any

import architecture_checks
import pytest
import torch
from architecture_models import build as of_any_architecture
from families import PAD, VOCAB, build, prompts
from faults import MEMORY_OF_THE_CPU, FailingProcessor, failing
from transformers import LlamaForCausalLM
from transformers.cache_utils import DynamicLayer

from hf_eft import EFTForCausalLM, EFTLogitsProcessor, tiny
from hf_eft.members import states, trial
from hf_eft.members.cache import EFTCache
from hf_eft.members.releases import CACHE, cache_of
from hf_eft.playground.streaming import Answer
from hf_eft.programs.answer import Answerer
from hf_eft.programs.batch import Item
from hf_eft.programs.conversation import ChatSession


@pytest.fixture(scope="module")
def model() -> EFTForCausalLM:
    one_layer = {"num_hidden_layers": 1}
    return EFTForCausalLM.from_models(*(build("llama", seed, **one_layer) for seed in range(3)))


@pytest.fixture
def no_collection() -> Iterator[None]:
    """Nothing is freed but by those who hold it letting go: memory that has run out does not start a collection."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


# States that were half changed ----------------------------------------------------------------------------------------------


def begun(model: EFTForCausalLM) -> tuple[torch.Tensor, EFTCache]:
    out = model.generate(**prompts("one"), max_new_tokens=4, min_new_tokens=4, return_dict_in_generate=True)
    return out.sequences, cache_of(out)


def go_on(model: EFTForCausalLM, ids: torch.Tensor, cache: EFTCache | None, **options: Any) -> list[list[int]]:
    given = {} if cache is None else {CACHE: cache}
    return model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, min_new_tokens=4, **given, **options
    ).tolist()


@pytest.mark.parametrize("how", ["a step", "a layer", "a draft", "between drafts", "a move", "a crop"])
def test_a_cache_that_was_left_half_way_is_refused(model: EFTForCausalLM, how: str) -> None:
    ids, cache = begun(model)
    expected = go_on(model, ids, None)
    owner, name, at = {
        "a step": (LlamaForCausalLM, "forward", 2), "a layer": (DynamicLayer, "update", 2), "a draft": (LlamaForCausalLM, "forward", 7),
        "between drafts": (FailingProcessor, "__call__", 2), "a move": (DynamicLayer, "reorder_cache", 2),
        "a crop": (DynamicLayer, "crop", 2),
    }[how]  # fmt: skip
    drafts = {"assistant_model": model.tuned, "num_assistant_tokens": 2, "logits_processor": [FailingProcessor(0, KeyError())]}
    with failing(owner, name, at, torch.OutOfMemoryError("simulated")), pytest.raises(torch.OutOfMemoryError):
        if how == "a move":
            cache.reorder_cache(torch.tensor([0]))
        elif how == "a crop":
            cache.crop(-1)
        else:
            go_on(model, ids, cache, **(drafts if "draft" in how else {}))
    for use in (lambda: go_on(model, ids, cache), lambda: model(ids[:, -1:], **{CACHE: cache})):
        with pytest.raises(ValueError, match=r"left half way.*cache\.reset\(\)"):
            use()
    cache.reset()
    assert go_on(model, ids, cache) == expected


def test_a_cache_of_a_call_that_failed_between_steps_is_whole(model: EFTForCausalLM) -> None:
    """All members had read the same: who takes the surplus back goes on with it."""
    ids, cache = begun(model)
    read = cache.get_seq_length()

    def fails(*_: Any) -> torch.Tensor:
        raise ArithmeticError

    with pytest.raises(ArithmeticError):
        go_on(model, ids, cache, logits_processor=[fails])
    cache.crop(-(cache.get_seq_length() - read))
    assert go_on(model, ids, cache) == go_on(model, ids, None)


def test_a_talk_goes_on_after_states_that_were_half_cropped() -> None:
    base, tuned, reference, tokenizer = tiny.load()

    def session() -> ChatSession:
        made = ChatSession(
            EFTForCausalLM.from_models(base, tuned=tuned, reference=reference), tokenizer, None, {"max_new_tokens": 4}
        )
        made.ask("Hello")
        return made

    talk, fresh = session(), session()
    expected = fresh.compare()
    with failing(DynamicLayer, "crop", 2, MemoryError("simulated")), pytest.raises(MemoryError):
        talk.messages[0]["content"] = "Hi"  # what was read is not what is asked
        talk.ask("And?")
    talk.messages[0]["content"] = "Hello"
    assert talk.compare() == expected


def test_rows_of_the_add_on_that_were_half_moved_are_read_again(model: EFTForCausalLM) -> None:
    def add_on() -> EFTLogitsProcessor:
        return EFTLogitsProcessor(model.tuned, model.reference, pad_token_id=PAD)

    begun, fresh = add_on(), add_on()
    ids, scores = prompts("even")["input_ids"], torch.zeros(2, VOCAB)
    more = torch.cat([ids, ids[:, :1]], dim=1)
    begun(ids, scores)
    with failing(DynamicLayer, "reorder_cache", 2, KeyboardInterrupt()), pytest.raises(KeyboardInterrupt):
        begun(more.flip(0), scores)  # the tuned member's rows have changed places, the reference's have not
    assert torch.allclose(begun(more, scores), fresh(more, scores), atol=1e-5)


# What is remembered ---------------------------------------------------------------------------------------------------------


def test_memory_that_ran_out_says_nothing_of_the_model() -> None:
    """A model is tried once, and refused for good where that fails; not where there was no memory for it."""
    unusual = of_any_architecture("bloom", 1)
    assert trial._is_unusual(unusual)
    model = EFTForCausalLM.from_models(architecture_checks.llama(), tuned=unusual, reference=of_any_architecture("bloom", 2))
    for at in (1, 2, 3):
        with (
            failing(type(unusual), "forward", at, RuntimeError(MEMORY_OF_THE_CPU)),
            pytest.raises(RuntimeError, match="allocate"),
        ):
            model.generate(**prompts("one"), max_new_tokens=3)
    assert model.generate(**prompts("one"), max_new_tokens=3, min_new_tokens=3).shape == (1, 9)


def test_memory_that_ran_out_is_not_taken_for_a_member_that_cannot(model: EFTForCausalLM) -> None:
    drafted = {"assistant_model": model.tuned, "num_assistant_tokens": 3, "max_new_tokens": 8, "min_new_tokens": 8}
    several = [0]
    plain = states.read

    def counted(name: str, member: Any, inputs: Any, *args: Any) -> Any:
        if inputs["input_ids"].shape[1] == 4:
            several[0] += 1
            raise_in = RuntimeError(MEMORY_OF_THE_CPU)
            with failing(type(member), "forward", 1, raise_in):
                return plain(name, member, inputs, *args)
        return plain(name, member, inputs, *args)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(states, "read", counted)
        with pytest.raises(RuntimeError, match="allocate"):
            model.generate(**prompts("one"), **drafted)
    assert several[0] == 1


# What is let go -------------------------------------------------------------------------------------------------------------


class Held:
    """States of a call, as large as memory."""


class Hungry:
    """A model whose `generate` holds something, and has no memory for more than one row."""

    def __init__(self, plain: Any, rows: int) -> None:
        self.plain, self.rows, self.held = plain, rows, []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        assert all(each() is None for each in self.held), "what failed before is held while the next is tried"
        if (args[0] if args else kwargs["input_ids"]).shape[0] <= self.rows:
            return self.plain(*args, **kwargs)
        states = Held()
        self.held.append(weakref.ref(states))
        raise torch.OutOfMemoryError("simulated")


class Letters:
    """A tokenizer: a character is a token."""

    pad_token_id, chat_template = 0, None

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [ord(letter) % (VOCAB - 3) + 3 for letter in text]}

    def decode(self, ids: Any, **options: Any) -> str:
        return " ".join(map(str, ids))


def test_a_batch_that_is_too_large_is_let_go_before_its_rows_are_tried(
    model: EFTForCausalLM, no_collection: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = [Item(line, prompt="abcdef"[:line]) for line in (1, 2, 3)]
    answerer = Answerer(model, Letters(), {"max_new_tokens": 3})
    expected = [answerer([item])[0] for item in items]
    hungry = Hungry(model.generate, 1)
    monkeypatch.setattr(model, "generate", hungry)
    assert answerer(items) == expected and len(hungry.held) == 1


def test_an_answer_of_the_page_that_failed_is_let_go(no_collection: None, monkeypatch: pytest.MonkeyPatch) -> None:
    tuned, tokenizer = tiny.load().tuned, tiny.load().tokenizer
    hungry = Hungry(tuned.generate, 0)
    monkeypatch.setattr(tuned, "generate", hungry)
    answer = Answer(tuned, tokenizer, torch.tensor([5, 6]), 0, max_new_tokens=3)
    for _ in range(2):
        with pytest.raises(torch.OutOfMemoryError):
            list(answer)
    assert len(hungry.held) == 2


def test_half_an_answer_of_the_page_is_not_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    tuned, tokenizer = tiny.load().tuned, tiny.load().tokenizer

    def ends(*args: Any, streamer: Any, **kwargs: Any) -> None:
        streamer.put(torch.tensor([5]))
        raise SystemExit

    monkeypatch.setattr(tuned, "generate", ends)
    with pytest.raises(SystemExit):
        list(Answer(tuned, tokenizer, torch.tensor([5, 6]), 0))
