"""What the oracle says of one call of a composition, as it is and with the members' logits shaken."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import oracle
import torch
from composition_cases import TOLERANCE, Call, Case, options_of, plain_of, truncation_of, written_out
from families import BOS, EOS, PAD
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from hf_eft.decoding.speculative.coupling import Noise

# A difference counts if it is one for the oracle and for this many of its like whose members' logits are moved by their tolerance, each
# up or down by chance: a near tie (of two tokens, at the edge of a nucleus) falls the other way in every fourth of them.
SHAKEN = 33


class Sheet:
    r"""
    One call as the oracle sees it: rows without padding, no caches.

    Args:
        case ([`Case`]): The members and the recipe.
        call ([`Call`]): What is asked for.
        inputs (`Mapping[str, torch.LongTensor]`): `input_ids` and `attention_mask` of the call, padded: what processors see.
        prompts (`Sequence[tuple[int, ...]]`): The call's prompts.
        own (`Mapping[str, Sequence[tuple[int, ...]]]`): The prompts of members that have others.
    """

    def __init__(
        self,
        case: Case,
        call: Call,
        inputs: Mapping[str, torch.Tensor],
        prompts: Sequence[tuple[int, ...]],
        own: Mapping[str, Sequence[tuple[int, ...]]],
    ) -> None:
        self.case, self.call, self.inputs, self.prompts, self.own = case, call, inputs, list(prompts), own
        self.input_ids = inputs["input_ids"]
        self.size = min(member.width for member in case.members.values())
        self.width = next(iter(case.members.values())).width
        self.written, self.truncation = written_out(case), truncation_of(case)
        self.before, self.after = self._processors()
        self._logits: dict[Any, torch.Tensor] = {}
        self._edges: dict[Any, torch.Tensor] = {}
        self._found: dict[int, tuple[list[list[int]], torch.Tensor]] = {}

    # The combination --------------------------------------------------------------------------------------------------

    def _along(self, name: str, prompt: int, said: tuple[int, ...], shaken: int) -> torch.Tensor:
        """A member's logits for every token that follows its prompt up to the one behind `said`: (said + 1, size)."""
        member = self.case.members[name]
        text = tuple(self.own.get(name, self.prompts)[prompt]) + said
        key = (member, text)
        if key not in self._logits:
            self._logits[key] = oracle.along(plain_of(member), torch.tensor(text))[:, : self.size]
        logits = self._logits[key]
        if shaken:
            place = next(i for i, each in enumerate(self.case.members.values()) if each == member)
            generator = torch.Generator().manual_seed(hash((shaken, place, text)) & (2**63 - 1))
            signs = torch.randint(0, 2, logits.shape, generator=generator) * 2 - 1
            logits = logits + signs * TOLERANCE[member.dtype]
        return logits[-len(said) - 1 :]

    def _coefficients(self, prompt: int, step: int) -> dict[str, float]:
        if self.call.coefficients is not None:
            return dict(zip(self.written, self.call.coefficients[prompt], strict=True))
        return {name: v[min(step, len(v) - 1)] if isinstance(v, tuple) else v for name, v in self.written.items()}

    def _combine(self, logits: dict[str, torch.Tensor], prompt: int, step: int) -> torch.Tensor:
        total = oracle.combined(logits, self._coefficients(prompt, step), self.truncation)
        return torch.nn.functional.pad(total, (0, self.width - self.size), value=-torch.inf)

    def _scores(
        self, ids: torch.Tensor, prompt: int, said: tuple[int, ...], step: int, shaken: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The combined logits for the token that stands at `step`, and what they are when a token is chosen; `(width,)` each."""
        logits = {name: self._along(name, prompt, said, shaken)[step] for name in self.case.members}
        if self.case.leaf == "add-on":
            wide = torch.nn.functional.pad(logits["base"], (0, self.width - self.size), value=-torch.inf)
            seen = self._processed(self.before, ids, wide, prompt)[: self.size]
            combined = self._combine({**logits, "base": seen}, prompt, step)
            combined[: self.size][seen == -torch.inf] = -torch.inf
            return combined, self._processed(self.after, ids, combined.log_softmax(-1), prompt)
        combined = self._combine(logits, prompt, step)
        return combined, self._processed(self.after, ids, self._processed(self.before, ids, combined, prompt), prompt)

    # Tokens one by one ------------------------------------------------------------------------------------------------

    def problem(
        self,
        row: int,
        tokens: tuple[int, ...],
        step: int,
        token: int,
        noise: torch.Tensor | None,
        seen: Mapping[str, torch.Tensor],
        shaken: int,
    ) -> str | None:
        """What is wrong with a token and with the scores and logits that were returned for it."""
        prompt = row // self.call.returned
        ids = torch.cat([self.input_ids[prompt], torch.tensor(tokens[:step], dtype=torch.long)])
        logits, scores = self._scores(ids, prompt, tokens[:-1], step, shaken)
        bound = self.bound()
        for kind, wanted in (("logits", logits), ("scores", scores)):
            if kind not in seen:
                continue
            edge = self._edge(kind, ids, prompt, tokens[:-1], step) if shaken else None
            if (reason := differ(seen[kind], wanted, bound, edge)) is not None:
                return f"{kind} {reason}"
        if self.case.leaf == "wrapper" and bool((scores == -torch.inf).all()):
            return "there was nothing to choose from"
        if self.call.how == "reject":
            return None if scores[token] > -torch.inf else f"{token} cannot be drawn"
        chosen = int((scores if noise is None else scores + noise).argmax())
        return None if chosen == token else f"{token} was chosen, not {chosen}"

    def _edge(self, kind: str, ids: torch.Tensor, prompt: int, said: tuple[int, ...], step: int) -> torch.Tensor:
        """The tokens that some of the oracle's like rule out and others do not, `(width,)`: in a low precision, many at once."""
        key = (kind, prompt, said, step)
        if key not in self._edges:
            place = ("logits", "scores").index(kind)
            found = [self._scores(ids, prompt, said, step, shaken)[place] > -torch.inf for shaken in range(SHAKEN)]
            self._edges[key] = torch.stack(found).any(0) & ~torch.stack(found).all(0)
        return self._edges[key]

    def noise(self, rows: int, steps: int) -> list[torch.Tensor] | None:
        """What is added to the scores of every step where tokens are drawn, `(rows, width)`: the largest sum is the token."""
        if self.call.how == "sample":
            torch.manual_seed(self.case.seed)  # `torch.multinomial` divides probabilities by what it draws
            return [-torch.empty(rows, self.width).exponential_().double().log() for _ in range(steps)]
        if self.call.how != "match":
            return None
        streams = Noise(self.case.seed)

        def drawn(row: int, step: int) -> torch.Tensor:
            return torch.rand(self.width, generator=streams._generator(row, step), dtype=torch.float64)

        return [torch.stack([-(-drawn(row, step).log()).log() for row in range(rows)]) for step in range(steps)]

    def bound(self, steps: int = 1) -> float:
        """How far scores may be off: each member's tolerance, as often as it counts."""
        weights = max(
            sum(
                abs(value) * TOLERANCE[self.case.members[name].dtype]
                for name, value in self._coefficients(prompt, step).items()
            )
            for prompt in range(len(self.prompts))
            for step in range(self.call.new_tokens)
        )
        options = self.call.options
        stretch = options.get("repetition_penalty", 1.0) / min(1.0, options.get("temperature", 1.0))
        return 2 * weights * stretch * steps + 1e-4

    # Searches -----------------------------------------------------------------------------------------------------------

    def search(self, shaken: int) -> tuple[list[list[int]], torch.Tensor]:
        """The sequences and their scores that transformers' own search finds, without a cache."""
        if shaken not in self._found:
            self._found[shaken] = self._search(shaken)
        return self._found[shaken]

    def _search(self, shaken: int) -> tuple[list[list[int]], torch.Tensor]:
        length = self.input_ids.shape[1]

        def ask(ids: torch.Tensor, value: Any) -> torch.Tensor:
            copies = len(ids) // len(self.prompts)
            said = [tuple(row) for row in ids[:, length:].tolist()]
            return torch.stack([value(row, i // copies, said[i]) for i, row in enumerate(ids)])

        def combined(ids: torch.Tensor, prompt: int, said: tuple[int, ...]) -> torch.Tensor:
            logits = {name: self._along(name, prompt, said, shaken)[-1] for name in self.case.members}
            return self._combine(logits, prompt, len(said))

        def base(ids: torch.Tensor, prompt: int, said: tuple[int, ...]) -> torch.Tensor:
            logits = self._along("base", prompt, said, shaken)[-1]
            return torch.nn.functional.pad(logits, (0, self.width - self.size), value=-torch.inf)

        sheet = self

        class AddOn(LogitsProcessor):
            def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
                rows = []
                copies = len(input_ids) // len(sheet.prompts)
                for i, row in enumerate(input_ids):
                    said = tuple(row[length:].tolist())
                    logits = {name: sheet._along(name, i // copies, said, shaken)[-1] for name in sheet.case.members}
                    seen = scores[i, : sheet.size].double()
                    total = sheet._combine({**logits, "base": seen}, i // copies, len(said))
                    total[: sheet.size][seen == -torch.inf] = -torch.inf
                    rows.append(total.log_softmax(-1))
                return torch.stack(rows).to(scores.dtype)

        is_add_on = self.case.leaf == "add-on"
        model = self._model(lambda ids: ask(ids, base if is_add_on else combined))
        torch.manual_seed(self.case.seed)
        out = model.generate(
            **self.inputs, use_cache=False, return_dict_in_generate=True, output_scores=True,
            logits_processor=[AddOn()] if is_add_on else [], **options_of(self.call),
        )  # fmt: skip
        return out.sequences[:, length:].tolist(), out.sequences_scores.double()

    # Processors ---------------------------------------------------------------------------------------------------------

    def _processors(self) -> tuple[LogitsProcessorList, LogitsProcessorList]:
        """What `generate` makes of the options: the processors that run before an add-on and those that run after it."""
        if self.call.searches:
            return LogitsProcessorList(), LogitsProcessorList()  # the search has its own
        marker, made = _Marker(), []

        def catch(model: Any, input_ids: torch.Tensor, logits_processor: Any, **_: Any) -> torch.Tensor:
            made.extend(logits_processor)
            return input_ids

        options = {name: value for name, value in options_of(self.call).items() if name != "num_return_sequences"}
        self._model(lambda ids: ids).generate(
            **self.inputs, use_cache=False, custom_generate=catch, logits_processor=[marker], **options
        )
        at = made.index(marker)
        return LogitsProcessorList(made[:at]), LogitsProcessorList(made[at + 1 :])

    def _processed(self, processors: LogitsProcessorList, ids: torch.Tensor, scores: torch.Tensor, prompt: int) -> torch.Tensor:
        """What processors make of a row's scores, `(width,)`; they know a row by its place."""
        if not processors:
            return scores
        rows = len(self.prompts)
        return processors(ids.repeat(rows, 1), scores.repeat(rows, 1))[prompt]

    def _model(self, ask: Any) -> oracle.Stateless:
        model = oracle.Stateless(ask, self.width)
        model.generation_config = GenerationConfig(pad_token_id=PAD, bos_token_id=BOS, eos_token_id=EOS)
        return model


class _Marker(LogitsProcessor):
    """Where an add-on stands."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return scores


def differ(got: torch.Tensor, wanted: torch.Tensor, bound: float, edge: torch.Tensor | None = None) -> str | None:
    r"""
    How two distributions differ, up to a constant. With `edge`, `(width,)`, one may rule out what is in the other's last `bound`, and any
    token of the edge.
    """
    allowed, found = wanted > -torch.inf, got > -torch.inf
    both = allowed & found
    if not torch.equal(found, allowed) and (edge is None or not both.any()):
        return f"rule out {int((~found).sum())} tokens, not {int((~allowed).sum())}, or others"
    if not allowed.any():
        return None
    got, wanted = (scores - scores[both].logsumexp(-1) for scores in (got, wanted))
    for one, other, name in ((found & ~allowed, wanted[allowed], got), (allowed & ~found, got[found], wanted)):
        one = one if edge is None else one & ~edge
        if one.any() and float(name[one].max() - other.min()) > bound:
            return f"rule out {int((~found).sum())} tokens, not {int((~allowed).sum())}, and not by a near tie"
    off = float((got - wanted)[both].abs().max())
    return f"are {off:.2g} off, more than {bound:.2g}" if off > bound else None
