"""What a request asks for, read once: its prompt, how tokens are chosen, and what ends an answer."""

from __future__ import annotations

import asyncio
import copy
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from transformers import GenerationConfig, LogitsProcessorList

from ..files.json_lines import parsed
from ..grammar import GrammarLogitsProcessor, Grammars, Thinking
from ..grammar.calls import response_format
from ..members.vocabulary import end_tokens
from ..programs.option_values import check_tokens
from ..programs.options import check_name, check_together, read_options
from ..programs.pictures import Seen
from ..prompts.pictures import tokenizer_of
from ..recipe.shorthands import recipe
from .answers import Answer
from .bodies import MOST, Body
from .chats import Chats
from .images import Limits
from .logprobs import Spelling
from .penalties import LogitBias, Penalties
from .tools import Choice, Parser

if TYPE_CHECKING:
    from ..modeling_eft import EFTForCausalLM

_UNSAID = 1024  # new tokens, where no member says how many positions it has


@dataclass
class Job:
    """One prompt, and the answers to it that are to be generated."""

    prompt: list[int]
    config: GenerationConfig
    answers: list[Answer]
    stops: list[str]
    tokenizer: Any
    given: frozenset[str] = frozenset()  # the options of `generate` that the request itself names
    processors: LogitsProcessorList = field(default_factory=LogitsProcessorList)
    coefficients: torch.Tensor | dict[str, torch.Tensor] | None = None  # (1, members), or by phase
    seed: int | None = None
    top: int | None = None  # how many of the likeliest tokens are wanted with each; None: no log-probabilities
    seen: Seen | None = None  # what members read and see, where there are pictures
    cancelled: bool = False

    @property
    def copies(self) -> int:
        """For how many answers a row stands: greedily, all are the same one."""
        return len(self.answers) // self.rows

    @property
    def constrained(self) -> bool:
        """Whether answers keep to a grammar."""
        return any(isinstance(each, GrammarLogitsProcessor) for each in self.processors)

    @property
    def rows(self) -> int:
        """How many rows are generated."""
        return int(self.config.num_return_sequences or 1)


@dataclass
class Wanted:
    """What the endpoints differ in, of what a request may ask for."""

    new_tokens: int | None = None
    count: int = 1
    stops: Sequence[str] = ()
    top: int | None = None
    bias: Mapping[str, float] = field(default_factory=dict)
    presence: float = 0.0
    frequency: float = 0.0
    schema: dict[str, Any] | None = None  # of the JSON that the answer is to be
    tools: Choice | None = None
    one_call: bool = False
    parsed: bool = False  # whether thoughts and calls are told from the text
    seen: Seen | None = None


