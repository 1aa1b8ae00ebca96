"""What is learnt, from a file: chats, or prompts and answers, as tokens of which the answers have labels; and documents to be replayed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..files.json_lines import Line, json_lines, looks_like_json, shown, text_lines, without_nulls
from ..prompts import chat_ids
from ..prompts.messages import read_messages, read_text

IGNORED = -100  # the label of a token that is read and not learnt
_FIELDS = {"prompt", "answer", "messages", "id"}
_SHOWN = 3  # of the lines that cannot be read


@dataclass(frozen=True)
class Example:
    r"""
    A text of the training.

    Args:
        ids (`tuple[int, ...]`): Its tokens.
        labels (`tuple[int, ...]`): The same, -100 where a token is not learnt.
        prompt (`int`): How many tokens stand before the last answer; 0 for a document.
        line (`int`): Where it is in its file, from 1.
    """

    ids: tuple[int, ...]
    labels: tuple[int, ...]
    prompt: int = 0
    line: int = 0

    @property
    def features(self) -> dict[str, list[int]]:
        """What a trainer's collator takes."""
        return {"input_ids": list(self.ids), "labels": list(self.labels)}


def read_chats(data: bytes, tokenizer: Any, *, chat: bool = False, max_length: int) -> list[Example]:
    r"""
    The examples of a file.

    Args:
        data (`bytes`):
            JSON Lines, or one JSON array, in any encoding that says what it is. A line has a `prompt` and an `answer`, or `messages`, the
            last of which is an assistant's; and may have an `id`.
        tokenizer (`PreTrainedTokenizerBase`): That of the small member.
        chat (`bool`, *optional*, defaults to `False`):
            Whether a `prompt` is what a user says, in the chat template. Without it, the answer follows the prompt, after a space if there
            is none, and then the end of the text. `messages` are always written by the template.
        max_length (`int`): The most tokens that a line may have.

    Returns:
        `list[Example]`: One for each line. Only answers have labels: every one of an assistant, with what the template ends it by.

    Raises:
        `ValueError`: If a line is none of these, or too long, naming it.

    Example:

    ```python
    >>> from hf_eft import tiny
    >>> from hf_eft.training.chats import read_chats

    >>> *_, tokenizer = tiny.load()
    >>> line = b'{"messages": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Happy to help!"}]}'
    >>> example = read_chats(line, tokenizer, max_length=64)[0]
    >>> tokenizer.decode([label for label in example.labels if label >= 0])
    'Happy to help!<eos>'
    ```
    """
    lines = [line for line in json_lines(data) if not line.blank]
    return _all(lines, lambda line: _checked(_example(line, tokenizer, chat), max_length), "prompts and answers, or messages")


def read_documents(data: bytes, tokenizer: Any, *, max_length: int) -> list[Example]:
    r"""
    Documents whose every token is learnt: texts as the models saw them in pre-training.

    Args:
        data (`bytes`): One document a line, or JSON with a `text` in each line.
        tokenizer (`PreTrainedTokenizerBase`): That of the small member.
        max_length (`int`): The most tokens of an example. A longer document becomes several.

    Raises:
        `ValueError`: If a line is no document, naming it.
    """
    lines = text_lines(data)
    if looks_like_json(lines):
        lines = [_text(line) for line in json_lines(data)]
    end = _end_of(tokenizer)

    def tokens(line: Line) -> list[Example]:
        if line.error:
            raise ValueError(line.error)
        ids = [*_tokens(tokenizer, line.value), end]
        parts = [tuple(ids[start : start + max_length]) for start in range(0, len(ids), max_length)]
        return [Example(part, part, line=line.number) for part in parts if len(part) > 1]  # the first token follows nothing

    return [each for made in _all([line for line in lines if not line.blank], tokens, "documents") for each in made]


