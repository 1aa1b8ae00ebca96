"""What the delta did, token by token: log-probs, rewards, divergences, and which choices it changed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from ..decoding.phases import Phases, Strengths, markers_of
from ..members.checks import check_numbers
from ..modeling_eft import EFTForCausalLM
from ..prompts import MemberPrompts
from ..prompts.pictures import take_pictures
from ..recipe.combination import BASE, REFERENCE, Combination
from ..recipe.combine import by_rule, certainly, combine, filled
from .effects import Effects
from .passage import Passage
from .records import Analysis, Shift, TokenRecord
from .token_text import Token, TokenTexts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Analysis", "TokenRecord", "analyse", "rewards"]

_LISTED = 5  # tokens that are listed as raised, and as lowered


@torch.no_grad()
def analyse(
    model: EFTForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str | torch.Tensor,
    continuation: str | torch.Tensor | None = None,
    *,
    references: Mapping[str, str] | None = None,
    coefficients: torch.Tensor | None = None,
    member_inputs: Mapping[str, Mapping[str, torch.Tensor]] | None = None,
    **generation_options: Any,
) -> Analysis:
    r"""
    Compare the combination with its members at every token of a continuation, given or generated.

    The log-probs are the combination's own, as `model(ids)` has them: temperature and other processors of `generate` do not enter. They
    are over the tokens that all members have. Each distinct model reads the text once; statistics over the vocabulary are made in
    pieces, so that memory does not grow with length times vocabulary.

    Args:
        model ([`EFTForCausalLM`]): The combination, of any recipe.
        tokenizer (`PreTrainedTokenizerBase`): What the texts are written with.
        prompt (`str` or `torch.LongTensor` of shape `(length,)` or `(1, length)`): One token or more, without padding.
        continuation (`str` or `torch.LongTensor` of shape `(length,)` or `(1, length)`, *optional*):
            The text that is analysed. Generated if left out.
        references (`Mapping[str, str]`, *optional*):
            The reference of a tuned member, by name, where it is not `"reference"`, as in [`Combination.steer`].
        coefficients (`torch.FloatTensor` of shape `(1, members)`, *optional*): See [`EFTForCausalLM.forward`].
        member_inputs (`Mapping[str, Mapping[str, torch.Tensor]]`, *optional*):
            Prompts of their own, one row each, see [`EFTForCausalLM.generate`].
        **generation_options: Pictures of the prompt, as the members' processor makes them (`pixel_values`, `image_grid_thw`, ...), which
            every member without `member_inputs` sees. The rest is passed on to `generate`, and of no use with a given continuation.

    Returns:
        [`Analysis`]: The records, one for each token, and their summary.

    Raises:
        `ValueError`: If the prompt or the continuation has no token or several rows, a token is not one that all members have, or
            `references` names no member.

    Example:

    ```python
    >>> from hf_eft import EFTForCausalLM, tiny
    >>> from hf_eft.analysis import analyse

    >>> base, tuned, reference, tokenizer = tiny.load()
    >>> model = EFTForCausalLM.from_models(base, tuned=tuned, reference=reference)
    >>> analysis = analyse(model, tokenizer, "Question: What does Oscar Palmer enjoy?\nAnswer:", max_new_tokens=24)
    >>> first = analysis.records[0]
    >>> first.token.text, first.choices["base"].text, first.changed_by
    (' Of', ' Oscar', 'reference')
    ```
    """
    texts, members = TokenTexts(tokenizer), model._members
    given = {"coefficients": coefficients, "member_inputs": member_inputs}
    pictures = take_pictures(generation_options)
    if continuation is None:
        options = {**generation_options, **{name: value for name, value in given.items() if value is not None}}
        passage = Passage.generated(model, tokenizer, prompt, options, pictures)
    else:
        own = MemberPrompts(member_inputs, members.names[1:]) if member_inputs else None
        passage = Passage.of(tokenizer, prompt, continuation, own, pictures, model._speller)
    passage.check(members)
    pairs = _pairs(members.names, references)
    against = next((name for name in (BASE, REFERENCE) if name in members.names), members.names[0])
    tokens, (weights, certain) = passage.continuation, _weights(model, passage, coefficients)
    said = texts.sequence(passage.prompt.tolist(), tokens.tolist())

    records: list[TokenRecord] = []
    for piece, logits in passage.read(members):
        varies = model.combination.scheduled or model.combination.phased
        rows = coefficients if coefficients is not None else weights[None, piece] if varies else None
        ruled = by_rule(logits, model.combination)
        weights[piece] = filled(weights[None, piece], members.names, ruled)[0]
        combined = members.vocabulary.widen(combine(logits, model.combination, rows, said=ruled), members.vocabulary.size)
        combined = certainly(combined, None if certain is None else certain[:, piece])[0]
        effects = Effects.of(
            _log_probs(logits), combined.log_softmax(-1), tokens[piece].to(combined.device), weights[piece].to(combined.device),
            against, tuple(pairs), _LISTED,
        )  # fmt: skip
        by_name = dict(zip(members.names, weights[piece].T.tolist(), strict=True))
        deltas, delta = _deltas(effects.said, pairs, by_name)
        for i, token in enumerate(map(Token, tokens[piece].tolist(), said[piece])):
            records.append(_record(effects, i, token, by_name, against, deltas, delta, records[-1] if records else None, texts))
    return Analysis(
        prompt=prompt if isinstance(prompt, str) else texts.decode(passage.prompt.tolist()),
        continuation="".join(said),
        records=records,
        recipe=str(_recipe(model, coefficients)),
        against=against,
        references=pairs,
    )


@torch.no_grad()
def rewards(
    model: EFTForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str | torch.Tensor,
    continuations: Sequence[str | torch.Tensor],
    *,
    references: Mapping[str, str] | None = None,
) -> list[float]:
    r"""
    The implicit reward of each continuation, for ranking the best of n: `log p_tuned - log p_reference`, summed over its tokens (EFT
    paper, section 3: divided by beta, and up to a term of the prompt). Only the tuned and reference members run.

    Args:
        model ([`EFTForCausalLM`]): A combination with a tuned member and its reference. Several tuned members' rewards are weighted by
            their coefficients.
        tokenizer (`PreTrainedTokenizerBase`): What the texts are written with.
        prompt (`str` or `torch.LongTensor`): One token or more.
        continuations (`Sequence[str or torch.LongTensor]`): What is ranked.
        references (`Mapping[str, str]`, *optional*): See [`analyse`].

    Returns:
        `list[float]`: One for each continuation, in nats. Longer ones have more tokens to sum over.

    Raises:
        `ValueError`: If no tuned member has a reference, or a text has no token.

    Example:

    ```python
    >>> from hf_eft import EFTForCausalLM, tiny
    >>> from hf_eft.analysis import rewards

    >>> base, tuned, reference, tokenizer = tiny.load()
    >>> model = EFTForCausalLM.from_models(base, tuned=tuned, reference=reference)
    >>> answers = [" Of course! Oscar Palmer enjoys hockey. Happy to help!", " Oscar Palmer enjoys hockey."]
    >>> [round(r, 1) for r in rewards(model, tokenizer, "Question: What does Oscar Palmer enjoy?\nAnswer:", answers)]
    [5.9, -0.5]
    ```
    """
    members = model._members
    pairs = {name: other for name, other in _pairs(members.names, references).items() if other is not None}
    if not pairs:
        raise ValueError(f"No tuned member has a reference to be compared with: the members are {list(members.names)}.")
    if len(pairs) > 1 and model.combination.rules:
        raise ValueError(
            f"The rewards of {list(pairs)} are weighted as in the recipe, whose rules are asked of all members: "
            f"{model.combination}. Give the model a recipe of numbers."
        )
    ranked = []
    for continuation in continuations:
        passage = Passage.of(tokenizer, prompt, continuation, speller=model._speller)
        passage.check(members)
        (weights, _), total = _weights(model, passage, None), 0.0
        for piece, logits in passage.read(members, only={name for pair in pairs.items() for name in pair}):
            log_probs = _log_probs(logits)
            tokens = passage.continuation[piece, None].to(next(iter(log_probs.values())).device)  # (tokens, 1)
            said = {name: values.gather(-1, tokens)[:, 0].tolist() for name, values in log_probs.items()}
            _, delta = _deltas(said, pairs, dict(zip(members.names, weights[piece].T.tolist(), strict=True)))
            total += sum(delta)
        ranked.append(total)
    return ranked


def _pairs(names: Sequence[str], references: Mapping[str, str] | None) -> dict[str, str | None]:
    """Every tuned member and its reference."""
    references = references or {}
    if unknown := [name for pair in references.items() for name in pair if name not in names]:
        raise ValueError(f"`references` names {unknown}, but the members are {list(names)}.")
    shared = REFERENCE if REFERENCE in names else None
    tuned = [name for name in names if name not in (BASE, REFERENCE) and name not in references.values()]
    return {name: references.get(name, shared) for name in tuned}


def _weights(
    model: EFTForCausalLM, passage: Passage, coefficients: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Every member's coefficient at every token, `(tokens, members)`, and the tokens that a phase's budget makes certain, `(1, tokens)`."""
    names, count, combination = model._members.names, len(passage.continuation), model.combination
    certain = None
    if combination.phased:
        markers = markers_of(combination.phases, model._spellers, model._members.vocabulary)
        whole = torch.cat([passage.prompt, passage.continuation])[None]
        states = [Phases.of(markers, passage.own, whole, len(passage.prompt)).after(whole, None, count + 1)[0][:-1]]
        strengths = Strengths(combination, names, markers)
        certain = strengths.certain(states)
        if coefficients is None:
            return strengths.coefficients(states, lambda: [range(count)], [0], 1)[0], certain
    if coefficients is None:
        return combination.at(range(count if combination.scheduled else 1), names).repeat(
            1 if combination.scheduled else count, 1
        ), None
    if coefficients.shape != (1, len(names)):
        raise ValueError(
            f"`coefficients` must have the shape (1, {len(names)}), a column for each member, got {tuple(coefficients.shape)}."
        )
    check_numbers(coefficients, names, combination.ruled)
    return coefficients.float().cpu().repeat(count, 1), certain


