"""
Is the combination better than its parts? Base, tuned, reference and combined side by side on the same items.

The engine is lm-evaluation-harness (`pip install 'hf-eft[eval]'`); what is told about its scores, paired intervals, the gap that is
recovered, and the warning where the combination loses to the small tuned model, is this library's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .scores import COMBINED, TUNED_LARGE, Evaluation, Score

if TYPE_CHECKING:
    from ..modeling_eft import EFTForCausalLM

__all__ = ["Evaluation", "Score", "evaluate", "systems_of"]

Progress = Callable[[str, str, int, int], None]


def systems_of(model: EFTForCausalLM, tuned_large: Any = None) -> dict[str, Any]:
    """
    The systems to lay side by side: every member by its name, the combination as `"combined"`, and a directly tuned large model, where
    there is one, as `"tuned_large"`.

    Raises:
        `ValueError`: If a member has one of these two names.
    """
    if taken := {COMBINED, TUNED_LARGE} & model.members.keys():
        raise ValueError(
            f"A member is called {sorted(taken)[0]!r}, as one of the systems beside the members is. Name it differently."
        )
    systems: dict[str, Any] = {**model.members, COMBINED: model}
    return systems if tuned_large is None else systems | {TUNED_LARGE: tuned_large}


def evaluate(
    systems: Mapping[str, Any],
    tokenizer: Any,
    tasks: Sequence[str | Path | Mapping[str, Any]],
    *,
    limit: int | None = None,
    batch_size: int = 1,
    output: str | Path | None = None,
    restart: bool = False,
    seed: int = 0,
    num_fewshot: int | None = None,
    chat: bool = False,
    progress: Progress | None = None,
    verbose: bool = False,
) -> Evaluation:
    r"""
    Measure every system on every task. All of them read the same text, through the same tokenizer, up to the same length.

    Args:
        systems (`Mapping[str, PreTrainedModel]`): Live models by name, as made by [`systems_of`].
        tokenizer (`PreTrainedTokenizerBase`): The tokenizer of all of them.
        tasks (`Sequence[str | Path | Mapping]`):
            Names of tasks (those of [`hf_eft.evaluation.tasks`], or any of lm-evaluation-harness, which loads their data from the Hub),
            task files, which may run code, or configurations made by [`~hf_eft.evaluation.custom_data.custom_task`].
        limit (`int`, *optional*): How many items of each task, from its beginning; 2 or more.
        batch_size (`int`, *optional*, defaults to 1): How many requests are answered at once.
        output (`str` or `Path`, *optional*):
            A folder. Each result is written to it as soon as it is there and is not measured again by a later run; `evaluation.json` in it
            has the whole.
        restart (`bool`, *optional*, defaults to `False`): Whether to measure anew what is in that folder.
        seed (`int`, *optional*, defaults to 0): Of few-shot examples, sampling and the bootstrap.
        num_fewshot (`int`, *optional*): How many worked examples go before each item; the task's own number if left out.
        chat (`bool`, *optional*, defaults to `False`): Whether to wrap the items in the tokenizer's chat template.
        progress (`Callable[[str, str, int, int], None]`, *optional*):
            Called with system, task, and how many requests are answered of how many.
        verbose (`bool`, *optional*, defaults to `False`): Whether lm-evaluation-harness may log what it does.

    Returns:
        [`Evaluation`]

    Raises:
        `ValueError`: If a task is not known, or the folder holds results of another model, recipe, task, setting or version. Nothing is
            measured then.
        `ImportError`: If lm-evaluation-harness is not installed.
    """
    from ..members.adapters.views import flags_kept
    from . import harness
    from .resume import Store, model_fingerprint, task_fingerprint, versions

    if not systems:
        raise ValueError("No systems were given. Make them with `systems_of(model)`.")
    if limit is not None and limit < 2:
        raise ValueError(f"`limit` must be 2 or more, got {limit}: one item has no interval.")
    if batch_size < 1:
        raise ValueError(f"`batch_size` must be 1 or more, got {batch_size}.")
    if chat and tokenizer.chat_template is None:
        raise ValueError("The tokenizer has no chat template; leave `chat` out.")
    settings = {"limit": limit, "seed": seed, "num_fewshot": num_fewshot, "chat": chat}
    with harness.quiet(verbose):
        loaded = harness.load_tasks(tasks, num_fewshot)
        store = Store(Path(output) if output is not None else None, restart)
        length = harness.common_length(systems, tokenizer)
        of_models = {name: model_fingerprint(model) for name, model in systems.items()}
        of_tasks = {name: task_fingerprint(task, limit) for name, task in loaded.items()}
        prints = {
            (task, system): {"model": of_models[system], "task": of_tasks[task], "settings": settings | {"length": length}}
            | {"versions": versions()}
            for task in loaded
            for system in systems
        }
        results = {pair: store.find(*pair, fingerprint) for pair, fingerprint in prints.items()}
        for (name, system), found in results.items():
            if found is not None:
                continue
            with flags_kept(systems[system]):
                lm = harness.Model(systems[system], tokenizer, batch_size, length, partial(progress or _silent, system, name))
                metrics, replies = harness.measure(lm, name, loaded[name], limit, seed, chat)
            scores = {metric: asdict(score) for metric, score in metrics.items()}
            result = {"fingerprint": prints[name, system], "scores": scores, "replies": replies}
            store.keep(name, system, result)
            results[name, system] = result
    made = datetime.now(UTC).isoformat(timespec="seconds")
    evaluation = _gathered(
        results, settings | {"batch_size": batch_size, "length": length, "made": made} | {"versions": versions()}
    )
    if output is not None:
        evaluation.to_json(Path(output) / "evaluation.json")
    return evaluation


def check_installed() -> None:
    """Raise `ImportError` if lm-evaluation-harness is missing."""
    from . import harness  # noqa: F401


def _silent(system: str, task: str, done: int, total: int) -> None:
    """Nobody asked how far it is."""


def _gathered(results: Mapping[tuple[str, str], Any], settings: dict[str, Any]) -> Evaluation:
    evaluation = Evaluation({}, {}, settings)
    for (task, system), result in results.items():
        scores = {metric: Score.from_dict(score) for metric, score in result["scores"].items()}
        evaluation.scores.setdefault(task, {})[system] = scores
        if result["replies"] is not None:
            evaluation.replies.setdefault(task, {})[system] = result["replies"]
    return evaluation
