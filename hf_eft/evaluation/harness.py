"""lm-evaluation-harness as the engine: its tasks, a model as it takes one, and what it found item by item."""

from __future__ import annotations

import copy
import difflib
import logging
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import set_seed

try:
    import lm_eval  # type: ignore[import-untyped]
    from lm_eval.api import task as lm_eval_task  # type: ignore[import-untyped]
    from lm_eval.models.huggingface import HFLM  # type: ignore[import-untyped]
    from lm_eval.models.utils import resolve_max_length  # type: ignore[import-untyped]
    from lm_eval.tasks import TaskManager  # type: ignore[import-untyped]
except ImportError as error:  # the extra is not installed
    raise ImportError(
        f"Evaluation needs lm-evaluation-harness ({error.name} is missing): pip install 'hf-eft[eval]'"
    ) from error

from ..modeling_eft import EFTForCausalLM
from . import tasks as shipped
from .intervals import AGGREGATIONS, Items
from .scores import Score

VERSION: str = lm_eval.__version__


class Model(HFLM):
    """
    A model as lm-evaluation-harness takes it. It is told what its caller decides, and reads nothing off the model's name.

    Args:
        model (`PreTrainedModel`): A live model; left as it is.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.
        batch_size (`int`): How many requests are answered at once.
        max_length (`int`): The longest context, in tokens.
        advance (`Callable[[int, int], None]`): Called with how many requests are answered, and of how many.
    """

    def __init__(
        self, model: Any, tokenizer: Any, batch_size: int, max_length: int, advance: Callable[[int, int], None]
    ) -> None:
        # Log-probs are float32 for every system, as the combination's are, whatever the weights' type is.
        super().__init__(
            pretrained=model,
            backend="causal",
            tokenizer=copy.deepcopy(tokenizer),  # it may be given a padding token
            batch_size=batch_size,
            max_length=max_length,
            softmax_dtype="float32",
        )
        self._rolls, self._across = False, isinstance(model, EFTForCausalLM) and model.vocabulary is not None
        self._speller = model._speller if isinstance(model, EFTForCausalLM) else None
        if isinstance(model, EFTForCausalLM):
            _check_speaks(model, tokenizer)
        self._advance, self._done, self._total = advance, 0, 0
        self.set_cache_hook(self)

    def add_partial(self, kind: str, request: Any, answer: Any) -> None:
        """What lm-evaluation-harness calls for each request that is answered."""
        if kind != "loglikelihood_rolling":  # told all at once in the end: its windows are counted instead
            self._tell(1)

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        self._start(len(requests))
        return super().loglikelihood(requests, disable_tqdm=True)

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[float]:
        self._start(sum(math.ceil(len(self.tok_encode(request.args[0])) / self.max_length) for request in requests))
        self._rolls = True
        try:
            return super().loglikelihood_rolling(requests, disable_tqdm=True)
        finally:
            self._rolls = False

    def tok_encode(self, string: Any, *args: Any, **options: Any) -> Any:
        if self._rolls and self._speller is not None:  # all of the text is scored
            return self._speller(string, add_special_tokens=False)["input_ids"]
        return super().tok_encode(string, *args, **options)

    def _scored(self, request: Any) -> tuple[float, bool]:
        """The log-prob of a text, and whether it is the likeliest, with its context read as a prompt: alone, as in no batch of others."""
        told, context, wanted = request
        ids = torch.tensor([[*context, *wanted][-self.max_length - 1 :]], device=self.model.device)
        after = torch.tensor(wanted, device=ids.device)[:, None]  # (positions, 1)
        logits = self.model(ids[:, :-1], logits_to_keep=len(wanted)).logits[0].float().log_softmax(-1)  # (positions, vocab)
        answer = (
            float(logits.gather(-1, after.to(logits.device)).sum()),
            bool((logits.argmax(-1) == after[:, 0].to(logits.device)).all()),
        )
        if told is not None:
            self.cache_hook.add_partial("loglikelihood", told, answer)
        return answer

    def _loglikelihood_tokens(self, requests: Any, disable_tqdm: bool = True, override_bs: int | None = None) -> Any:
        if self._across:
            answers = [self._scored(request) for request in requests]
        else:
            answers = super()._loglikelihood_tokens(requests, disable_tqdm=True, override_bs=override_bs)
        if override_bs is not None:  # a batch of windows
            self._tell(len(answers))
        return answers

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[str]:
        self._start(len(requests))
        return super().generate_until(requests, disable_tqdm=True)

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """A text to score, in tokens. What members in units are asked for is cut into units: they write nothing else."""
        before, after = super()._encode_pair(context, continuation)
        if self._speller is None:
            return before, after
        whole, start = (
            self._speller(text, add_special_tokens=False)["input_ids"] for text in (context + continuation, context)
        )
        return before, whole[len(start) :]

    def _start(self, total: int) -> None:
        self._done, self._total = 0, total
        self._tell(0)

    def _tell(self, more: int) -> None:
        self._done += more
        self._advance(self._done, self._total)


def _check_speaks(model: EFTForCausalLM, tokenizer: Any) -> None:
    """Raise a `ValueError` if a combination across tokenizers is to read tokens of another one than those that it says."""
    if model.vocabulary is not None and tokenizer.get_vocab() != (known := next(iter(model.tokenizers.values()))).get_vocab():
        raise ValueError(
            f"A combination with `vocabulary={model.vocabulary!r}` reads the tokens of `model.tokenizers`: a {type(known).__name__} of "
            f"{len(known)} tokens, got a {type(tokenizer).__name__} of {len(tokenizer)}."
        )


