"""What a batch and its requests may ask for, piece by piece: each value at the end of its range; and the masks that members get."""

from __future__ import annotations

import asyncio
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from paged import PROMPTS, batched, config, greedy, three
from transformers import GenerationConfig

from hf_eft import Combination
from hf_eft.decoding.continuous.limits import _FOR_ONE_MODEL, check_arguments, check_coefficient_rows, check_options, resolve
from hf_eft.decoding.continuous.options import REFUSED, check, check_names
from hf_eft.decoding.continuous.paged import masks_of
from hf_eft.decoding.speculative.request import Request

KNOWN = {"temperature": float, "top_k": int, "top_p": float}


def test_options_of_a_request_come_in_the_type_of_the_batch() -> None:
    given = {"temperature": 2, "top_k": 5, "top_p": 1}
    checked = check_options(given, KNOWN, vocab_size=64)
    assert checked == given and [type(value) for value in checked.values()] == [float, int, float]
    assert check_options({"top_k": 0}, KNOWN, 64) == check_options({"top_k": 65}, KNOWN, 64) == {"top_k": 64}
    assert check_options({}, {}, 64) == {}
    assert check_options({"temperature": 1e-9, "top_p": 1e-9}, KNOWN, 64) == {"temperature": 1e-9, "top_p": 1e-9}


@pytest.mark.parametrize(
    ("options", "error"),
    [
        *(({"temperature": value}, "`temperature` must be a positive number") for value in (0.0, -1.0, math.inf, math.nan)),
        *(({"top_p": value}, "`top_p` must be above 0 and at most 1") for value in (0.0, 0, -0.5, 1.001, math.nan)),
        ({"top_k": -1}, "`top_k` must be 0"),
    ],
    ids=str,
)
def test_options_out_of_their_range_are_refused(options: dict[str, Any], error: str) -> None:
    with pytest.raises(ValueError, match=error):
        check_options(options, KNOWN, 64)


@pytest.mark.parametrize("value", [True, "1", None])
def test_options_of_another_type_are_refused(value: Any) -> None:
    for name, kind in KNOWN.items():
        with pytest.raises(TypeError, match=f"`{name}` of a request must be of the type {kind.__name__}, got {value!r}"):
            check_options({name: value}, KNOWN, 64)
    with pytest.raises(TypeError, match=r"`top_k` of a request must be of the type int, got 5\.0"):
        check_options({"top_k": 5.0}, KNOWN, 64)


def test_arguments_that_ask_for_nothing_are_taken() -> None:
    asks_nothing = {"streamer": None, "synced_gpus": False, "stopping_criteria": [], "logits_processor": [], "tokenizer": 5}
    assert check_arguments(Request(), {**asks_nothing, "top_k": 3}) == {"top_k": 3}
    for name, value in (("logits_processor", [5]), ("synced_gpus", True), ("streamer", 0)):
        with pytest.raises(NotImplementedError, match=f"`{name}` is not looked at"):
            check_arguments(Request(), {name: value})


RECIPE = Combination({"base": 1, "tuned": 1})


@pytest.mark.parametrize("row", [[1.0], [1.0, 2.0, 3.0], [1.0, math.nan], [-math.inf, 1.0]], ids=str)
def test_coefficients_are_a_finite_number_for_each_member(row: list[float]) -> None:
    assert check_coefficient_rows([1, -0.5], ("base", "tuned"), RECIPE) == (1.0, -0.5)
    with pytest.raises(ValueError, match=r"must be a finite number for each of \['base', 'tuned'\]"):
        check_coefficient_rows(row, ("base", "tuned"), RECIPE)


def test_nothing_is_refused_that_asks_for_nothing() -> None:
    model = three()
    off = {name: type(nothing)() if nothing is not None else None for name, nothing in _FOR_ONE_MODEL.items()}
    resolved = resolve(model, config(**off))
    assert not any(getattr(resolved, name) for name in _FOR_ONE_MODEL)
    for name, value in off.items():
        if isinstance(value, int):
            with pytest.raises(NotImplementedError, match=f"`{name}` is for one model"):
                resolve(model, config(**{name: type(value)(1)}))
    switches = [name for name, (nothing, _) in REFUSED.items() if isinstance(nothing, bool)]
    asked = GenerationConfig(**dict.fromkeys(switches, False))
    check(model, asked)
    for name in switches:
        setattr(asked, name, True)
        with pytest.raises(NotImplementedError, match=f"`{name}` is True"):
            check(model, asked)
        setattr(asked, name, False)


