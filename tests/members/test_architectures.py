"""Kinds of models: what each does with a cache, with positions, with padding. All types of transformers are gone through at night."""

from __future__ import annotations

import copy
import inspect
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import architecture_checks
import architecture_page
import architecture_sight
import pytest
import torch
import transformers
from architecture_checks import STRATEGIES, Oracle, hold, hold_type, verdict
from architecture_models import OVERRIDES, TYPES, build
from families import prompts, shared
from transformers import LlamaForCausalLM
from transformers.modeling_outputs import MoeCausalLMOutputWithPast

from hf_eft import EFTForCausalLM, EFTLogitsProcessor
from hf_eft.members import trial
from hf_eft.members.releases import CACHE

ROOT = Path(__file__).parents[2]
EVERYTHING = set(STRATEGIES)
DRAFTS = {"member drafts", "member drafts, batch", "prompt lookup"}
BATCHING = {"continuous batching"}

# By type, what the wrapper refuses; the rest is exact.
KINDS: dict[str, set[str]] = {
    "bart": BATCHING | {"left padding", "member drafts, batch"},  # counts positions itself, padding with them
    "bloom": BATCHING,  # no positions at all, but distances
    "blt": EVERYTHING,  # patches of bytes
    "cpmant": EVERYTHING,  # a prompt of its own in the cache
    "deepseek_v3": BATCHING,  # keys and values out of a latent; experts
    "gemma2": BATCHING,  # windows; soft caps, for which it has an attention of its own
    "minimax": EVERYTHING,  # a cache of its own
    "openai-gpt": EVERYTHING,  # no cache
    "prophetnet": EVERYTHING,  # several tokens ahead
    "roberta": EVERYTHING,  # positions that begin at 2
    "rwkv": EVERYTHING,  # states that are no cache
}


@pytest.mark.parametrize("model_type", KINDS)
def test_a_kind_is_exact_or_refused(model_type: str) -> None:
    found = hold_type(model_type)
    assert "unread" not in found
    assert not [held for held in found["held"] if held["result"] in {"wrong", "foreign"}]
    refused = {held["strategy"] for held in found["held"] if held["result"] == "refused"}
    assert refused == KINDS[model_type]


# With a picture, by type, what the wrapper refuses; the rest is exact.
SEEING: dict[str, set[str]] = {
    "granite4_vision": set(),  # has no features for the embeddings, but for several layers, and tells them apart itself
    "inkling_mm_model": {"static cache"},  # asks for the logits of all tokens, where it prepares what it reads
    "janus": set(architecture_sight.STRATEGIES),  # a `generate` of its own, which drops logits processors
    "lfm3_vl": set(),  # casts no pixels
    "paligemma": {"static cache"},  # reads its prompt in both directions
    "qwen3_5": set(),  # recurrent states beside positions on several axes, which are read again token by token
}


@pytest.mark.parametrize(
    "model_type", [name for name in SEEING if f"{name}{architecture_sight.SUFFIX}" in architecture_sight.TYPES]
)
def test_a_kind_that_sees_is_exact_or_refused(model_type: str) -> None:
    found = architecture_sight.hold_type(f"{model_type}{architecture_sight.SUFFIX}")
    refused = {held["strategy"] for held in found["held"] if held["result"] == "refused"}
    assert refused == SEEING[model_type]
    assert {held["result"] for held in found["held"] if held["strategy"] not in refused} <= {"exact"}
    alone = (
        {"theirs"} if model_type == "inkling_mm_model" else set()
    )  # whose own `generate` ends in an error with a static cache
    assert {held["result"] for held in found["held"]} <= {"exact", "refused"} | alone


def test_llama4_is_exact_but_for_a_field_that_it_asks_for_in_vain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MoeCausalLMOutputWithPast, "image_outputs", None, raising=False)
    found = architecture_sight.hold_type(f"llama4{architecture_sight.SUFFIX}")
    results = {(held["leaf"], held["strategy"]): held["result"] for held in found["held"]}
    assert {place for place, result in results.items() if result != "exact"} == {
        (leaf, strategy) for leaf in ("wrapper", "add-on") for strategy in ("beams", "sampling")
    }
    assert {result for (leaf, _), result in results.items() if leaf == "wrapper"} == {"exact", "refused"}


@pytest.mark.nightly
@pytest.mark.timeout(7200)
def test_every_type_is_exact_or_refused(tmp_path: Path) -> None:
    script = [sys.executable, str(ROOT / "tests" / "architectures.py"), "--page", str(tmp_path / "page.md")]
    ended = subprocess.run(script, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-3000:]
    assert all(f"| `{name}` |" in (tmp_path / "page.md").read_text() or name in ended.stdout for name in TYPES)