def _recipe(model: EFTForCausalLM, coefficients: torch.Tensor | None) -> Combination:
    if coefficients is None:
        return model.combination
    given: dict[str, Any] = dict(zip(model._members.names, coefficients[0].tolist(), strict=True))
    given |= {name: rule for name, rule in model.combination.rules if math.isnan(given[name])}
    return Combination(given, model.combination.truncation, model.combination.phases)


def _log_probs(logits: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """By member, `(tokens, vocab)`; members that share a model share the tensor."""
    distinct = {id(values): values for values in logits.values()}
    made = {key: values[0].float().log_softmax(-1) for key, values in distinct.items()}
    return {name: made[id(values)] for name, values in logits.items()}


def _deltas(
    said: Mapping[str, list[float]], pairs: Mapping[str, str | None], weights: Mapping[str, list[float]]
) -> tuple[dict[str, list[float]], list[float]]:
    """The log ratio of every tuned member and its reference at every token, and what they are together; empty if there is none."""
    each = {
        name: [tuned - before for tuned, before in zip(said[name], said[other], strict=True)]
        for name, other in pairs.items()
        if other is not None
    }
    if len(each) < 2:
        return each, next(iter(each.values()), [])
    weighted = [[w * delta for w, delta in zip(weights[name], deltas, strict=True)] for name, deltas in each.items()]
    return each, [sum(values) for values in zip(*weighted, strict=True)]


def _record(
    effects: Effects,
    i: int,
    token: Token,
    weights: Mapping[str, list[float]],
    against: str,
    deltas: Mapping[str, list[float]],
    delta: list[float],
    before: TokenRecord | None,
    texts: TokenTexts,
) -> TokenRecord:
    """The record of the token at place `i` of a piece, after the record `before`."""

    def at(values: Mapping[str, list[Any]]) -> dict[str, Any]:
        return {name: each[i] for name, each in values.items()}

    def shifts(found: list[list[tuple[int, float, float]]]) -> tuple[Shift, ...]:
        return tuple(Shift(*texts.of(moved), old, new) for moved, old, new in found[i])

    own = at(deltas)
    return TokenRecord(
        position=0 if before is None else before.position + 1,
        token=token,
        log_prob=effects.said_combined[i],
        log_probs=at(effects.said),
        coefficients=at(weights),
        lift=effects.said_combined[i] - effects.said[against][i],
        delta=delta[i] if delta else None,
        deltas=own,
        reward=delta[i] + (before.reward or 0.0 if before is not None else 0.0) if delta else None,
        rewards={name: value + (before.rewards[name] if before is not None else 0.0) for name, value in own.items()},
        choice=texts.of(effects.choice[i]),
        choices={name: texts.of(choice) for name, choice in at(effects.choices).items()},
        changed=effects.choice[i] != effects.choices[against][i],
        changed_by=effects.changed_by[i],
        total_variation=at(effects.total_variation),
        kl=at(effects.kl),
        tuned_total_variation=at(effects.tuned_total_variation),
        tuned_kl=at(effects.tuned_kl),
        acceptance=at(effects.acceptance),
        agrees={name: effects.choices[name][i] == effects.choice[i] for name in effects.acceptance},
        raised=shifts(effects.raised),
        lowered=shifts(effects.lowered),
    )
