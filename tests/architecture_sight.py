"""Every type that transformers maps to a model of images and text, held in both leaves against the stateless formula with a picture."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from architecture_checks import ADD_ON, LEAVES, NEW, TOLERANCE, WRAPPER, Wrong, _told_apart, verdict
from architecture_form import Form, NoPicture, placeholder
from architecture_models import PAD, VOCAB
from architecture_pictures import candidates
from architecture_sight_models import build
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from hf_eft import EFTForCausalLM, EFTLogitsProcessor

SUFFIX = "+picture"
TYPES = sorted(f"{name}{SUFFIX}" for name in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)
# By strategy, words behind the picture of each row, and the options of `generate`.
STRATEGIES: dict[str, tuple[list[int], dict[str, Any]]] = {
    "greedy": ([3], {}),
    "left padding": ([2, 5], {}),
    "beams": ([3, 3], {"num_beams": 2}),
    "sampling": ([3], {"do_sample": True, "top_k": 0, "num_return_sequences": 2}),
    "static cache": ([3, 3], {"cache_implementation": "static"}),
    "member drafts": ([2, 5], {"num_assistant_tokens": 3}),
}
WRAPPER_ONLY = {"member drafts"}


def picture(model: Any) -> Form:
    """A picture that a model takes, and how many tokens hold its place."""
    takes, errors = inspect.signature(model.forward).parameters, []
    if not any(
        "pixel" in name or "patches" in name for name in takes
    ):  # a model of text alone: what becomes of a picture is seen
        return Form({"pixel_values": torch.rand(1, 3, 16, 16)}, (), lambda ids, prompt: {}, ())
    for candidate in candidates(model, torch.Generator().manual_seed(3)):
        form = candidate if isinstance(candidate, Form) else Form(candidate)
        if not form.shown.keys() <= takes.keys():
            continue
        try:
            form = _placed(model, form)
            ids = prompts(model, [3], form)["input_ids"][0]
            read = along(model, ids, form, len(ids))
            if float((read - along(model, ids, form.blank(), len(ids))).abs().max()) > 1e-3:
                return form
            errors.append("it says the same of a blank one")
        except Exception as error:  # not its form
            if form.block is not None and not _reads_text(model):
                return form  # what becomes of a model that runs in no way is seen with any
            errors.append(f"{type(error).__name__}: {error}")
    raise NoPicture(" ".join((errors or ["it has no pixel values"])[0].split())[:150])


def _reads_text(model: Any) -> bool:
    """Whether a model runs at all."""
    try:
        along(model, torch.arange(3, 9), Form({}, ()), 6)
    except Exception:
        return False
    return True


@torch.no_grad()
def _placed(model: Any, form: Form) -> Form:
    """The same with the tokens that hold its place."""
    if form.block is not None:
        return form
    encode = (model if hasattr(model, "get_image_features") else model.base_model).get_image_features
    described = inspect.signature(encode).parameters
    known = {name: value for name, value in form.shown.items() if name in described or "pixel" in name}
    found = encode(**known, return_dict=True).pooler_output
    count = sum(each.shape[-2] if each.dim() > 1 else 1 for each in found) if found[0].dim() < 3 else found.shape[-2]
    return replace(form, block=(placeholder(model),) * count)


def prompts(model: Any, words: list[int], form: Form) -> dict[str, torch.Tensor]:
    """Rows of three words, a picture, and more words, padded on the left."""
    generator = torch.Generator().manual_seed(7)
    rows = [
        [*torch.randint(3, VOCAB - 3, (3,), generator=generator).tolist(), *(form.block or ()),
         *torch.randint(3, VOCAB - 3, (more,), generator=generator).tolist()]
        for more in words
    ]  # fmt: skip
    longest = max(map(len, rows))
    ids = torch.tensor([[PAD] * (longest - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    return {"input_ids": ids, "attention_mask": mask, **form.of_rows(len(words)), **_kinds(model, ids, longest, form)}


def _kinds(model: Any, ids: torch.Tensor, prompt: int, form: Form) -> dict[str, torch.Tensor]:
    """What a model is told of its tokens, of which so many are the prompt: which hold a picture's place, or which are read at once."""
    if form.told is not None:
        return form.told(ids, prompt)
    takes = inspect.signature(model.forward).parameters
    if model.config.model_type == "paligemma":  # reads the prompt in both directions, and what follows in one
        return {"token_type_ids": (torch.arange(ids.shape[1]) >= prompt).long().expand_as(ids)}
    told = {"mm_token_type_ids"} | ({"token_type_ids"} if model.config.model_type == "gemma3" else set())
    return {name: (ids == placeholder(model)).long() for name in told if name in takes}


@torch.no_grad()
def along(model: Any, ids: torch.Tensor, form: Form, prompt: int) -> torch.Tensor:
    """Log-probs after every token of a row, `(length, vocab)`, of which the first are the prompt."""
    for module in (model, getattr(model, "model", None)):
        if getattr(module, "rope_deltas", None) is not None:
            module.rope_deltas = None  # type: ignore[union-attr]
    told = _kinds(model, ids[None], prompt, form)
    logits = model(input_ids=ids[None], use_cache=False, **form.shown, **told).logits[0]
    return logits[-len(ids) :].double().log_softmax(-1)  # some read a picture before the text, where no tokens are


