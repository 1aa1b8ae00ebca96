"""A composition held against the stateless oracle, call by call."""

from __future__ import annotations

import functools
import linecache
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from composition_cases import Call, Case, given, model_of, options_of, outsider, padded, recipe_of
from composition_oracle import SHAKEN, Sheet
from families import EOS, PAD
from paged import config
from transformers import GenerationConfig

import hf_eft
from hf_eft import EFTForCausalLM, EFTLogitsProcessor
from hf_eft.members.releases import CACHE, cache_of

_PACKAGE = Path(hf_eft.__file__).parent


class Mismatch(AssertionError):
    """The package says something else than the oracle, and no tie explains it."""


@dataclass
class Outcome:
    """What became of a case: the package's reason if it refused it, how much was held, what a near tie excuses or leaves open."""

    refused: str | None = None
    steps: int = 0
    near: int = 0
    open: int = 0


@dataclass
class Result:
    """What a call gave: the rows' new tokens, and what was asked for beside them."""

    rows: list[list[int]]
    out: Any
    sequences: torch.Tensor | None


def check(case: Case) -> Outcome:
    """
    Run a case and hold every token, score and logit against the oracle.

    Raises:
        `Mismatch`: If they differ. Whatever is raised by others than the package is passed on: it is a fault as well.
    """
    outcome = Outcome()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        leaf = _leaf(case)
        if isinstance(leaf, str):
            return Outcome(refused=leaf)
        prompts, cache = [tuple(row) for row in case.prompts], None
        inputs = padded(case.prompts)
        own: dict[str, list[tuple[int, ...]]] = {}
        for number, call in enumerate(case.calls):
            follows = case.calls[number + 1] if number + 1 < len(case.calls) else Call()
            if not call.goes_on:
                prompts, cache, inputs = [tuple(row) for row in case.prompts], None, padded(case.prompts)
                own = {name: list(rows) for name, rows in call.own.items()}
            sheet = Sheet(case, call, inputs, prompts, own)
            try:
                result = _run(case, call, leaf, inputs, own, cache, follows.goes_on)
            except Exception as error:
                if not _is_ours(error) and not _is_theirs(error, sheet):
                    raise
                outcome.refused = str(error)
                return outcome
            hold(sheet, call, result, outcome)
            if follows.goes_on:
                cache = cache_of(result.out)
                said = [tuple(row) + follows.turn for row in result.sequences[:, inputs["input_ids"].shape[1] :].tolist()]
                prompts = [row + more for row, more in zip(prompts, said, strict=True)]
                own = {name: [row + more for row, more in zip(rows, said, strict=True)] for name, rows in own.items()}
                more = torch.tensor(said)
                inputs = {
                    "input_ids": torch.cat([inputs["input_ids"], more], dim=1),
                    "attention_mask": torch.cat([inputs["attention_mask"], torch.ones_like(more)], dim=1),
                }
    return outcome


def _is_ours(error: Exception) -> bool:
    """Whether the package refused by a `raise` of its own, with a reason."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None or not str(error):
        return False
    file = trace.tb_frame.f_code.co_filename
    return Path(file).is_relative_to(_PACKAGE) and linecache.getline(file, trace.tb_lineno).strip().startswith("raise ")


def _is_theirs(error: Exception, sheet: Sheet) -> bool:
    """Whether an add-on's base raises the same without the add-on, or the search that asks the oracle: an add-on knows no beams."""
    case, call = sheet.case, sheet.call

    def alone() -> None:
        model_of(case.members["base"]).generate(
            **sheet.inputs, **options_of(call), **_states(call), **_drafts(case, call, None)
        )

    def asked() -> None:
        if call.searches:
            sheet.search(0)

    for other in (alone, asked) if case.leaf == "add-on" else ():
        try:
            other()
        except Exception as theirs:
            if (type(theirs), str(theirs)) == (type(error), str(error)):
                return True
    return False


# Running ----------------------------------------------------------------------------------------------------------------


def _leaf(case: Case) -> Any:
    """The wrapper or the add-on, or why there is none."""
    arguments = given(case)
    base = arguments.pop("base")
    try:
        if case.leaf == "add-on":
            pad = PAD if case.told == "pad" else None
            return EFTLogitsProcessor(**arguments, combination=recipe_of(case), pad_token_id=pad)
        return EFTForCausalLM.from_models(base, **arguments, combination=recipe_of(case))
    except Exception as error:
        if not _is_ours(error):
            raise
        return str(error)


def _own(own: dict[str, Any]) -> dict[str, dict[str, torch.Tensor]]:
    return {name: padded(tuple(rows)) for name, rows in own.items()}


def _run(case: Case, call: Call, leaf: Any, inputs: dict[str, torch.Tensor], own: Any, cache: Any, goes_on: bool) -> Result:
    if case.leaf == "batch":
        return _run_batch(case, call, leaf)
    options = options_of(call)
    main = leaf
    if case.leaf == "add-on":
        main = model_of(case.members["base"])
        options["logits_processor"] = [leaf]
        leaf.attention_mask = inputs["attention_mask"] if case.told == "mask" or own else None
        leaf.member_inputs = _own(own) or None
    else:
        if own:
            options["member_inputs"] = _own(own)
        if call.coefficients is not None:
            options["coefficients"] = torch.tensor(call.coefficients)
        if call.how == "match":
            options |= {"coupling": "match", "seed": case.seed}
    if call.scores or call.searches or goes_on:
        options |= {"return_dict_in_generate": True, "output_scores": True}
        options["output_logits"] = not call.searches and case.leaf == "wrapper"
    options |= _states(call) | _drafts(case, call, leaf)
    if cache is not None:
        options[CACHE] = cache
    torch.manual_seed(case.seed)
    out = main.generate(**inputs, **options)
    sequences = out if isinstance(out, torch.Tensor) else out.sequences
    copies = len(sequences) // len(inputs["input_ids"])
    expected = inputs["input_ids"].repeat_interleave(copies, dim=0)
    if sequences[:, : expected.shape[1]].tolist() != expected.tolist():
        raise Mismatch("the prompts came back changed")
    rows = [_ended(row, call) for row in sequences[:, expected.shape[1] :].tolist()]
    if sequences.shape[1] - expected.shape[1] != max(map(len, rows)):
        raise Mismatch(f"rows of {list(map(len, rows))} tokens came back {sequences.shape[1] - expected.shape[1]} wide")
    return Result(rows, out, sequences)


