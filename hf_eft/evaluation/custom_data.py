"""Your own questions as a task of lm-evaluation-harness: records with a prompt and an answer, or choices, and a metric."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..files.json_lines import json_lines
from ..prompts.messages import read_messages, read_text

Metric = str | Callable[[str, Mapping[str, Any]], float]

# Whether a reply, without the space around it, is right.
_JUDGES: dict[str, Callable[[str, str], bool]] = {
    "exact_match": lambda reply, answer: reply == answer.strip(),
    "contains": lambda reply, answer: answer.strip() in reply,
    "regex": lambda reply, answer: re.search(answer, reply) is not None,
}
METRICS = (*_JUDGES, "loglikelihood", "choice")
_FIELDS: dict[str, dict[str, type]] = {"choice": {"prompt": str, "choices": list, "gold": int}}
_ANSWERED: dict[str, type] = {"prompt": str, "answer": str}
# What may not be empty: a model needs something to continue, and every reply contains an empty answer.
_NOT_EMPTY: dict[str, tuple[str, ...]] = {
    "choice": (),
    "loglikelihood": ("answer",),
    "contains": ("prompt", "answer"),
    "regex": ("prompt", "answer"),
}


def custom_task(
    data: str | Path | Sequence[Mapping[str, Any]],
    metric: Metric,
    *,
    name: str | None = None,
    max_new_tokens: int = 64,
    until: Sequence[str] = ("\n\n",),
) -> dict[str, Any]:
    r"""
    Make a task of your own records.

    Args:
        data (`str`, `Path` or `Sequence[Mapping]`):
            A file of JSON Lines, or of one JSON array, or records. Each has a `"prompt"`, or `"messages"` with one of a user, and an
            `"answer"` (a string; a pattern for `"regex"`), or for the metric `"choice"` the list `"choices"` and `"gold"`, the index of
            the right one. More fields are handed to a metric of your own. Null is absent.
        metric (`str` or `Callable[[str, Mapping], float]`):
            `"exact_match"`, `"contains"` and `"regex"` judge what the model writes; `"loglikelihood"` is how likely it finds the answer,
            as accuracy and perplexity; `"choice"` which choice it finds likeliest. A function takes the reply and the record and returns
            a number, the higher the better.
        name (`str`, *optional*): The task's name; that of the file if left out.
        max_new_tokens (`int`, *optional*, defaults to 64): How much a model may write.
        until (`Sequence[str]`, *optional*, defaults to two line ends): Where what it writes is cut off.

    Returns:
        `dict[str, Any]`: A configuration that [`~hf_eft.evaluation.evaluate`] takes among its tasks.

    Raises:
        `ValueError`: If a record is not as described; the message names its line.

    Example:

    ```python
    >>> from hf_eft.evaluation.custom_data import custom_task

    >>> task = custom_task([{"prompt": "1 + 1 =", "answer": "2"}, {"prompt": "1 + 2 =", "answer": "3"}], "contains", name="sums")
    >>> task["task"], task["output_type"]
    ('sums', 'generate_until')

    ```
    """
    if not callable(metric) and metric not in METRICS:
        raise ValueError(f"There is no metric {metric!r}: expected one of {list(METRICS)}, or a function.")
    if isinstance(data, str | Path):
        source, records = str(data), _read(Path(data))
        name = name or Path(data).stem
    else:
        source, records = "the data", list(data)
        name = name or "data"
    records = [_prompted(record, f"Record {number} of {source}") for number, record in enumerate(records, start=1)]
    called = metric if isinstance(metric, str) else getattr(metric, "__name__", "score")
    _check(records, source, metric)

    def dataset(**_: Any) -> dict[str, Any]:
        from datasets import Dataset  # type: ignore[import-untyped]

        # Records as JSON: a table would give all of them the fields of any, and one type.
        return {"test": Dataset.from_dict({"record": [json.dumps(record) for record in records]})}

    task: dict[str, Any] = {
        "task": name,
        "custom_dataset": dataset,
        "test_split": "test",
        "doc_to_text": _field("prompt"),
        "metadata": {"version": 1.0, "metric": called},
    }
    if metric == "choice":
        task |= {"output_type": "multiple_choice", "doc_to_choice": _field("choices"), "doc_to_target": _field("gold")}
        return task | {"metric_list": [_mean("acc"), _mean("acc_norm")]}
    if metric == "loglikelihood":
        perplexity = {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False}
        task |= {"output_type": "loglikelihood", "doc_to_target": lambda doc: " " + _field("answer")(doc).lstrip(" ")}
        return task | {"metric_list": [_mean("acc"), perplexity]}

    def judged(doc: Mapping[str, Any], replies: Sequence[str]) -> dict[str, float]:
        record, reply = json.loads(doc["record"]), replies[0].strip()
        score = metric(reply, record) if callable(metric) else _JUDGES[metric](reply, record["answer"])
        return {called: float(score)}

    return task | {
        "output_type": "generate_until",
        "doc_to_target": _field("answer"),
        "process_results": judged,
        "generation_kwargs": {"until": list(until), "max_gen_toks": max_new_tokens, "do_sample": False},
        "metric_list": [_mean(called)],
    }


def _field(name: str) -> Callable[[Mapping[str, Any]], Any]:
    def read(doc: Mapping[str, Any]) -> Any:
        value = json.loads(doc["record"]).get(name)
        return "" if value is None else value

    return read


def _mean(metric: str) -> dict[str, Any]:
    return {"metric": metric, "aggregation": "mean", "higher_is_better": True}


def _read(path: Path) -> list[Any]:
    if not path.is_file():
        raise ValueError(f"There is no file {path}.")
    try:
        lines = json_lines(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: {error}.") from error
    for line in lines:
        if line.error and not line.blank:
            raise ValueError(f"Line {line.number} of {path} cannot be read: {line.error}.")
    return [line.value for line in lines if not line.blank]


def _prompted(record: Any, where: str) -> Any:
    """A record with its prompt, which may stand in `messages`, as a batch run reads them."""
    if not isinstance(record, Mapping):
        return record
    if record.get("messages") is None:
        return dict(record)
    if record.get("prompt") is not None:
        raise ValueError(f"{where}: expected either `prompt` or `messages`, got both.")
    try:
        messages = read_messages(record["messages"])
    except ValueError as error:
        raise ValueError(f"{where}: {error}.") from error
    if [message["role"] for message in messages] != ["user"]:
        raise ValueError(
            f'{where}: `messages` must be one, of the role "user": every system is asked one text, which `chat` puts into a template.'
        )
    return {**record, "prompt": messages[0]["content"]}


def _check(records: list[Any], source: str, metric: Metric) -> None:
    fields = {"prompt": str} if callable(metric) else _FIELDS.get(metric, _ANSWERED)
    not_empty = ("prompt",) if callable(metric) else _NOT_EMPTY.get(metric, ("prompt",))
    called = metric if isinstance(metric, str) else getattr(metric, "__name__", "a function")
    if len(records) < 2:
        raise ValueError(f"Expected at least 2 records in {source}, got {len(records)}: one item has no interval.")
    for number, record in enumerate(records, start=1):
        where = f"Record {number} of {source}"
        if not isinstance(record, Mapping):
            raise ValueError(f"{where} must be an object with the fields {list(fields)}, got {type(record).__name__}.")
        for field, kind in fields.items():
            if not isinstance(record.get(field), kind) or isinstance(record[field], bool):
                got = "nothing" if record.get(field) is None else type(record[field]).__name__
                raise ValueError(f"{where} must have {field!r}, a {kind.__name__}, for the metric {called!r}; got {got}.")
            if kind is str:
                try:
                    read_text(record[field], f"{field!r}")
                except ValueError as error:
                    raise ValueError(f"{where}: {error}.") from error
        for field in not_empty:
            if not record[field].strip():
                raise ValueError(f"{where}: {field!r} is empty, which says nothing about a reply.")
        if metric == "choice":
            choices = record["choices"]
            if len(choices) < 2 or not all(isinstance(choice, str) and choice for choice in choices):
                raise ValueError(
                    f"{where} must have at least 2 choices, which are strings with something in them, got {choices!r}."
                )
            if not 0 <= record["gold"] < len(choices):
                raise ValueError(f"{where}: 'gold' must be an index into its {len(choices)} choices, got {record['gold']}.")
        if metric == "regex":
            try:
                re.compile(record["answer"])
            except re.error as error:
                raise ValueError(f"{where}: the pattern {record['answer']!r} is not valid: {error}.") from error
