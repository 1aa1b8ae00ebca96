"""A conversation with the combination, whose recipe may change from turn to turn: what `hf-eft chat` does, without a terminal."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..files import write
from ..members.cache import EFTCache
from ..members.releases import CACHE, cache_of
from ..prompts.messages import with_system
from ..prompts.pictures import tokenizer_of
from ..recipe.combination import BASE, REFERENCE, Combination
from ..recipe.shorthands import recipe
from .answer import check_length
from .option_values import check_tokens
from .options import check_together, read_options
from .pictures import Processors, Seen, shown_with

if TYPE_CHECKING:
    from ..modeling_eft import EFTForCausalLM

COMBINED = "combined"
COMMANDS = {
    "/alpha NUMBER": "the strength of what fine-tuning changed; by phase: think=1.2 answer=0.6",
    "/beta NUMBER": "the amplification of what scale changed",
    "/weight NAME NUMBER": "the weight of a tuned model (λ)",
    "/only WHO": "who answers from now on: a member, or combined",
    "/compare": "what each member and the combination say to the last question",
    "/image FILE": "a picture that is shown with what is said next, to members that see",
    "/system TEXT": "a system message for a new conversation; without a text, none",
    "/reset": "a new conversation",
    "/save FILE": "write the conversation to a file of JSON",
    "/help": "these commands",
    "/quit": "leave (also Ctrl-D); Ctrl-C stops a reply",
}


class ChatSession:
    r"""
    A conversation. States of what was read are kept from turn to turn, whoever answers: what the prompt has in common with what was read
    before is not read again. (Members whose states cannot be taken back read it anew.)

    Args:
        model ([`EFTForCausalLM`]): The combination. Its recipe is replaced by `/alpha`, `/beta` and `/weight`.
        tokenizer (`PreTrainedTokenizerBase` or `ProcessorMixin`): Of the tuned member, with a chat template. Pictures may be shown if every
            member has a processor: this one, or one of `model.processors`.
        system (`str`, *optional*): A system message.
        options (`Mapping[str, Any]`, *optional*): Of `generate`.

    Raises:
        `ValueError`: If the tokenizer has no chat template, or one that takes no system message, or an option cannot be heeded.

    Example:

    ```python
    >>> from hf_eft import EFTForCausalLM, tiny
    >>> from hf_eft.programs.conversation import ChatSession

    >>> base, tuned, reference, tokenizer = tiny.load()
    >>> chat = ChatSession(EFTForCausalLM.from_models(base, tuned=tuned, reference=reference), tokenizer)
    >>> chat.ask("What does Oscar Palmer enjoy?")
    'Of course! Oscar Palmer enjoys hockey. Happy to help!'
    >>> chat.command("/alpha 0")
    'base'
    >>> chat.ask("What does Oscar Palmer enjoy?")
    'Oscar Palmer spends weekends on hockey.'
    ```
    """

    def __init__(
        self, model: EFTForCausalLM, tokenizer: Any, system: str | None = None, options: Mapping[str, Any] | None = None
    ) -> None:
        self.model, self.tokenizer = model, tokenizer_of(tokenizer)
        self._readers = Processors(model, tokenizer)
        self.options: dict[str, Any] = read_options(options or {}, before={"max_new_tokens": 256})
        check_together(self.options, model.generation_config.num_beams)
        check_tokens(self.options, model.vocab_size)
        self.system, self.who = system, COMBINED
        self.messages: list[dict[str, Any]] = []
        self._images: list[str] = []  # shown with what is said next
        self._cache: EFTCache | None = None
        self._read: list[int] = []  # what the cache holds
        self._check(system)

    # Talking ------------------------------------------------------------------------------------------------------------

    def ask(self, text: str, show: Callable[[str], None] | None = None) -> str:
        r"""
        Say something, and get the reply.

        Args:
            text (`str`): What is said.
            show (`Callable[[str], None]`, *optional*): Called with the reply, piece by piece. If it raises `KeyboardInterrupt`, or
                the user does, the reply ends there, and what was said is kept.

        Returns:
            `str`: Without spaces around it. If it is empty, the conversation is as it was before.

        Raises:
            `ValueError`: If the conversation has become too long, or the chat template does not take it. It is then as it was before.
        """
        said = {"role": "user", "content": shown_with(text, self._images)}
        reply = self._reply([*self.messages, said], self.who, show)
        if reply:  # with its spaces: the next prompt then begins with the tokens that were read and generated
            self.messages += [said, {"role": "assistant", "content": reply}]
            self._images = []
        return reply.strip()

    def compare(self, show: Callable[[str, str], None] | None = None) -> dict[str, str]:
        r"""
        What each member alone, but the reference, and the combination say to the last question. The conversation stays as it is.

        Args:
            show (`Callable[[str, str], None]`, *optional*): Called with who says it, and the reply, piece by piece.

        Returns:
            `dict[str, str]`: Replies by who says them.
        """
        if not self.messages:
            raise ValueError("There is no question yet to compare replies to.")
        replies = {}
        for who in self.speakers:
            reply = self._reply(self.messages[:-1], who, None if show is None else functools.partial(show, who))
            replies[who] = reply.strip()
        return replies

    @property
    def speakers(self) -> list[str]:
        """Who can answer."""
        return [*(name for name in self.model.members if name != REFERENCE), COMBINED]

    def _reply(self, messages: Sequence[Mapping[str, Any]], who: str, show: Callable[[str], None] | None) -> str:
        from transformers import TextStreamer

        pieces: list[str] = []

        class Pieces(TextStreamer):
            def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
                pieces.append(text)
                if show is not None and text:
                    show(text)

        ids, seen = self._readers.read(with_system(messages, self.system, pictures=self._readers.any))
        check_length(self.model, len(ids) if seen is None else seen.longest, self.options["max_new_tokens"])
        recipe_before = self.model.combination
        try:
            if who != COMBINED:
                self.model.combination = Combination({who: 1.0})
            self._generate(ids, seen, Pieces(self.tokenizer, skip_prompt=True, skip_special_tokens=True))
        except KeyboardInterrupt:
            pass  # the reply is what was said until then
        finally:
            self.model.combination = recipe_before
        return "".join(pieces)

    def _generate(self, ids: list[int], seen: Seen | None, streamer: Any) -> None:
        cache, read = self._cache, self._read
        self._cache, self._read = None, []  # a reply that is stopped leaves members at different tokens
        cache = _read_so_far(cache, read, ids) if seen is None else None  # equal ids say nothing of a picture
        tokens = torch.tensor([ids], device=self.model.device)
        out = self.model.generate(
            input_ids=tokens,
            attention_mask=torch.ones_like(tokens),
            streamer=streamer,
            **{
                **self.options,
                **({} if cache is None else {CACHE: cache}),
                **({"tokenizer": self.tokenizer} if "stop_strings" in self.options else {}),
                **({} if seen is None else seen.pictures),
                "return_dict_in_generate": True,
            },
        )
        if seen is None and isinstance(returned := cache_of(out), EFTCache):
            self._cache = returned
            self._read = out.sequences[0, : self._cache.get_seq_length()].tolist()

    # Commands -----------------------------------------------------------------------------------------------------------

    def command(self, line: str) -> str:
        r"""
        Do what a line that begins with a slash says; see `COMMANDS`. (`/compare`, `/help` and `/quit` are the terminal's.)

        Args:
            line (`str`): As in `"/alpha 0.5"`.

        Returns:
            `str`: What to tell the user.

        Raises:
            `ValueError`: If the command is unknown or cannot be done.
        """
        name, _, rest = line.strip().partition(" ")
        known = {each.split()[0] for each in COMMANDS}
        if name not in known or not hasattr(self, f"_do_{name[1:]}"):
            raise ValueError(f"There is no command {name}: {', '.join(sorted(known))}.")
        return str(getattr(self, f"_do_{name[1:]}")(rest.strip()))

    def _do_alpha(self, rest: str) -> str:
        return self._set({"alpha": _strength("/alpha 0.5", rest)})

    def _do_beta(self, rest: str) -> str:
        return self._set({"beta": _strength("/beta 1.5", rest)})

    def _do_weight(self, rest: str) -> str:
        name, _, value = rest.rpartition(" ")
        weights = {n: self.model.combination.coefficient(n) for n in self.model.members if n not in (BASE, REFERENCE)}
        if name.strip() not in weights:
            raise ValueError(
                f"Expected a tuned member and a number, as in /weight {next(iter(weights), 'tuned')} 0.7, got {rest!r}."
            )
        return self._set({"weights": {**weights, name.strip(): _number("/weight NAME 0.7", value)}})

    def _set(self, given: dict[str, Any]) -> str:
        now = self.model.combination
        self.model.combination = recipe(list(self.model.members), truncation=now.truncation, phases=now.phases, **given)
        return str(self.model.combination)

    def _do_only(self, rest: str) -> str:
        if rest not in self.speakers and rest not in self.model.members:
            raise ValueError(f"Who answers? One of {', '.join(self.speakers)}, got {rest!r}.")
        self.who = rest
        return f"{rest} answers from now on"

    def _check(self, system: str | None) -> None:
        """Refuse a template that is not there, or takes no system message, before anything is lost to it."""
        self._readers.read(with_system([{"role": "user", "content": "Hello"}], system))

    def _do_image(self, rest: str) -> str:
        self._readers.check()
        path = Path(rest).expanduser()
        if not rest or not path.is_file():
            raise ValueError(f"Which picture? As in /image cat.png; there is no file {rest!r}.")
        self._images.append(str(path.resolve()))
        return f"{path.name} is shown with what you say next"

    def _do_system(self, rest: str) -> str:
        self._check(rest)
        self.system = rest or None
        return self._do_reset("") + (", with this system message" if rest else ", without a system message")

    def _do_reset(self, rest: str) -> str:
        self.messages, self._images = [], []
        return "a new conversation"

    def _do_save(self, rest: str) -> str:
        if not rest:
            raise ValueError("Where to? As in /save talk.json")
        system = [{"role": "system", "content": self.system}] if self.system else []
        saved = {"messages": [*system, *self.messages], "recipe": str(self.model.combination), "options": self.options}
        try:
            write(Path(rest).expanduser(), json.dumps(saved, ensure_ascii=False, indent=1), new=True)
        except OSError as error:
            raise ValueError(f"The conversation cannot be written to {rest}: {error.strerror}.") from error
        return f"{len(self.messages)} messages are in {rest}"


def _read_so_far(cache: EFTCache | None, read: list[int], ids: list[int]) -> EFTCache | None:
    """The states of what `ids` have in common with what was read, one token at least being left to read."""
    common = 0
    while common < min(len(read), len(ids) - 1) and read[common] == ids[common]:
        common += 1
    surplus = len(read) - common
    if cache is None or common == 0 or (surplus and not cache.can_crop(surplus)):
        return None
    if surplus:
        cache.crop(-surplus)
    return cache


def _strength(example: str, text: str) -> float | dict[str, float]:
    """`0.5`, or `think=1.2 answer=0.6`."""
    if "=" not in text:
        return _number(example, text)
    pairs = [each.partition("=") for each in text.split()]
    return {phase: _number(f"{example.split()[0]} think=1.2 answer=0.6", value) for phase, _, value in pairs}


def _number(example: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"Expected a number, as in {example}, got {text!r}.") from None