class Reader:
    r"""
    Reads requests for one model.

    Args:
        model ([`EFTForCausalLM`]): The model.
        tokenizer (`PreTrainedTokenizerBase` or `ProcessorMixin`): What its members read.
        defaults (`Mapping[str, Any]`, *optional*): Options of `generate` that hold where a request says nothing.
        processors (`Mapping[str, ProcessorMixin]`, *optional*): By member, what makes its inputs of pictures.
        limits ([`Limits`], *optional*): What pictures may be.

    Attributes:
        room (`int`, *optional*): How many tokens a prompt and its answer may have besides what members say: what a cache holds.
        looks (`bool`): Whether requests may have pictures.
    """

    def __init__(
        self,
        model: EFTForCausalLM,
        tokenizer: Any,
        defaults: Mapping[str, Any] | None = None,
        processors: Mapping[str, Any] | None = None,
        limits: Limits | None = None,
    ) -> None:
        self.model, self.tokenizer = model, tokenizer_of(tokenizer)
        self.limits = limits or Limits()
        self._chats = Chats(model, tokenizer, processors)
        self.seeing = asyncio.Lock()  # whoever has processors make something of pictures
        self.room: int | None = None
        self.looks = True
        self._defaults = copy.deepcopy(model.generation_config)
        self._defaults.update(**options_of(defaults))
        self.format = response_format(model, tokenizer)
        self._limits = {
            name: int(limit)
            for name, member in model.members.items()
            if (limit := getattr(member.config.get_text_config(decoder=True), "max_position_embeddings", None)) is not None
        }

    @functools.cached_property
    def spelling(self) -> Spelling:
        """How the tokens of answers are spelt."""
        return Spelling(self.tokenizer)

    @functools.cached_property
    def grammars(self) -> Grammars:
        """Grammars over the tokens of answers."""
        return Grammars(self.tokenizer)

    def check_sight(self, where: str) -> None:
        """Raise if there is a member that cannot be shown the picture that is `where`, or nobody who generates from it."""
        if not self.looks:
            raise NotImplementedError(
                f"{where}: requests with pictures are not batched continuously: send text alone, or serve without `continuous_batching`."
            )
        self._chats.check_sight(where)

    def chat(
        self, messages: Any, tools: list[dict[str, Any]], options: dict[str, Any], shows: bool = False
    ) -> tuple[list[int], Seen | None]:
        """The tokens of a chat that is to be continued, and what members see, if there are pictures; see [`Chats`]."""
        return self._chats.read(messages, tools, options, shows)

    def job(self, body: Body, prompt: Sequence[int], wanted: Wanted) -> Job:
        r"""
        What a request asks for with one prompt.

        Args:
            body ([`Body`]): The request.
            prompt (`Sequence[int]`): The tokens.
            wanted ([`Wanted`]): The rest of what it asks for.

        Raises:
            `ValueError`: If it asks for what cannot be, saying what.
        """
        own = options_of(body.generation_config)
        stops = [*wanted.stops, *_stop_strings(own, wanted)]
        config, count = self._config(body, own, wanted)
        if not stops and config.stop_strings:  # the model's own
            stops = [config.stop_strings] if isinstance(config.stop_strings, str) else list(config.stop_strings)
        config.stop_strings = None  # they are looked for here
        config.max_new_tokens, config.max_length = self._new_tokens(len(prompt), config, wanted, own), None
        ends = end_tokens(config)
        job = Job(
            list(prompt), config, [], stops, self.tokenizer, frozenset(own), seed=body.seed, top=wanted.top, seen=wanted.seen
        )
        job.coefficients = self._coefficients(body)
        if wanted.bias:
            job.processors.append(LogitBias(wanted.bias, self.model.vocab_size))
        if wanted.presence or wanted.frequency:
            job.processors.append(Penalties(wanted.presence, wanted.frequency, len(prompt)))
        if wanted.schema is not None or (wanted.tools is not None and wanted.tools.required):
            ends = self._constrain(job, wanted, ends)
        if wanted.top is not None:
            _check_steps(config)
        prefix = self.tokenizer.decode(job.prompt) if wanted.parsed and self.format is not None else ""
        for _ in range(count):
            parser = None
            if wanted.parsed and self.format is not None:
                choice = wanted.tools or Choice([], False, [])
                parser = Parser(self.format, prefix, choice.tools, choice.calls)
            job.answers.append(Answer(self.tokenizer, set(ends), config.max_new_tokens, stops, parser, wanted.one_call))
        return job

    def _constrain(self, job: Job, wanted: Wanted, ends: list[int]) -> list[int]:
        """Keep the answers to a grammar. Returns the tokens that end them."""
        grammars = self.grammars.ending_with(ends) if ends else self.grammars
        if wanted.tools is not None and wanted.tools.required:
            if wanted.schema is not None:
                raise ValueError("A required call and a `response_format` leave no answer: give one of them.")
            grammar = grammars.call(wanted.tools.required, self.format)
        else:
            grammar = grammars.json(wanted.schema or {})
        job.config.eos_token_id = list(grammar.ends)
        thinking = Thinking.of(self.tokenizer) if self._thinks else None
        job.processors.append(GrammarLogitsProcessor(grammar, len(job.prompt), thinking))
        return list(grammar.ends)

    @property
    def _thinks(self) -> bool:
        """Whether the tokenizer has the marks of thoughts: as tokens, not as texts that anything may be."""
        return {"<think>", "</think>"} <= self.tokenizer.get_vocab().keys()

    def _coefficients(self, body: Body) -> torch.Tensor | dict[str, torch.Tensor] | None:
        if body.alpha is None and body.beta is None and body.weights is None:
            return None
        names = tuple(self.model.members)
        return recipe(names, body.alpha, body.beta, body.weights, phases=self.model.combination.phases).row(names)

    def _config(self, body: Body, own: dict[str, Any], wanted: Wanted) -> tuple[GenerationConfig, int]:
        """How tokens are chosen: the model's defaults, changed by what the request says in either place. And how many answers."""
        said: dict[str, Any] = {"temperature": body.temperature, "max_new_tokens": wanted.new_tokens}
        if body.top_p != 1 or body.temperature is not None:  # by itself, 1 asks for nothing
            said["top_p"] = body.top_p
        if wanted.count > 1:
            said["num_return_sequences"] = wanted.count
        said = {name: value for name, value in said.items() if value is not None}
        for name in said.keys() & own.keys():
            if said[name] != own[name]:
                raise ValueError(
                    f"`generation_config` says {name}={own[name]!r}, and the request itself {said[name]!r}. Give one of them."
                )
        config = copy.deepcopy(self._defaults)
        options = read_options({**own, **said})
        check_together(options, config.num_beams)
        check_tokens(options, self.model.vocab_size)
        count = options.pop("num_return_sequences", config.num_return_sequences or 1)
        if not 1 <= count <= MOST:
            raise ValueError(f"`num_return_sequences` must be 1 to {MOST}, got {count!r}.")
        config.num_return_sequences = 1
        config.update(**options)
        if config.do_sample or (config.num_beams or 1) > 1:
            config.num_return_sequences = count  # otherwise all are the same
        return config, count

    def _new_tokens(self, length: int, config: GenerationConfig, wanted: Wanted, own: Mapping[str, Any]) -> int:
        """How many tokens an answer may have: as many as are asked for, or what is left of the context."""
        if length == 0:
            raise ValueError("The prompt has no tokens: there is nothing to continue.")
        lengths = wanted.seen.lengths if wanted.seen is not None else {}
        limits = [(f"positions of the member {name!r}", lengths.get(name, length), most) for name, most in self._limits.items()]
        if self.room is not None:
            limits.append(("tokens of the cache", length, self.room))
        what, length, most = min(limits, key=lambda each: each[2] - each[1], default=("", length, length + _UNSAID))
        if length >= most:
            raise ValueError(
                f"The prompt is too long: its {length} tokens leave none of the {most} {what} for an answer. Shorten it."
            )
        if config.max_cache_len is not None and config.max_cache_len > most:
            raise ValueError(
                f"`max_cache_len` is {config.max_cache_len}, and there are {most} {what or 'tokens'}: give a smaller one."
            )
        named = wanted.new_tokens is not None or "max_new_tokens" in own
        new = config.max_new_tokens
        if new is None or (not named and length + new > most):
            return most - length
        if isinstance(new, bool) or not isinstance(new, int) or new < 1:
            raise ValueError(f"An answer must have 1 token or more, got {new!r}.")
        if length + new > most:
            raise ValueError(
                f"The prompt's {length} tokens and {new} new ones are more than the {most} {what}. Ask for {most - length} new tokens at "
                "most, or shorten the prompt."
            )
        return new


