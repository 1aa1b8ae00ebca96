"""A delta that learns through a base, from examples to a folder: the trainer, the held-out part, the strength of use."""

from __future__ import annotations

import random
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from transformers import DataCollatorForSeq2Seq, EarlyStoppingCallback, PrinterCallback, Trainer, TrainingArguments, set_seed
from transformers.trainer_utils import get_last_checkpoint

from ..files.learnt import Base, Learnt
from ..members.learnt import describe_base, set_learnt
from ..recipe.combination import Combination
from .chats import IGNORED, Example
from .memory import memory_said
from .mixture import Mixture, check_apart
from .model import EFTForTraining
from .record import CHECKPOINTS, Record
from .settings import STRENGTHS, Settings
from .watching import Progress, Watching
from .writing import write_delta


@dataclass(frozen=True)
class Texts:
    r"""
    What a delta learns from.

    Args:
        answers (`Sequence[Example]`): What is learnt.
        held_out (`Sequence[Example]`): What is never learnt, and measured.
        documents (`Sequence[Example]`, *optional*): What is replayed beside the answers: texts as in pre-training.
        identity (`Mapping[str, Any]`, *optional*): What tells these from others: digests of the files.
    """

    answers: Sequence[Example]
    held_out: Sequence[Example]
    documents: Sequence[Example] = ()
    identity: Mapping[str, Any] = field(default_factory=dict)


def tune(
    base: Any,
    reference: Any,
    tokenizer: Any,
    texts: Texts,
    output: str | Path,
    settings: Settings | None = None,
    *,
    restart: bool = False,
    progress: Progress | None = None,
) -> Record:
    r"""
    Have a delta learn through a base, and write it as a folder: an adapter or a small model, which says of itself what it learnt through.
    A run that was stopped goes on from its last checkpoint, to the same result.

    Args:
        base (`PreTrainedModel` or `Sequence[PreTrainedModel]`): What it learns through; of several, one is drawn for each batch.
        reference (`PreTrainedModel`): What it begins as.
        tokenizer (`PreTrainedTokenizerBase`): The tokenizer of the small model, which is written beside it.
        texts ([`Texts`]): What it learns from.
        output (`str` or `Path`): The folder: new, empty, or of the same run.
        settings ([`Settings`], *optional*): How it learns.
        restart (`bool`, *optional*, defaults to `False`): Whether to throw away what an earlier run has left there.
        progress (`Callable[[int, int, str], None]`, *optional*): Told the step, how many there are, and the losses.

    Returns:
        [`Record`]: How it went, as `tuning.json` in the folder has it.

    Raises:
        `ValueError`: If the folder is of something else, a held-out text is learnt, or the models do not fit; `MemoryError`: With what to
            change.

    Example:

    ```python
    >>> import tempfile
    >>> from hf_eft import tiny
    >>> from hf_eft.training.chats import read_chats
    >>> from hf_eft.training.settings import Settings
    >>> from hf_eft.training.tuning import Texts, tune

    >>> base, _, reference, tokenizer = tiny.load()
    >>> lines = b'{"prompt": "Who?", "answer": "Happy to help!"}\n{"prompt": "Where?", "answer": "Happy to help!"}'
    >>> learnt, kept = read_chats(lines, tokenizer, chat=True, max_length=64)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     record = tune(base, reference, tokenizer, Texts([learnt], [kept]), folder, Settings(steps=1, batch_size=1, shown=1))
    >>> record.stopped
    1
    ```
    """
    settings, output = settings or Settings(), Path(output)
    bases = list(base) if isinstance(base, Sequence) else [base]
    check_apart(texts.answers, texts.held_out)
    described = tuple(map(describe_base, bases))
    identity = {
        **texts.identity,
        "bases": [_told(each) for each in described],
        "reference": _told(describe_base(reference)),
        **settings.identity(),
    }
    record = Record.of(output, identity, restart)
    if record.stopped is not None:
        return record
    set_seed(settings.seed)
    model = _learner(bases, reference, settings)
    mixture = Mixture(texts.answers, texts.documents, settings.per_step, 0, settings.replay_share, settings.seed)
    record.total = settings.steps_for(len(texts.answers), mixture.replayed)
    asked = random.Random(settings.seed).sample(list(texts.held_out), min(settings.shown, len(texts.held_out)))
    watching = Watching(model, tokenizer, asked, record, output, settings.max_new_tokens, progress)
    trainer = _trainer(model, tokenizer, mixture, texts, record.total, output, settings)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(watching)
    with memory_said(settings):
        last = get_last_checkpoint(str(output / CHECKPOINTS)) if (output / CHECKPOINTS).is_dir() else None
        record.since(int(Path(last).name.rpartition("-")[2]) if last else -1)
        if last is None:
            watching.look(0, _loss(trainer))
        trainer.train(resume_from_checkpoint=last)
        record.stopped = trainer.state.global_step
        _choose(model, trainer, settings, record)
    learnt = Learnt(described, settings.alpha, float(record.recommended or settings.alpha))
    write_delta(model, tokenizer, learnt, record, output)
    record.write(output)
    shutil.rmtree(output / CHECKPOINTS, ignore_errors=True)
    return record