def common_length(systems: Mapping[str, Any], tokenizer: Any) -> int:
    """The longest context that every system can read, so that all of them are shown the same."""
    lengths = []
    for model in systems.values():
        members = model.members.values() if isinstance(model, EFTForCausalLM) else [model]
        lengths += [resolve_max_length(member.config, tokenizer) for member in members]
    return min(lengths)


def load_tasks(specs: Sequence[str | Path | Mapping[str, Any]], num_fewshot: int | None = None) -> dict[str, Any]:
    """
    Args:
        specs (`Sequence[str | Path | Mapping]`):
            Names of tasks that ship or that lm-evaluation-harness knows (groups are taken apart), task files, or configurations as made by
            [`~hf_eft.evaluation.custom_data.custom_task`]. A task file may name Python functions, which are run.
        num_fewshot (`int`, *optional*): How many worked examples are put before each item, where the task has them.

    Returns:
        `dict[str, lm_eval.api.task.Task]`: The tasks by name.

    Raises:
        `ValueError`: If one is not known or cannot be loaded.
    """
    if not specs:
        raise ValueError(f"No tasks were given. Those that ship are {list(shipped.NAMES)}.")
    found: dict[str, Any] = {}
    manager, everything = TaskManager(include_defaults=False), None
    for spec in specs:
        source: Any = dict(spec) if isinstance(spec, Mapping) else str(spec)
        if isinstance(source, str) and source in shipped.NAMES:
            source = str(shipped.FOLDER / f"{source}.yaml")
        if isinstance(source, str) and not Path(source).is_file():
            if isinstance(spec, Path) or source.endswith((".yaml", ".yml")):
                raise ValueError(f"There is no task file {source}.")
            everything = everything or TaskManager()  # reads its whole index: seconds
            _check_known(source, everything)
        try:
            loaded = (manager if everything is None else everything).load([source])["tasks"]
        except Exception as error:  # whatever a task file, its functions or its data's loader raise
            name = source["task"] if isinstance(source, dict) else spec
            raise ValueError(f"The task {str(name)!r} cannot be loaded: {type(error).__name__}: {error}") from error
        if twice := found.keys() & loaded.keys():
            raise ValueError(f"Two tasks are called {sorted(twice)}. Give each its own name.")
        found |= loaded
    for task in found.values():
        own = task.get_config("num_fewshot")
        if num_fewshot is None or own == 0:  # 0 in the task file is its author's decision
            task.set_config(key="num_fewshot", value=own or 0)
        else:
            task.set_config(key="num_fewshot", value=num_fewshot)
    return found


def _check_known(name: str, manager: Any) -> None:
    if name in manager.all_tasks:
        return
    close = difflib.get_close_matches(name, [*shipped.NAMES, *manager.all_tasks], n=3)
    raise ValueError(
        f"There is no task {name!r}. "
        + (f"Did you mean one of {close}? " if close else "")
        + f"Those that ship are {list(shipped.NAMES)}."
    )


def measure(
    lm: Model, name: str, task: Any, limit: int | None, seed: int, chat: bool
) -> tuple[dict[str, Score], list[str] | None]:
    """One system on one task: its metrics by name, and what it answered if the task has it write."""
    set_seed(seed)
    task.set_fewshot_seed(seed)
    results = lm_eval.evaluate(
        lm, {"tasks": {name: task}}, limit=limit, bootstrap_iters=0, apply_chat_template=chat, fewshot_as_multiturn=chat
    )
    samples = results["samples"][name]
    metrics = {}
    for key, value in results["results"][name].items():
        metric, comma, name_of_filter = key.partition(",")
        if not comma or metric.endswith("_stderr"):
            continue
        rows = [sample[metric] for sample in samples if sample["filter"] == name_of_filter]
        items = _items(rows, getattr(task.aggregation().get(metric), "__name__", "mean"), value)
        better = bool(task.higher_is_better().get(metric, True))
        metrics[metric if name_of_filter == "none" else key] = Score(float(value), len(rows), better, items)
    if task.OUTPUT_TYPE != "generate_until":
        return metrics, None
    first = samples[0]["filter"]
    return metrics, [str(sample["resps"][0][0]) for sample in samples if sample["filter"] == first]


def _items(rows: list[Any], aggregation: str, value: float) -> Items | None:
    """The scores of the items, if the task's score can be made of them; a function of the same name may do something else."""
    if aggregation not in AGGREGATIONS:
        return None
    try:
        if all(isinstance(row, tuple | list) for row in rows):
            items = Items([float(score) for score, _ in rows], [float(weight) for _, weight in rows], aggregation)
        else:
            items = Items([float(row) for row in rows], None, aggregation)
    except (TypeError, ValueError):
        return None
    same = math.isclose(float(items.aggregate()), value, rel_tol=1e-6, abs_tol=1e-9)
    return items if same else None


@contextmanager
def quiet(verbose: bool) -> Iterator[None]:
    """
    Keep lm-evaluation-harness from writing to the terminal: its log below errors, the bar of its task building, and numpy's remarks on
    choices that are impossible.
    """
    if verbose:
        yield
        return
    log, bar = logging.getLogger("lm_eval"), lm_eval_task.tqdm
    level = log.level
    log.setLevel(logging.ERROR)
    lm_eval_task.tqdm = lambda iterable, **_: iterable
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=RuntimeWarning, module="lm_eval")
            yield
    finally:
        log.setLevel(level)
        lm_eval_task.tqdm = bar