# What finds them -----------------------------------------------------------------------------------------------------------


class Prefixed(LlamaForCausalLM):
    """Puts a token of its own before every text."""

    def forward(self, input_ids: Any = None, **kwargs: Any) -> Any:
        cache = kwargs.get(CACHE)
        if cache is not None and cache.get_seq_length() == 0:
            super().forward(input_ids[:, :1], **{CACHE: cache}, use_cache=True)
        return super().forward(input_ids, **{**kwargs, "attention_mask": None})


class Forgetful(LlamaForCausalLM):
    """Goes on in a copy of the cache that it is given."""

    def forward(self, input_ids: Any = None, **kwargs: Any) -> Any:
        if kwargs.get(CACHE) is not None:
            kwargs[CACHE] = copy.deepcopy(kwargs[CACHE])
        return super().forward(input_ids, **kwargs)


class Brittle(LlamaForCausalLM):
    """It cannot read several tokens behind others."""

    def forward(self, input_ids: Any = None, **kwargs: Any) -> Any:
        if kwargs[CACHE].get_seq_length() and input_ids.shape[1] > 1:
            raise RuntimeError("view size is not compatible")
        return super().forward(input_ids, **kwargs)


for forward in (Prefixed.forward, Forgetful.forward, Brittle.forward):
    forward.__signature__ = inspect.signature(LlamaForCausalLM.forward)  # type: ignore[attr-defined]


def as_class(kind: type[LlamaForCausalLM]) -> Any:
    model = kind(shared("llama", 1).config).eval()
    model.load_state_dict(shared("llama", 1).state_dict())
    model.generation_config = shared("llama", 1).generation_config
    return model


@pytest.mark.parametrize("leaf", ["wrapper", "add-on"])
@pytest.mark.parametrize("kind, said", [(Prefixed, "read 6 tokens, but its cache holds 7"), (Forgetful, "another cache")])
def test_a_cache_that_is_not_what_was_read_is_refused(kind: Any, said: str, leaf: str) -> None:
    base, tuned, reference = shared("llama", 0), as_class(kind), shared("llama", 2)
    with pytest.raises(ValueError, match=rf"'tuned' \({kind.__name__}\).*{said}"):
        if leaf == "wrapper":
            EFTForCausalLM.from_models(base, tuned, reference).generate(**prompts("even"), max_new_tokens=3)
        else:
            base.generate(**prompts("even"), logits_processor=[EFTLogitsProcessor(tuned, reference)], max_new_tokens=3)


def test_a_model_that_cannot_read_a_draft_is_named() -> None:
    model = EFTForCausalLM.from_models(shared("llama", 0), as_class(Brittle), shared("llama", 2))
    assert model.generate(**prompts("one"), max_new_tokens=3).shape[1] > 6
    with pytest.raises(ValueError, match=r"'tuned' \(Brittle\) cannot read several tokens behind those in its cache"):
        model.generate(**prompts("one"), max_new_tokens=6, eos_token_id=None, prompt_lookup_num_tokens=3)


def test_a_model_that_goes_on_with_another_cache_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OVERRIDES, "blt", {**OVERRIDES["blt"], "num_hidden_layers": 2})  # so that a cache can be made
    base, tuned, reference = (build("blt", seed) for seed in (1, 2, 3))
    model = EFTForCausalLM.from_models(base, tuned, reference)
    with pytest.raises(
        ValueError, match=r"'base' \(BltForCausalLM\) was given a .* and went on with another cache, EncoderDecoderCache"
    ):
        model.generate(**prompts("one"), max_new_tokens=3)


@pytest.mark.skipif("diffusion_gemma+picture" not in architecture_sight.TYPES, reason="not a type of this transformers")
@pytest.mark.parametrize("leaf", ["wrapper", "add-on"])
def test_a_model_that_does_not_write_one_token_after_another_is_refused(leaf: str) -> None:
    base, blocks, reference = shared("llama", 0), architecture_sight.build("diffusion_gemma", 1), shared("llama", 2)
    with pytest.raises(
        ValueError, match=r"'tuned' \(DiffusionGemmaForBlockDiffusion\) is not run by the `generate` of transformers"
    ):
        if leaf == "wrapper":
            EFTForCausalLM.from_models(base, blocks, reference)
        else:
            EFTLogitsProcessor(blocks, reference)