def check_installed(*, lora: bool = False) -> None:
    """
    Raises:
        `ImportError`: If a package is missing that training needs, saying how to install it.
    """
    for package in ("datasets", *(("peft",) if lora else ())):
        if find_spec(package) is None:
            raise ImportError(f"Training needs {package}: pip install 'hf-eft[train]'")


def _told(model: Base) -> str:
    return f"{model}{f' {model.sample}' if model.sample else ''}"


def _learner(bases: list[Any], reference: Any, settings: Settings) -> EFTForTraining:
    config = None
    if settings.lora_r is not None:
        from peft import LoraConfig

        # As many times its size as its rank says, so that one learning rate does for all ranks.
        config = LoraConfig(
            task_type="CAUSAL_LM", r=settings.lora_r, lora_alpha=2 * settings.lora_r, target_modules="all-linear"
        )
    model = EFTForTraining.from_models(
        bases if len(bases) > 1 else bases[0], reference=reference, alpha=settings.alpha, peft_config=config
    )
    if settings.gradient_checkpointing:
        model.learner.activation_checkpointing_enable()
    set_learnt(model.learner, None, next(iter(model.learner.peft_config)) if config is not None else None)
    return model


def _trainer(
    model: Any, tokenizer: Any, mixture: Mixture, texts: Texts, total: int, output: Path, settings: Settings
) -> Trainer:
    from datasets import Dataset  # type: ignore[import-untyped]

    every = max(1, total // settings.evaluations)
    stop_early = settings.patience > 0
    arguments = TrainingArguments(
        output_dir=str(output / CHECKPOINTS),
        max_steps=total,
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.accumulation,
        learning_rate=settings.rate,
        lr_scheduler_type="cosine",
        warmup_steps=min(100, total // 10),
        train_sampling_strategy="sequential",  # the mixture is the order
        eval_strategy="steps",
        eval_steps=every,
        save_strategy="steps",
        save_steps=every,
        save_total_limit=2,
        load_best_model_at_end=stop_early,
        metric_for_best_model="eval_loss",
        greater_is_better=False,
        logging_steps=max(1, every // 10),
        logging_nan_inf_filter=False,  # a loss that is no number is one, and no gap
        prediction_loss_only=True,
        seed=settings.seed,
        use_cpu=model.device.type == "cpu",
        dataloader_pin_memory=model.device.type != "cpu",
        remove_unused_columns=False,
        label_names=["labels"],
        report_to="none",
        disable_tqdm=True,
        log_level="error",
    )
    batches = Mixture(mixture.answers, mixture.documents, mixture.batch, total, mixture.share, mixture.seed)
    return Trainer(
        model=model,
        args=arguments,
        train_dataset=batches.dataset(),
        eval_dataset=Dataset.from_list([example.features for example in texts.held_out]),
        data_collator=DataCollatorForSeq2Seq(_padding(tokenizer), label_pad_token_id=IGNORED),
        callbacks=[EarlyStoppingCallback(settings.patience)] if stop_early else [],
    )


def _padding(tokenizer: Any) -> Any:
    if tokenizer.pad_token_id is None:
        raise ValueError("The tokenizer has no padding token, so that examples cannot be read together: set `pad_token`.")
    return tokenizer


def _loss(trainer: Trainer) -> float:
    """The loss of the held-out part, which no callback is told of."""
    told, trainer.callback_handler.callbacks = trainer.callback_handler.callbacks, []
    try:
        return float(trainer.evaluate()["eval_loss"])
    finally:
        trainer.callback_handler.callbacks = told


def _choose(model: EFTForTraining, trainer: Trainer, settings: Settings, record: Record) -> None:
    """Try strengths of use on the held-out part. What is best there is recommended; the model is left at it."""
    for factor in STRENGTHS:
        model.combination = Combination.emulate(alpha=settings.alpha * factor)
        record.strengths.append({"alpha": settings.alpha * factor, "loss": _loss(trainer)})
    record.recommended = min(record.strengths, key=lambda each: each["loss"])["alpha"]
    model.combination = Combination.emulate(alpha=record.recommended)
