"""What a model answers to the items of a batch run: which of them go together, each row's own recipe and noise, and what came out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ..members.vocabulary import end_tokens
from ..prompts import member_inputs, padded
from ..prompts.messages import read_messages, read_text, with_system
from ..prompts.pictures import tokenizer_of
from ..recipe.shorthands import recipe
from .batch import PROMPT_FIELDS, RECIPE_FIELDS, Item
from .option_values import check_tokens
from .options import check_name, check_together, read_options
from .pictures import Processors, Seen, shown_with

if TYPE_CHECKING:
    from ..modeling_eft import EFTForCausalLM

_DRAFTED = 5  # tokens in a drafted block, where a batch run must not depend on the clock


@dataclass(frozen=True)
class _Row:
    """An item as the model reads it."""

    line: int
    prompts: dict[str, list[int]]  # by member; one that is not there reads what the first one does
    seen: Seen | None  # with pictures, what members are given
    options: dict[str, Any]
    coefficients: torch.Tensor | dict[str, torch.Tensor] | None  # (1, members), by phase if they differ
    seed: int

    @property
    def group(self) -> str:
        """Rows of one group are generated together."""
        alone = None if self.seen is None else self.line  # how pictures of several rows lie together is each family's own
        return json.dumps([self.options, type(self.coefficients).__name__, list(self.prompts), alone], sort_keys=True)


class Answerer:
    r"""
    Answers batches of items. What comes out of a row depends on the items of its batch and on the run's seed, and on nothing that was
    answered before. When sampling, a row's noise depends on seed and line only (`coupling="match"`).

    Args:
        model ([`EFTForCausalLM`]): The combination.
        tokenizer (`PreTrainedTokenizerBase` or `ProcessorMixin`): What prompts are written with. Conversations may show pictures if every
            member has a processor: this one, or one of `model.processors`.
        options (`Mapping[str, Any]`): Of `generate`, for all rows; a row's own go before. `max_new_tokens` must be among them.
        seed (`int`, *optional*, defaults to 0): The run's.
        chat (`bool`, *optional*, defaults to `False`): Whether a prompt is what a user says, in the chat template.
        system (`str`, *optional*): A system message for `chat`.
        speculative (`bool`, *optional*, defaults to `False`): Whether the first tuned member drafts.
        tokenizers (`Mapping[str, PreTrainedTokenizerBase]`, *optional*):
            By member: each reads a conversation in its own chat template, or as plain text where it has none. Without them, all read
            what `tokenizer` makes of it.
    """

    def __init__(
        self,
        model: EFTForCausalLM,
        tokenizer: Any,
        options: Mapping[str, Any],
        *,
        seed: int = 0,
        chat: bool = False,
        system: str | None = None,
        speculative: bool = False,
        tokenizers: Mapping[str, Any] | None = None,
    ) -> None:
        self.tokenizers = tokenizers
        self.model, self.tokenizer, self.options = model, tokenizer_of(tokenizer), read_options(options)
        check_together(self.options, model.generation_config.num_beams, speculative)
        check_tokens(self.options, model.vocab_size)
        self.seed, self.chat, self.system = seed, chat, system
        self.extra: dict[str, Any] = {}
        self._readers = Processors(model, tokenizer)
        if chat:  # a template that is not there, or takes no system message, is said before any line is read
            self._readers.read(with_system([{"role": "user", "content": "Hello"}], system))
        if speculative:
            if not (tuned := model.combination.tuned_names):
                raise ValueError(f"There is no tuned member to draft: the recipe is {model.combination}.")
            self.extra = {"assistant_model": model.members[tuned[0]]}

    def __call__(self, items: Sequence[Item]) -> list[dict[str, Any]]:
        """A result, or an `"error"`, for each item."""
        answers: dict[int, dict[str, Any]] = {}
        groups: dict[str, list[_Row]] = {}
        for item in items:
            try:
                row = self._row(item)
            except Exception as error:  # whatever a tokenizer raises for texts that it does not like
                answers[item.line] = {"error": _said(error)}
            else:
                groups.setdefault(row.group, []).append(row)
        for rows in groups.values():
            answers |= self._answers(rows)
        return [answers[item.line] for item in items]

    def _answers(self, rows: Sequence[_Row]) -> dict[int, dict[str, Any]]:
        """By line. Where a batch fails, its rows are tried alone, so that only those fail that cannot be answered."""
        try:
            replies = self._generate(rows)
            return {row.line: reply for row, reply in zip(rows, replies, strict=True)}
        except Exception as error:
            torch.zeros(1, device=self.model.device).add(1).cpu()  # a device that failed fails here: no line is to blame
            if len(rows) == 1:
                return {rows[0].line: {"error": _said(error)}}
        # Not while the error is at hand, which holds the states of the batch: what is alone may fit where they did not.
        return {line: answer for row in rows for line, answer in self._answers([row]).items()}

    # What a row reads ---------------------------------------------------------------------------------------------------

    def _row(self, item: Item) -> _Row:
        own = dict(item.options)
        seed = own.pop("seed", None)
        if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int)):
            raise ValueError(f"`seed` must be a whole number, got {seed!r}")
        for name in own:
            check_name(name, (*PROMPT_FIELDS, *RECIPE_FIELDS, "id", "seed"))
        options = read_options(own, before=self.options)
        check_together(options, self.model.generation_config.num_beams, bool(self.extra))
        check_tokens(options, self.model.vocab_size)
        prompts, seen = self._read(item)
        check_length(self.model, max(map(len, prompts.values())) if seen is None else seen.longest, options["max_new_tokens"])
        noise = _noise(self.seed if seed is None else seed, item.line)
        return _Row(item.line, prompts, seen, options, self._coefficients(item.recipe), noise)

    def ids(self, item: Item) -> list[int]:
        """The tokens of an item's prompt, as the first member reads it."""
        return next(iter(self._read(item)[0].values()))

    def given(self, item: Item) -> dict[str, Any]:
        """An item's prompt as `analyse` takes it: the first member's tokens, and with pictures what members see."""
        prompts, seen = self._read(item)
        ids = torch.tensor(next(iter(prompts.values())))
        return {"prompt": ids, **({} if seen is None else seen.pictures)}

    def _read(self, item: Item) -> tuple[dict[str, list[int]], Seen | None]:
        """The tokens of an item's prompt, by member; of the first one alone where all read the same, or see pictures."""
        first = next(iter(self.model.members))
        pictures = self._readers.any
        messages = None if item.messages is None else read_messages(item.messages, pictures=pictures)
        if messages is None and self.chat:
            said = {"role": "user", "content": shown_with(str(item.prompt), item.images)}
            messages = with_system([said], self.system, pictures=pictures)
        seen = None
        if messages is None:
            read_text(item.prompt, "the prompt")
            prompts = {first: list(self.tokenizer(item.prompt)["input_ids"])}
        else:
            ids, seen = self._readers.read(messages)  # one template at least is needed
            prompts = {first: ids}
            if self.tokenizers is not None and seen is None:
                made = member_inputs([messages], {name: self.tokenizers[name] for name in self.model.members})
                prompts = {name: inputs["input_ids"][0].tolist() for name, inputs in made.items()}
        if not prompts[first]:
            raise ValueError("the prompt is empty: the tokenizer made no token of it")
        return prompts, seen

    def _coefficients(self, own: Mapping[str, Any]) -> torch.Tensor | dict[str, torch.Tensor] | None:
        if not own:
            return None
        names, now = list(self.model.members), self.model.combination
        weights = own.get("weights")
        if weights is not None and not isinstance(weights, dict):
            raise ValueError(f'`weights` must be numbers by member, as in {{"helpful": 0.7}}, got {weights!r}')
        for name, value in {**own, **(weights or {})}.items():
            numbers = list(value.values()) if isinstance(value, dict) and value else [value]
            if name != "weights" and any(isinstance(n, bool) or not isinstance(n, (int, float)) for n in numbers):
                raise ValueError(f"{name!r} must be a number, or one for each phase, got {value!r}")
        return recipe(names, own.get("alpha"), own.get("beta"), weights, now.truncation, now.phases).row(names)

    def reply(self, item: Item, streamer: Any = None) -> list[dict[str, Any]]:
        """What follows one prompt, with the common noise of torch rather than its own."""
        prompts, seen = self._read(item)
        return self._decoded([prompts], seen, dict(self.options), {"streamer": streamer})

    # What comes out -----------------------------------------------------------------------------------------------------

    def _generate(self, rows: Sequence[_Row]) -> list[dict[str, Any]]:
        options, config = rows[0].options, self.model.generation_config
        count = options.get("num_return_sequences", config.num_return_sequences) or 1
        torch.manual_seed(rows[0].seed)  # for beams that sample; everything else has the rows' own noise
        extra: dict[str, Any] = {"num_assistant_tokens": _DRAFTED} if self.extra else {}
        if options.get("num_beams", config.num_beams) in (None, 1):
            seeds = [row.seed if n == 0 else _noise(row.seed, n) for row in rows for n in range(count)]
            extra |= {"coupling": "match", "seed": seeds}
        if rows[0].coefficients is not None:
            extra["coefficients"] = _stacked([row.coefficients for row in rows])
        replies = self._decoded([row.prompts for row in rows], rows[0].seen, options, extra)
        if count == 1:
            return replies
        return [{"replies": replies[start : start + count]} for start in range(0, len(replies), count)]

    def _decoded(
        self,
        rows: Sequence[Mapping[str, list[int]]],
        seen: Seen | None,
        options: Mapping[str, Any],
        extra: dict[str, Any],
    ) -> list[dict[str, Any]]:
        by_member = {name: padded([row[name] for row in rows], self.pad(options)) for name in rows[0]}
        inputs = by_member.pop(next(iter(by_member)))
        if by_member:
            extra["member_inputs"] = by_member
        if seen is not None:
            extra |= seen.pictures
        given: dict[str, Any] = {name: value.to(self.model.device) for name, value in inputs.items()}
        if "stop_strings" in options:
            extra["tokenizer"] = self.tokenizer
        options = {**self.extra, **extra, "pad_token_id": self.pad(options), **options}
        sequences = self.model.generate(**given, **options)  # (rows * count, length)
        return [self._reply(new, options) for new in sequences[:, inputs["input_ids"].shape[1] :].tolist()]

    def pad(self, options: Mapping[str, Any] | None = None) -> int:
        """The token that rows are padded with."""
        options = self.options if options is None else options
        known = (options.get("pad_token_id"), self.tokenizer.pad_token_id, *self._ends(options))
        return int(next((i for i in known if i is not None), 0))

    def _ends(self, options: Mapping[str, Any]) -> list[int]:
        given = options.get("eos_token_id")
        return end_tokens(self.model.generation_config) if given is None else [given] if isinstance(given, int) else list(given)

    def _reply(self, tokens: list[int], options: Mapping[str, Any]) -> dict[str, Any]:
        ends, pad = set(self._ends(options)), self.pad(options)
        length = next((i + 1 for i, token in enumerate(tokens) if token in ends), None)
        if length is None:  # ended by a stop string or by the limit: what is behind it is padding
            length = len(tokens)
            while length and tokens[length - 1] == pad:
                length -= 1
        ended = (length > 0 and tokens[length - 1] in ends) or length < options["max_new_tokens"]
        text = self.tokenizer.decode(tokens[:length], skip_special_tokens=True)
        return {"text": text, "tokens": length, "finish": "stop" if ended else "length"}