class Oracle:
    """The formula from whole texts with their picture."""

    def __init__(self, terms: list[tuple[int, Any]], form: Form) -> None:
        self._terms, self._form = terms, form

    def values(self, row: int, prompt: torch.Tensor, text: torch.Tensor) -> Any:
        """The combination of log-probs for every token of a text, `(length, vocab)`, behind a prompt."""
        form, ids = self._form.of_row(row), torch.cat([prompt, text[:-1]])
        return sum(c * along(model, ids, form, len(prompt))[len(prompt) - 1 :] for c, model in self._terms)

    def check(self, row: int, prompt: torch.Tensor, text: torch.Tensor, steps: list[torch.Tensor], ruled: list[int]) -> None:
        """Raise [`Wrong`] unless these are its values for every token of a text, `(length,)`, behind a prompt."""
        expected = self.values(row, prompt, text)
        for n, (step, values) in enumerate(itertools.zip_longest(steps, expected)):
            values[ruled] = -torch.inf
            got = step.double().clone()
            got[ruled] = -torch.inf
            # What a model rules out, by -inf or by the lowest number that there is, is ruled out.
            both = (each.log_softmax(-1).clamp(min=-1e30) for each in (got, values))
            off = float((next(both) - next(both)).abs().max())
            if not off <= TOLERANCE:
                raise Wrong(f"log-probs off by {off:.2g} after {n} tokens")


def hold(generate: Callable[..., Any], oracle: Oracle, model: Any, form: Form, strategy: str, **more: Any) -> None:
    """Run `generate` with a strategy. Raise [`Wrong`] unless all values are the oracle's."""
    words, options = STRATEGIES[strategy]
    inputs, ruled = prompts(model, words, form), list((placeholder(model),) if form.ruled is None else form.ruled)
    torch.manual_seed(5)
    scored = "logits_processor" in more
    out = generate(
        **inputs, **options, **more, max_new_tokens=NEW, suppress_tokens=ruled or None, return_dict_in_generate=True, output_scores=True,
        output_logits=not scored,
    )  # fmt: skip
    each = len(out.sequences) // len(words)
    for i, sequence in enumerate(out.sequences):
        text, row = sequence[-NEW:], i // each
        prompt = inputs["input_ids"][row][inputs["attention_mask"][row].bool()]
        if "num_beams" in options:
            each_step = range(NEW)
            values = _scores(oracle, row, prompt, text, ruled if scored else [])
            off = abs(float(values[each_step, text].sum()) / NEW - float(out.sequences_scores[i]))
            if not off <= TOLERANCE:
                raise Wrong(f"the score of a beam is off by {off:.2g}")
        else:
            oracle.check(row, prompt, text, [step[i] for step in (out.scores if scored else out.logits)], ruled)


def _scores(oracle: Oracle, row: int, prompt: torch.Tensor, text: torch.Tensor, ruled: list[int]) -> torch.Tensor:
    total = oracle.values(row, prompt, text).log_softmax(-1)
    total[:, ruled] = -torch.inf
    return total.log_softmax(-1) if ruled else total


def _refused_whatever_it_sees(base: Any, tuned: Any, reference: Any) -> list[dict[str, str]]:
    """What is found of a kind that both leaves refuse as members, so that no picture is needed; empty of any other."""
    made = {
        WRAPPER: verdict(lambda: EFTForCausalLM.from_models(base, tuned=tuned, reference=reference) and None),
        ADD_ON: verdict(lambda: EFTLogitsProcessor(tuned, reference) and None),
    }
    if {found["result"] for found in made.values()} != {"refused"}:
        return []
    return [
        {"place": "formula", "leaf": leaf, "strategy": strategy, **found}
        for leaf, found in made.items()
        for strategy in STRATEGIES
        if leaf == WRAPPER or strategy not in WRAPPER_ONLY
    ]


def hold_type(name: str, note: Callable[[dict[str, Any]], Any] = lambda found: None) -> dict[str, Any]:
    """Every strategy of a type in both leaves: base, tuned and reference of the type, all of which see the picture."""
    models = [build(name.removesuffix(SUFFIX), seed) for seed in (1, 2, 3)]
    results: dict[str, Any] = {"class": type(models[0]).__name__, "held": []}
    if held := _refused_whatever_it_sees(*models):
        return {**results, "held": held}
    try:
        form = picture(models[0])
    except NoPicture as error:
        return {"unmade": f"no picture is known for it: {error}"}
    base, tuned, reference = models
    oracle = Oracle([(1, base), (1, tuned), (-1, reference)], form)
    for leaf in LEAVES:
        for strategy in STRATEGIES:
            if leaf == ADD_ON and strategy in WRAPPER_ONLY:
                continue
            results["now"] = {"place": "formula", "leaf": leaf, "strategy": strategy}
            note(results)

            def run(leaf: str = leaf, strategy: str = strategy) -> None:
                if leaf == ADD_ON:
                    processors = [EFTLogitsProcessor(tuned, reference, pad_token_id=PAD)]
                    return hold(base.generate, oracle, base, form, strategy, logits_processor=processors)
                model = EFTForCausalLM.from_models(base, tuned=tuned, reference=reference)
                drafts = {"assistant_model": tuned} if "draft" in strategy else {}
                return hold(model.generate, oracle, base, form, strategy, **drafts)

            found = verdict(run)
            if found["result"] not in ("exact", "refused"):
                alone = Oracle([(1, base)], form)
                plain = "left padding" if "draft" in strategy else strategy
                without = verdict(lambda plain=plain, alone=alone: hold(base.generate, alone, base, form, plain))
                found = _told_apart(found, without, ADD_ON)  # of both leaves: each model runs by its own methods
                found["plain"] = " ".join(without.values())[:300]
            results["held"].append({**results.pop("now"), **found})
    return results