def options_of(given: str | Mapping[str, Any] | None) -> dict[str, Any]:
    """`generation_config` of a request, or of the server."""
    if given is None:
        return {}
    try:
        options = parsed(given) if isinstance(given, str) else given
        if not isinstance(options, Mapping):
            raise ValueError("it must be a JSON object of options of `generate`")
        for name in options:
            check_name(name)
        return read_options(options)
    except ValueError as error:
        raise ValueError(f"`generation_config`: {error}, got {given!r:.200}.") from None


def _stop_strings(own: dict[str, Any], wanted: Wanted) -> list[str]:
    """Those of `generation_config`, which are taken out: they are looked for as those of `stop` are."""
    given = own.pop("stop_strings", [])
    texts = [given] if isinstance(given, str) else list(given)
    if texts and wanted.stops:
        raise ValueError("`generation_config` has `stop_strings`, and the request `stop`. Give one of them.")
    return texts


def _check_steps(config: GenerationConfig) -> None:
    """Raise if log-probabilities are asked for where there is no step for each token."""
    whole = {
        "num_beams": (config.num_beams or 1) > 1,
        "prompt_lookup_num_tokens": config.prompt_lookup_num_tokens is not None,
        "cache_implementation": config.cache_implementation is not None,
    }
    if wrong := [name for name, is_so in whole.items() if is_so]:
        raise NotImplementedError(f"`logprobs` cannot be told with `{wrong[0]}`: leave one of them out.")