def _stacked(rows: Sequence[Any]) -> torch.Tensor | dict[str, torch.Tensor]:
    """The coefficients of several rows, `(rows, members)`; by phase, where they are."""
    if isinstance(rows[0], torch.Tensor):
        return torch.cat(list(rows))
    return {phase: torch.cat([row[phase] for row in rows]) for phase in rows[0]}


def check_length(model: EFTForCausalLM, length: int, new: Any) -> None:
    """Raise if a prompt of `length` tokens and `new` more are over what a member reads, or `new` is no number of tokens."""
    if isinstance(new, bool) or not isinstance(new, int) or new < 1:
        raise ValueError(f"`max_new_tokens` must be a whole number, 1 or more, got {new!r}")
    for name, member in model.members.items():
        most = getattr(member.config.get_text_config(decoder=True), "max_position_embeddings", None)
        if most is not None and length + new > most:
            raise ValueError(
                f"the prompt is too long: its {length} tokens and {new} more are over the {most} that the member {name!r} reads"
            )


def _noise(seed: int, line: int) -> int:
    """A row's seed, from the run's and the number of its line."""
    return int.from_bytes(hashlib.blake2b(f"{seed}/{line}".encode(), digest_size=8).digest(), "little") >> 1


def _said(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, ValueError) and text else f"{type(error).__name__}: {text}"