def counted(monkeypatch: pytest.MonkeyPatch, model: Any) -> list[tuple[int, ...]]:
    forward, seen = type(model).forward, []

    def spy(self: Any, input_ids: Any = None, *args: Any, **kwargs: Any) -> Any:
        if self is model:
            seen.append(tuple(input_ids.shape))
        return forward(self, input_ids, *args, **kwargs)

    spy.__signature__ = inspect.signature(forward)  # type: ignore[attr-defined]
    monkeypatch.setattr(type(model), "forward", spy)
    return seen


def test_a_model_is_tried_once_and_one_that_is_told_positions_never(monkeypatch: pytest.MonkeyPatch) -> None:
    tuned, reference = build("bloom", 1), build("bloom", 2)
    model = EFTForCausalLM.from_models(architecture_checks.llama(), tuned, reference)
    seen = counted(monkeypatch, tuned)
    model.generate(**prompts("even"), max_new_tokens=3)
    tried = len(seen) - 3
    assert tried > 0 and all(shape[0] == 1 for shape in seen[:tried])
    model.generate(**prompts("left"), max_new_tokens=3)
    assert len(seen) == tried + 6
    told = build("llama", 1)
    seen = counted(monkeypatch, told)
    EFTForCausalLM.from_models(architecture_checks.llama(), told, build("llama", 2)).generate(
        **prompts("left"), max_new_tokens=3
    )
    assert len(seen) == 3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_is_not_taken_for_other_positions(dtype: torch.dtype) -> None:
    model = build("bloom", 1).to(dtype)
    trial.check_trial("tuned", model, model.device, prompts("left")["attention_mask"], cached=True)


def test_tokens_that_are_ruled_out_are_not_taken_for_other_positions() -> None:
    class Ruling(type(build("bloom", 1))):  # type: ignore[misc]
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            outputs = super().forward(*args, **kwargs)
            outputs.logits[..., :5] = -torch.inf
            return outputs

        forward.__signature__ = inspect.signature(type(build("bloom", 1)).forward)  # type: ignore[attr-defined]

    model = Ruling(build("bloom", 1).config).eval()
    trial.check_trial("tuned", model, model.device, prompts("left")["attention_mask"], cached=True)


def test_a_model_is_not_tried_while_its_dropout_is_on() -> None:
    model = build("bart", 1).train()
    trial.check_trial("tuned", model, model.device, prompts("left")["attention_mask"], cached=True)
    with pytest.raises(
        ValueError, match=r"'tuned' \(BartForCausalLM\) does not read a text behind padding as it reads it alone"
    ):
        trial.check_trial("tuned", model.eval(), model.device, prompts("left")["attention_mask"], cached=True)


def test_a_padded_batch_in_a_static_cache_is_refused_as_well() -> None:
    model = EFTForCausalLM.from_models(build("llama", 9), build("bart", 1), build("bart", 2))
    with pytest.raises(ValueError, match="behind padding"):
        model.generate(**prompts("left"), max_new_tokens=3, cache_implementation="static")


def test_a_static_cache_that_a_member_cannot_read_from_is_refused() -> None:
    base, tuned, reference = shared("llama", 0), shared("falcon", 1), shared("falcon", 2)  # a bias for the length of the prompt
    model = EFTForCausalLM.from_models(base, tuned, reference)
    with pytest.raises(ValueError, match=r"'tuned' \(FalconForCausalLM\) cannot read from a static cache"):
        model.generate(**prompts("even"), max_new_tokens=3, cache_implementation="static")


@pytest.mark.parametrize("padding", ["even", "left"])
def test_a_state_space_member_beside_a_static_cache_is_exact(padding: str) -> None:
    base, tuned = shared("llama", 0), shared("mamba", 1)
    options = {**prompts(padding), "max_new_tokens": 8}
    model = EFTForCausalLM.from_models(base, tuned, copy.deepcopy(base))
    assert model.generate(**options, cache_implementation="static").tolist() == tuned.generate(**options).tolist()


@pytest.mark.parametrize("model_type, moves", [("bloom", True), ("bart", False), ("moss_transcribe_diarize", False)])
def test_rows_are_not_drafted_together_for_a_member_that_cannot_be_moved(model_type: str, moves: bool) -> None:
    tuned, options = build(model_type, 1), {**prompts("even"), "max_new_tokens": 12}
    model = EFTForCausalLM.from_models(architecture_checks.llama(), tuned, build(model_type, 2))
    if moves:
        assert model.generate(**options, assistant_model=tuned).tolist() == model.generate(**options).tolist()
    else:
        with pytest.raises(ValueError, match=r"'tuned' .* does not read on behind padding as it reads the text alone"):
            model.generate(**options, assistant_model=tuned)
        one = {name: value[:1] if isinstance(value, torch.Tensor) else value for name, value in options.items()}
        assert model.generate(**one, assistant_model=tuned).tolist() == model.generate(**one).tolist()