def _all(lines: Sequence[Line], make: Any, what: str) -> list[Any]:
    made, wrong = [], []
    for line in lines:
        try:
            made.append(make(line))
        except ValueError as error:
            wrong.append(f"line {line.number}: {error}")
    if wrong:
        more = f"; and {len(wrong) - _SHOWN} more lines" if len(wrong) > _SHOWN else ""
        raise ValueError(f"{'; '.join(wrong[:_SHOWN])}{more}")
    if not made:
        raise ValueError(f"there is nothing in it: expected {what}")
    return made


def _text(line: Line) -> Line:
    if line.error or line.blank:
        return line
    if not isinstance(line.value, dict) or not isinstance(line.value.get("text"), str):
        return Line(line.number, error=f"expected an object with a `text`, got {shown(line.value)}")
    return Line(line.number, line.value["text"], blank=not line.value["text"].strip())


def _example(line: Line, tokenizer: Any, chat: bool) -> Example:
    if line.error:
        raise ValueError(line.error)
    if not isinstance(line.value, dict):
        raise ValueError(f"the line is no JSON object but {shown(line.value)}")
    given = without_nulls(line.value)
    if unknown := sorted(given.keys() - _FIELDS):
        raise ValueError(f"the fields {', '.join(unknown)} are not read: expected `prompt` and `answer`, or `messages`")
    if "messages" in given:
        if "prompt" in given or "answer" in given:
            raise ValueError("expected either `messages`, or `prompt` and `answer`, got both")
        return _of_messages(read_messages(given["messages"]), tokenizer, line.number)
    prompt, answer = (read_text(given.get(name), f"`{name}`") for name in ("prompt", "answer"))
    if not prompt.strip() or not answer.strip():
        raise ValueError(f"the {'answer' if prompt.strip() else 'prompt'} is empty")
    if chat:
        turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
        return _of_messages(turns, tokenizer, line.number)
    between = "" if prompt[-1].isspace() or answer[0].isspace() else " "
    before, whole = _tokens(tokenizer, prompt), _tokens(tokenizer, prompt + between + answer)
    if whole[: len(before)] != before:  # a token stands across the border, which no answer to this prompt could begin with
        whole = before + tokenizer(between + answer, add_special_tokens=False)["input_ids"]
    ids = (*whole, _end_of(tokenizer))
    return Example(ids, (IGNORED,) * len(before) + ids[len(before) :], len(before), line.number)


def _of_messages(messages: Sequence[Mapping[str, Any]], tokenizer: Any, line: int) -> Example:
    if messages[-1]["role"] != "assistant":
        raise ValueError(f"the last of `messages` must be an assistant's, which is learnt; it is of {messages[-1]['role']!r}")
    ids = chat_ids(tokenizer, messages, add_generation_prompt=False)
    labels, begin = [IGNORED] * len(ids), 0
    for turn, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        if turn == 0:
            raise ValueError("the first of `messages` is an assistant's, which answers nothing")
        before = chat_ids(tokenizer, messages[:turn])
        through = ids if turn == len(messages) - 1 else chat_ids(tokenizer, messages[: turn + 1], add_generation_prompt=False)
        begin = len(before)
        if ids[:begin] != before or ids[: len(through)] != through:
            raise ValueError(
                f"the chat template writes messages[{turn}] otherwise once more follows it, so that what is learnt is not what is "
                "asked for later: give a line for each answer, with the messages before it"
            )
        labels[begin : len(through)] = ids[begin : len(through)]
    return Example(tuple(ids), tuple(labels), begin, line)


def _checked(example: Example, max_length: int) -> Example:
    if len(example.ids) > max_length:
        raise ValueError(f"it has {len(example.ids):,} tokens, more than the {max_length:,} that an example may have")
    return example


def _tokens(tokenizer: Any, text: str) -> list[int]:
    """A text as prompts are read, without an end that a tokenizer may put behind it."""
    ids = list(tokenizer(text)["input_ids"])
    return ids[:-1] if ids and ids[-1] == tokenizer.eos_token_id and not text.endswith(str(tokenizer.eos_token)) else ids


def _end_of(tokenizer: Any) -> int:
    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer has no end-of-text token, so that an answer could not end: set `eos_token`")
    return tokenizer.eos_token_id
