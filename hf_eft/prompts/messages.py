"""
Messages of a chat as clients send them, checked and made what chat templates read. Knows no model, no server and no template.

[`read_messages`] is the one reader: batch runs, the server, conversations and members' prompts use it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..files.json_lines import parsed, shown, without_nulls

_TEXT_PARTS = ("text", "input_text", "output_text")  # of chat completions; of OpenAI's responses
# What OpenAI's clients may put beside `content`, and no chat template reads: with a value, it would be dropped in silence.
_UNREAD = {
    "function_call": "say it as `tool_calls`",
    "audio": "only text is read",
    "refusal": "say it as `content`",
}


def read_messages(given: Any, *, developer_as_system: bool = False, pictures: bool = False) -> list[dict[str, Any]]:
    r"""
    The messages of a chat, for `apply_chat_template` and its like.

    Null is absent: a field that is null is left out. What is read:

    - `role`: a text.
    - `content`: a text, or a list of parts of text, which are joined by a space, as `transformers serve` does; it becomes one text. It
      may be left out of an assistant's message, and is then `""`. An empty list is none.
    - `tool_calls` of an assistant, with `function.name` and `function.arguments`: an object, a JSON string of one, or left out, which
      is `{}`; it becomes an object, which templates iterate over. An empty list is none.
    - `tool_call_id` and `name`: texts.
    - Whatever else a message has, such as `reasoning_content`, goes to the template as it is.

    Args:
        given (`Any`): A list of objects, as JSON has it. It stays as it is.
        developer_as_system (`bool`, *optional*, defaults to `False`):
            Whether the role `"developer"`, which is OpenAI's newer name for it, becomes `"system"`, the one that templates know.
        pictures (`bool`, *optional*, defaults to `False`):
            Whether whoever reads them can see: parts `{"type": "image", "image": ...}`, a picture of PIL or the path of a file, and
            `{"type": "video", "video": ...}`, a list of such pictures or an array of frames, are then taken as well.

    Returns:
        `list[dict[str, Any]]`: New messages, each with a `role` and a `content` that are texts; a `content` with pictures is a list of
        parts.

    Raises:
        `ValueError`: If a message is none of these, naming its index and the field.

    Example:

    ```python
    >>> from hf_eft.prompts.messages import read_messages

    >>> read_messages([{"role": "user", "content": [{"type": "text", "text": "Who?"}], "name": None}])
    [{'role': 'user', 'content': 'Who?'}]
    >>> read_messages([{"role": "user"}])
    Traceback (most recent call last):
    ...
    ValueError: messages[0]: `content` must be a text or a list of parts of text, got nothing
    ```
    """
    if not _is_list(given) or not given:
        raise ValueError(f'`messages` must be a list of {{"role": ..., "content": ...}}, got {shown(given)}')
    return [_message(index, message, developer_as_system, pictures) for index, message in enumerate(given)]


def with_system(messages: Sequence[Mapping[str, Any]], system: str | None, **options: Any) -> list[dict[str, Any]]:
    """The messages of a chat behind a system message, where there is one: read as [`read_messages`] reads them."""
    return read_messages([*([{"role": "system", "content": system}] if system else []), *messages], **options)


def read_text(value: Any, where: str) -> str:
    """
    A text that a tokenizer can read.

    Raises:
        `ValueError`: If it is another value, or has half of a surrogate pair, which JSON can write and no encoding has.
    """
    if not isinstance(value, str):
        raise ValueError(f"{where} must be a text, got {_got(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{where} is no text: {value[error.start]!a} at {error.start} is no character") from None
    return value


def _message(index: int, message: Any, developer_as_system: bool, pictures: bool) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise ValueError(f'messages[{index}] must be an object, {{"role": ..., "content": ...}}, got {shown(message)}')
    rest = without_nulls(message)
    try:
        role = read_text(rest.pop("role", None), "`role`")
        if not role.strip():
            raise ValueError("`role` is empty")
        for name, remedy in _UNREAD.items():
            if rest.pop(name, None):
                raise ValueError(f"`{name}` is not read by chat templates: {remedy}")
        content = _content(rest.pop("content", None), optional=role == "assistant", pictures=pictures)
        calls = _calls(rest.pop("tool_calls", None), role)
        for name in ("tool_call_id", "name"):
            if name in rest:
                read_text(rest[name], f"`{name}`")
    except ValueError as error:
        raise ValueError(f"messages[{index}]: {error}") from None
    if role == "developer" and developer_as_system:
        role = "system"
    return {"role": role, "content": content, **({"tool_calls": calls} if calls else {}), **rest}


def _content(content: Any, optional: bool, pictures: bool) -> str | list[dict[str, Any]]:
    if isinstance(content, str):
        return read_text(content, "`content`")
    if content is None or (_is_list(content) and not content):
        if optional:
            return ""
        raise ValueError(f"`content` must be a text or a list of parts of text, got {_got(content)}")
    if not _is_list(content):
        raise ValueError(f"`content` must be a text or a list of parts of text, got {_got(content)}")
    if pictures and any(is_picture(part) or is_film(part) for part in content):
        return [_shown(f"content[{i}]", part) for i, part in enumerate(content)]
    return " ".join(_part(f"content[{i}]", part) for i, part in enumerate(content))


def is_picture(part: Any) -> bool:
    """Whether a part of a content is a picture."""
    return isinstance(part, Mapping) and part.get("type") == "image"


def is_film(part: Any) -> bool:
    """Whether a part of a content is a film."""
    return isinstance(part, Mapping) and part.get("type") == "video"


def _shown(where: str, part: Any) -> dict[str, Any]:
    if is_film(part):
        return _film(where, part)
    return _picture(where, part) if is_picture(part) else {"type": "text", "text": _part(where, part)}


def _film(where: str, part: Mapping[str, Any]) -> dict[str, Any]:
    frames = part.get("video")
    if unread := [name for name in without_nulls(part) if name not in ("type", "video")]:
        raise ValueError(f"`{where}.{unread[0]}` is not read: a film is its frames, all of which are shown")
    is_array = len(getattr(frames, "shape", ())) == 4
    if not is_array and (not _is_list(frames) or not frames):
        raise ValueError(
            f"`{where}.video` must be the frames of a film, a list of pictures of PIL or of their files, or an array of shape (frames, "
            f"height, width, channels), got {_got(frames if isinstance(frames, str) else type(frames).__name__)}; files of films are not "
            "decoded here"
        )
    if is_array:
        return {"type": "video", "video": frames}
    read = [_picture(f"{where}.video[{i}]", {"image": each})["image"] for i, each in enumerate(frames or ())]
    return {"type": "video", "video": read}


def _picture(where: str, part: Mapping[str, Any]) -> dict[str, Any]:
    given = part.get("image", part.get("path"))
    if isinstance(given, (str, Path)) and not Path(given).is_file():
        raise ValueError(
            f"`{where}.image` must be a picture of PIL or the path of a file that is there, got {shown(str(given))}"
        )
    if given is None:
        raise ValueError(f"`{where}` must have an `image`: a picture of PIL, or the path of a file; nothing is fetched")
    # (As an absolute path, it cannot be taken for an address.)
    return {"type": "image", "image": str(Path(given).resolve()) if isinstance(given, (str, Path)) else given}


def _part(where: str, part: Any) -> str:
    if not isinstance(part, Mapping):
        raise ValueError(f'`{where}` must be a part of text, {{"type": "text", "text": ...}}, got {_got(part)}')
    if (kind := part.get("type")) not in _TEXT_PARTS:
        raise ValueError(f'`{where}.type` must be "text", got {_got(kind)}: members read text only')
    return read_text(part.get("text"), f"`{where}.text`")


def _calls(calls: Any, role: str) -> list[dict[str, Any]]:
    if calls is None or (_is_list(calls) and not calls):
        return []
    if role != "assistant":
        raise ValueError(f"`tool_calls` are an assistant's, not of the role {shown(role)}")
    if not _is_list(calls):
        raise ValueError(f"`tool_calls` must be a list, got {_got(calls)}")
    return [_call(f"tool_calls[{i}]", call) for i, call in enumerate(calls)]


def _call(where: str, call: Any) -> dict[str, Any]:
    if not isinstance(call, Mapping):
        raise ValueError(f"`{where}` must be an object with a `function`, got {_got(call)}")
    rest = without_nulls(call)
    if (kind := rest.get("type", "function")) != "function":
        raise ValueError(f'`{where}.type` must be "function", got {_got(kind)}')
    function = rest.get(
        "function", rest if "name" in rest else None
    )  # some clients leave the layer out, and templates read both
    if not isinstance(function, Mapping):
        raise ValueError(f"`{where}.function` must be an object with a `name`, got {_got(function)}")
    named = f"{where}.function" if "function" in rest else where
    read = {
        **without_nulls(function),
        "name": read_text(function.get("name"), f"`{named}.name`"),
        "arguments": _arguments(function.get("arguments"), f"`{named}.arguments`"),
    }
    return {**rest, "function": read} if "function" in rest else read


def _arguments(arguments: Any, where: str) -> dict[str, Any]:
    if arguments is None or (isinstance(arguments, str) and not arguments.strip()):
        return {}
    if isinstance(arguments, str):
        try:
            arguments = parsed(arguments)
        except ValueError as error:
            raise ValueError(f"{where} must be a JSON object: {error}") from None
    if not isinstance(arguments, Mapping):
        raise ValueError(f"{where} must be a JSON object, got {_got(arguments)}")
    return dict(arguments)


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _got(value: Any) -> str:
    return "nothing" if value is None else shown(value)