# The finder itself ---------------------------------------------------------------------------------------------------------


def test_what_is_wrong_is_called_wrong() -> None:
    tuned, other = build("llama", 1), build("llama", 2)
    oracle = Oracle({"tuned": tuned}, {"tuned": 1.0})
    for strategy in ("greedy", "left padding", "beams", "sampling", "prompt lookup"):
        assert verdict(lambda: hold(tuned.generate, oracle, strategy, [], None)) == {"result": "exact"}  # noqa: B023
        assert verdict(lambda: hold(other.generate, oracle, strategy, [], None))["result"] == "wrong"  # noqa: B023


@pytest.mark.parametrize(
    "given, found", [(-torch.inf, "exact"), (torch.finfo(torch.float32).min, "exact"), (0.0, "wrong"), (torch.nan, "wrong")]
)
def test_what_is_ruled_out_in_any_way_is_ruled_out_beside_a_picture(
    monkeypatch: pytest.MonkeyPatch, given: float, found: str
) -> None:
    ruled = torch.tensor([[0.5, 0.25, torch.finfo(torch.float32).min]], dtype=torch.double)
    monkeypatch.setattr(architecture_sight.Oracle, "values", lambda *_: ruled.clone())
    oracle, got = architecture_sight.Oracle([], None), torch.tensor([0.5, 0.25, given])  # type: ignore[arg-type]
    assert verdict(lambda: oracle.check(0, torch.tensor([1]), torch.tensor([2]), [got], []))["result"] == found


def test_an_error_is_a_refusal_only_if_this_package_raises_it_on_purpose(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise ValueError("elsewhere")

    assert verdict(fail)["result"] == "foreign"
    assert verdict(lambda: EFTForCausalLM.from_models(None))["result"] == "refused"
    assert verdict(lambda: trial.check_trial("tuned", None, None, None, True))["result"] == "foreign"  # type: ignore[arg-type]


def held(result: str, strategy: str, leaf: str = "wrapper", **more: str) -> dict[str, str]:
    return {"place": "formula", "leaf": leaf, "strategy": strategy, "result": result, **more}


def test_the_page_says_the_worst_and_numbers_the_reasons() -> None:
    every = [held("exact", strategy, leaf) for strategy in STRATEGIES for leaf in ("wrapper", "add-on")]
    because = {"reason": "ValueError: The member 'tuned' (BartForCausalLM) cannot. Do this."}
    other = {"reason": "ValueError: The member 'base' (MBartForCausalLM) cannot. Do this."}
    found = [
        {"type": "good", "held": every},
        {"type": "bad", "held": [*every, held("wrong", "greedy"), held("refused", "beams", **because)]},
        {"type": "ugly", "held": [*every, held("refused", "beams", **other), held("theirs", "beams", "add-on")]},
        {"type": "missing", "unmade": "ImportError: no such library"},
    ]
    page = architecture_page.page(found)
    rows = {name: row.split(" | ") for name, row in re.findall(r"^\| `(\w+)` \| (.*) \|$", page, flags=re.M)}
    beams = list(STRATEGIES).index("beams")
    assert set(rows["good"]) == {"exact"}
    assert rows["bad"][0] == "**wrong** / exact"
    assert rows["bad"][beams] == "refused [1](#refusals) / exact"
    assert rows["ugly"][beams] == f"refused [1](#refusals) / {architecture_page.FAILS}"
    assert "1. The member … cannot.\n" in page and "2. " not in page
    assert "| results that are wrong | 1 |" in page and "`missing`: ImportError" in page


def test_the_committed_page_has_every_type_and_nothing_wrong() -> None:
    page = (ROOT / "docs" / "architectures.md").read_text()
    if "**Provisional**" in page:
        pytest.skip("the page was not made by one run of the script")
    assert "**wrong**" not in page and "**foreign**" not in page
    if f"transformers {transformers.__version__}," in page:
        sections = re.split(r"^## ", page, flags=re.M)
        of_pictures = [each for each in sections if each.startswith("With a picture")]
        text, seen = (
            set(re.findall(r"^(?:\||-) `([^`]+)`", "".join(part), flags=re.M))
            for part in (
                [each for each in sections if each not in of_pictures and not each.startswith("Set aside")],
                of_pictures,
            )
        )
        assert text == set(TYPES)
        assert {f"{name}{architecture_sight.SUFFIX}" for name in seen} == set(architecture_sight.TYPES)
