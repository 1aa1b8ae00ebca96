"""One type of model held against the stateless formula, in both leaves, under every strategy: exact, refused, wrong, or foreign."""

from __future__ import annotations

import copy
import functools
import linecache
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from architecture_models import PAD, VOCAB, build
from transformers import ContinuousBatchingConfig, GenerationConfig, LogitsProcessor

import hf_eft
from hf_eft import EFTForCausalLM, EFTLogitsProcessor

# Values are compared as log-probs. Two tokens that are nearer than this are a tie, and either is right.
TOLERANCE = 1e-3
NEW = 6
WRAPPER, ADD_ON = "wrapper", "add-on"
LEAVES = (WRAPPER, ADD_ON)
# "formula": a Llama as base, tuned and reference of the type. "identity": base and reference the same model, all of the type.
PLACES = ("formula", "identity")

_SAMPLE: dict[str, Any] = {"do_sample": True, "top_k": 0, "top_p": 1.0, "temperature": 1.0}
# By strategy, the prompts and the options of `generate`.
STRATEGIES: dict[str, tuple[str, dict[str, Any]]] = {
    "greedy": ("one", {}),
    "batch": ("even", {}),
    "left padding": ("left", {}),
    "beams": ("even", {"num_beams": 3}),
    "sampling": ("even", _SAMPLE),
    "static cache": ("even", {"cache_implementation": "static"}),
    "member drafts": ("one", {"num_assistant_tokens": 3}),
    "member drafts, batch": ("even", {"num_assistant_tokens": 3}),
    "prompt lookup": ("again", {"prompt_lookup_num_tokens": 3}),
    "continuous batching": ("left", {}),
}
WRAPPER_ONLY = {"member drafts, batch", "continuous batching"}  # the add-on's documentation says so


def prompts(shape: str) -> dict[str, torch.Tensor]:
    """Prompts, some of them longer than the windows."""
    generator = torch.Generator().manual_seed(7)
    lengths = {"one": [6], "even": [6, 6], "left": [2, 9, 6], "again": [4]}[shape]
    ids = torch.full((len(lengths), max(lengths)), PAD)
    for row, length in enumerate(lengths):
        ids[row, -length:] = torch.randint(3, VOCAB - 1, (length,), generator=generator)
    if shape == "again":
        ids = ids.repeat(1, 2)  # something to look up
    mask = (ids != PAD).long()
    return {"input_ids": ids, "attention_mask": mask}


class Wrong(AssertionError):
    """A result that is not the formula's."""


class Oracle:
    """The formula from whole prefixes, without a cache and without this library."""

    def __init__(self, models: dict[str, Any], coefficients: dict[str, float]) -> None:
        self._models, self._coefficients = models, coefficients
        self._known: dict[tuple[int, ...], torch.Tensor] = {}

    @torch.no_grad()
    def __call__(self, tokens: list[int]) -> torch.Tensor:
        """Log-probs of the token after `tokens`, `(vocab,)`."""
        key = tuple(tokens)
        if key not in self._known:
            ids = torch.tensor([tokens])
            logits = {
                name: model(input_ids=ids, use_cache=False).logits[0, -1].double() for name, model in self._models.items()
            }
            width = min(map(len, logits.values()))
            total = sum(self._coefficients[name] * values[:width].log_softmax(-1) for name, values in logits.items())
            self._known[key] = total.log_softmax(-1)
        return self._known[key]

    def compare(self, tokens: list[int], scores: torch.Tensor) -> None:
        """Raise unless `scores` are those after `tokens`."""
        expected = self(tokens)
        got = scores[: len(expected)].double().log_softmax(-1)
        off = float((got - expected).abs().max())
        if not off <= TOLERANCE:
            raise Wrong(f"log-probs off by {off:.2g} after {len(tokens)} tokens")

    def check_greedy(self, tokens: list[int], start: int) -> None:
        """Raise unless every token from `start` is the best, or as good as the best."""
        for n in range(start, len(tokens)):
            expected = self(tokens[:n])
            if not float(expected.max() - expected[tokens[n]]) <= 2 * TOLERANCE:
                raise Wrong(f"token {n - start} is {tokens[n]}, should be {int(expected.argmax())}")

    def likelihood(self, tokens: list[int], start: int) -> float:
        return sum(float(self(tokens[:n])[tokens[n]]) for n in range(start, len(tokens)))