def test_where_a_refused_option_comes_from_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    model = three()
    asked = GenerationConfig(num_beams=2)
    given, call = {"num_beams": "of the `generation_config` that was given"}, {"num_beams": "of this call"}
    for places in (given, call):
        with pytest.raises(NotImplementedError, match=f"`num_beams` {places['num_beams']} is 2: it .*Leave it out"):
            check(model, asked, places)
    model.generation_config.num_beams = 2
    with pytest.raises(NotImplementedError, match="`num_beams` of this call is 2"):
        check(model, asked, call)
    for places in (given, {}):
        with pytest.raises(
            NotImplementedError, match=r"`num_beams` is 2 in the model's own `generation_config`: .*num_beams = 1`"
        ):
            check(model, asked, places)
    monkeypatch.setattr(model.members["tuned"].generation_config, "num_beams", 2)
    with pytest.raises(NotImplementedError, match="own `generation_config`, as in that of the member 'tuned': it"):
        check(model, asked)


def test_a_batch_is_asked_for_by_the_names_of_transformers() -> None:
    model = three()
    asked = {"inputs": PROMPTS[:2], "generation_config": greedy(2), "continuous_batching_config": config()}
    answers = [output.generated_tokens for output in model.generate_batch(**asked).values()]
    assert answers == batched(model, PROMPTS[:2], greedy(2))
    with pytest.raises(TypeError, match="positional"):
        model.generate_batch(*asked.values(), torch.ones(2, 3))


def test_a_request_gets_what_it_asks_for_or_what_its_length_leaves() -> None:
    model = three()
    by_length = model.init_continuous_batching(greedy(max_new_tokens=None, max_length=9), config())
    assert [by_length._check_length([5] * 4, asked) for asked in (None, 3, 7)] == [5, 3, 7]
    with pytest.raises(ValueError, match="A prompt of 9 tokens may get 0 more"):
        by_length._check_length([5] * 9, None)
    by_number = model.init_continuous_batching(greedy(4), config())
    assert [by_number._check_length([5] * 4, asked) for asked in (None, 3)] == [4, 3]
    neither = model.init_continuous_batching(greedy(max_new_tokens=None), config())
    with pytest.raises(ValueError, match="give `max_new_tokens`"):
        neither._check_length([5], None)


def test_who_waits_for_a_request_hears_of_it_to_its_last_answer() -> None:
    manager, heard = three().init_continuous_batching(greedy(3), config()), []

    async def wait() -> None:
        manager.register_result_handler("a", heard.append)
        manager.answers._open["a"] = SimpleNamespace(request_id="a")
        for last in (False, False, True):
            manager.answers.deliver(SimpleNamespace(request_id="a", is_finished=lambda last=last: last))
            await asyncio.sleep(0)
            assert ("a" in manager.answers.result_handlers) == (not last)

    asyncio.run(wait())
    assert [answer.is_finished() for answer in heard] == [False, False, True]


@pytest.mark.parametrize("window", [False, True])
def test_masks_are_in_the_dtype_of_the_member(window: bool) -> None:
    """Three tokens of one sequence and one of another, packed; a window of two tokens."""
    types = {"layer_types": ["sliding_attention", "full_attention"]} if window else {"sliding_window": None}
    text = SimpleNamespace(sliding_window=2, **types) if window else SimpleNamespace(**types)
    text.get_text_config = lambda decoder: text
    sees = torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [0, 0, 0, 1]], dtype=torch.bool)
    mask = torch.zeros(1, 1, 4, 4).masked_fill(~sees, torch.finfo(torch.float32).min)
    near = sees & torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 0, 1]], dtype=torch.bool)
    for dtype in (torch.float32, torch.bfloat16):
        member: Any = SimpleNamespace(model=SimpleNamespace(dtype=dtype, config=text))
        made = masks_of(member, mask, torch.tensor([[0, 1, 2, 0]]), torch.tensor([0, 3, 4], dtype=torch.int32))
        expected = {"full_attention": sees, "sliding_attention": near} if window else {"": sees}
        made = made if window else {"": made}
        assert made.keys() == expected.keys()
        for kind, seen in expected.items():
            assert made[kind].dtype == dtype and torch.equal(made[kind] == 0, seen[None, None])
            assert bool((made[kind][~seen[None, None]] == torch.finfo(dtype).min).all())


def test_a_name_that_is_nearly_an_option_is_told() -> None:
    with pytest.raises(ValueError, match=r"no option `temprature` .* Did you mean `temperature`\?"):
        check_names(["top_k", "temprature"], KNOWN)
    with pytest.raises(ValueError, match=r"no option `zzz` .* Leave it out"):
        check_names(["zzz"], KNOWN)