def _states(call: Call) -> dict[str, Any]:
    """Which states a call keeps."""
    kept = {"static": {"cache_implementation": "static"}, "chunks": {"prefill_chunk_size": 2}, "none": {"use_cache": False}}
    return dict(kept.get(call.states or "", {}))


def _drafts(case: Case, call: Call, leaf: Any) -> dict[str, Any]:
    """What makes a call speculative."""
    if call.drafter is None:
        return {}
    if call.drafter == "lookup":
        return {"prompt_lookup_num_tokens": call.block or 3}
    if call.drafter == "outsider":
        assistant = outsider(case)
    elif call.drafter == "small":
        assistant = leaf.small_combination
    elif call.drafter == "itself":
        assistant = leaf
    else:
        assistant = leaf.members[call.drafter] if case.leaf == "wrapper" else model_of(case.members[call.drafter])
    return {"assistant_model": assistant, **({"num_assistant_tokens": call.block} if call.block else {})}


def _run_batch(case: Case, call: Call, leaf: Any) -> Result:
    generation = GenerationConfig(**{"eos_token_id": EOS, "pad_token_id": PAD, **options_of(call)})
    more = {} if call.coefficients is None else {"coefficients": torch.tensor(call.coefficients)}
    outputs = leaf.generate_batch([list(row) for row in case.prompts], generation, config(), **more)
    return Result([_ended(output.generated_tokens, call) for output in outputs.values()], None, None)


def ends_of(call: Call) -> list[int]:
    ends = call.options.get("eos_token_id", EOS)
    return [ends] if isinstance(ends, int) else list(ends)


def _ended(row: list[int], call: Call) -> list[int]:
    """
    A row's tokens up to its end: the first end token, which only padding follows, or the most that were asked for.

    Searches of transformers fill with the end token where the padding token is 0, and return sequences that cannot be, short or beyond
    their ends, where there are too few others.
    """
    at = next((i for i, token in enumerate(row) if token in ends_of(call)), None)
    if at is None:
        if len(row) != call.new_tokens and not call.searches:
            raise Mismatch(f"a row that did not end has {len(row)} tokens of {call.new_tokens}: {row}")
        return row
    if any(token != PAD for token in row[at + 1 :]) and not call.searches:
        raise Mismatch(f"a row goes on after its end: {row}")
    return row[: at + 1]


# Holding ----------------------------------------------------------------------------------------------------------------


def hold(sheet: Sheet, call: Call, result: Result, outcome: Outcome) -> None:
    """Every token of every row, or the whole search."""
    if call.searches:
        return _hold_search(sheet, call, result, outcome)
    noise = sheet.noise(len(result.rows), max(map(len, result.rows)))
    for row, tokens in enumerate(result.rows):
        for step, token in enumerate(tokens):
            seen = {}
            for kind in ("scores", "logits"):
                if (steps := getattr(result.out, kind, None)) is not None:
                    seen[kind] = steps[step][row].double()
            ask = functools.partial(sheet.problem, row, tuple(tokens), step, token, noise and noise[step][row], seen)
            outcome.steps += 1
            if (problem := ask(0)) is None:
                continue
            if all(ask(shaken) for shaken in range(1, SHAKEN)):
                raise Mismatch(f"row {row}, token {step} of {tokens}: {problem}")
            outcome.near += 1
    return None


def _hold_search(sheet: Sheet, call: Call, result: Result, outcome: Outcome) -> None:
    """The sequences of every prompt and their scores; where they differ, whether a tie could make the oracle's differ as well."""
    per_prompt = len(result.rows) // len(sheet.prompts)
    scores = result.out.sequences_scores.double()

    def found(shaken: int, part: slice) -> tuple[list[list[int] | None], torch.Tensor]:
        rows, sums = sheet.search(shaken)
        return _possible([_ended(row, call) for row in rows[part]], sums[part]), sums[part]

    for start in range(0, len(result.rows), per_prompt):
        part = slice(start, start + per_prompt)
        outcome.steps += 1
        got = _possible(result.rows[part], scores[part])
        wanted, sums = found(0, part)
        if got == wanted:
            off = max(
                (abs(float(a - b)) for a, b, row in zip(scores[part], sums, got, strict=True) if row is not None), default=0.0
            )
            if off > sheet.bound(call.new_tokens):
                raise Mismatch(f"beams of prompt {start // per_prompt} score {scores[part]}, not {sums}")
            continue
        others = [found(shaken, part)[0] for shaken in range(1, SHAKEN, 2)]
        if got in others:
            outcome.near += 1
        elif any(other != wanted for other in others):
            outcome.open += 1
        else:
            raise Mismatch(f"beams of prompt {start // per_prompt} are {got}, not {wanted}")


def _possible(rows: list[list[int]], scores: torch.Tensor) -> list[list[int] | None]:
    """The sequences of a search. Where there are fewer than are asked for, it returns others, whose scores say that they cannot be."""
    return [row if score > -1e8 else None for row, score in zip(rows, scores, strict=True)]