class Probe(LogitsProcessor):
    """Records what a strategy is shown."""

    is_stateless = True

    def __init__(self) -> None:
        self.seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.seen.append((input_ids.clone(), scores.clone()))
        return scores


def hold(generate: Callable[..., Any], oracle: Oracle, strategy: str, processors: list[Any], assistant: Any) -> None:
    """Run `generate` with a strategy. Raise [`Wrong`] unless all values and tokens are the oracle's."""
    shape, options = STRATEGIES[strategy]
    inputs = prompts(shape)
    length, mask = inputs["input_ids"].shape[1], inputs["attention_mask"].bool()
    drafted = "draft" in strategy or "lookup" in strategy
    if "draft" in strategy:
        options = {**options, "assistant_model": assistant}
    probe = Probe()
    torch.manual_seed(5)
    out = generate(
        **inputs, **options, max_new_tokens=NEW, return_dict_in_generate=True, output_scores=True,
        logits_processor=[*processors, *([] if drafted else [probe])],
    )  # fmt: skip
    rows = [row[keep[0] :].tolist() if len(keep := m.nonzero()[:, 0]) else [] for row, m in _with_masks(out.sequences, mask)]
    if drafted:  # a probe would see drafts as well
        for row, tokens in enumerate(rows):
            start = int(mask[row].sum())
            for step in range(len(tokens) - start):
                oracle.compare(tokens[: start + step], out.scores[step][row])
    else:
        if len(probe.seen) != NEW:
            raise Wrong(f"{len(probe.seen)} steps instead of {NEW}")
        for ids, scores in probe.seen:
            for row, tokens, shown in zip(range(len(ids)), ids, scores, strict=True):
                first = int(mask[row * len(mask) // len(ids)].long().argmax())
                oracle.compare(tokens[first:].tolist(), shown)
    for row, tokens in enumerate(rows):
        start = int(mask[row].sum())
        if len(tokens) != start + NEW:
            raise Wrong(f"{len(tokens) - start} new tokens instead of {NEW}")
        if "num_beams" in options:
            expected = oracle.likelihood(tokens, start) / NEW
            if not abs(expected - float(out.sequences_scores[row])) <= TOLERANCE:
                raise Wrong(f"the score of a beam is {float(out.sequences_scores[row]):.4f}, should be {expected:.4f}")
        elif not options.get("do_sample"):
            oracle.check_greedy(tokens, start)
    assert out.sequences.shape[1] == length + NEW


def _with_masks(sequences: torch.Tensor, mask: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    return zip(sequences, mask, strict=True)


def hold_batched(model: Any, oracle: Oracle) -> None:
    """The same for continuous batching."""
    inputs = prompts("left")
    texts = [ids[keep.bool()].tolist() for ids, keep in zip(*inputs.values(), strict=True)]
    # No end token: its id is one that no token has.
    config = GenerationConfig(max_new_tokens=NEW, do_sample=False, eos_token_id=-1, pad_token_id=PAD)
    batching = ContinuousBatchingConfig(num_blocks=64, page_size=8, max_batch_tokens=16)
    outputs = model.generate_batch(texts, config, batching)
    for text, output in zip(texts, outputs.values(), strict=True):
        if len(output.generated_tokens) != NEW:
            raise Wrong(f"{len(output.generated_tokens)} new tokens instead of {NEW}")
        oracle.check_greedy([*text, *output.generated_tokens], len(text))


def verdict(run: Callable[[], None]) -> dict[str, str]:
    """What became of it: exact; refused, by an error that this package raises on purpose; wrong; or foreign, any other error."""
    try:
        run()
    except Wrong as error:
        return {"result": "wrong", "reason": str(error)}
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        ours = Path(frame.filename).is_relative_to(Path(hf_eft.__file__).parent)
        meant = linecache.getline(frame.filename, frame.lineno or 0).strip().startswith("raise ")
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"[:600]
        if ours and meant:
            return {"result": "refused", "reason": reason}
        return {"result": "foreign", "reason": reason, "at": f"{Path(frame.filename).name}:{frame.lineno}"}
    return {"result": "exact"}


@functools.cache
def llama() -> Any:
    return build("llama", 9)


def hold_type(
    model_type: str, strategies: list[str] | None = None, note: Callable[[dict[str, Any]], Any] = lambda found: None
) -> dict[str, Any]:
    """
    Every strategy, leaf and place of a type. Where a result is not exact, what transformers' plain model does beside it. `note`
    is told what is found so far, with what comes next under `"now"`.
    """
    tuned, reference, own = (build(model_type, seed) for seed in (1, 2, 3))
    results: dict[str, Any] = {"class": type(tuned).__name__, "weights": sum(p.numel() for p in tuned.parameters()), "held": []}
    wanted = Oracle({"tuned": tuned}, {"tuned": 1.0})
    sure = verdict(lambda: _check_say(wanted))
    if sure["result"] != "exact":
        results["unread"] = sure["reason"]
    for place in PLACES:
        base, second = (llama(), reference) if place == "formula" else (own, copy.deepcopy(own))
        models = {"base": base, "tuned": tuned, "reference": second}
        oracle = Oracle(models, {"base": 1.0, "tuned": 1.0, "reference": -1.0}) if place == "formula" else wanted
        for leaf in LEAVES:
            for strategy in strategies or STRATEGIES:
                if leaf == ADD_ON and strategy in WRAPPER_ONLY:
                    continue
                results["now"] = {"place": place, "leaf": leaf, "strategy": strategy}
                note(results)
                found = verdict(lambda: _hold_leaf(leaf, strategy, models, oracle))  # noqa: B023  # called at once
                if found["result"] != "exact" and strategy != "continuous batching":
                    # Without this package: the base of an add-on, with the assistant it was given; the tuned member of a wrapper.
                    plain, assistant = (base, tuned) if leaf == ADD_ON else (tuned, second)
                    alone = Oracle({"plain": plain}, {"plain": 1.0})
                    without = verdict(lambda: hold(plain.generate, alone, strategy, [], assistant))  # noqa: B023
                    found = _told_apart(found, without, leaf)
                    found["plain"] = " ".join(without.values())[:300]
                results["held"].append({**results.pop("now"), **found})
    return results


def _told_apart(found: dict[str, str], without: dict[str, str], leaf: str) -> dict[str, str]:
    """What was found, in the light of what happens without this package: to the base of an add-on, or to the tuned member."""
    if leaf == ADD_ON and found["result"] == "foreign" and without.get("at") == found["at"]:
        return {**found, "result": "theirs"}  # `generate` of transformers ends before, or without, the add-on
    if leaf == ADD_ON and found["result"] == without["result"] == "wrong":
        return {**found, "result": "theirs"}  # the scores that the add-on is given are wrong
    if "static cache: it ends in" in found.get("reason", "") and without["result"] == "exact":
        return {**found, "result": "foreign"}  # an error that is ours, said to be the model's
    return found


def _hold_leaf(leaf: str, strategy: str, models: dict[str, Any], oracle: Oracle) -> None:
    base, tuned, reference = models.values()
    if leaf == ADD_ON:
        add_on = EFTLogitsProcessor(tuned, reference, pad_token_id=PAD)
        return hold(base.generate, oracle, strategy, [add_on], tuned)
    model = EFTForCausalLM.from_models(base, tuned=tuned, reference=reference)
    if strategy == "continuous batching":
        return hold_batched(model, oracle)
    return hold(model.generate, oracle, strategy, [], tuned)


def _check_say(oracle: Oracle) -> None:
    """Raise unless the model's distribution is far from uniform."""
    ids = prompts("one")["input_ids"][0].tolist()
    spread = float(oracle(ids).std())
    if not spread > 0.2:
        raise Wrong(f"its distribution is nearly uniform ({spread:.2g})")
