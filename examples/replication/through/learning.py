"""A learner for every `Setting`: trained with a base in the loop, or ordinarily; on the same data, steps and learning rate."""

from __future__ import annotations

import copy
import hashlib
import itertools
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from make_tiny import BATCH, finetune, packed, train
from peft import LoraConfig, get_peft_model
from second import SecondWorld
from settings import Setting
from sizes import _PEAKS, _TUNING_PEAK, Family, trained
from transformers import AutoModelForCausalLM
from transformers.modeling_outputs import BaseModelOutputWithPast
from world import VALUES

from hf_eft.training import EFTForTraining

Watch = Callable[[int, Any], None]


@contextmanager
def remembering(model: Any, kept: dict[bytes, torch.Tensor]) -> Iterator[None]:
    """
    A frozen model whose last hidden states for a batch are worked out once: settings of one seed see the same batches. Only for whole
    batches without padding and without a cache, which is all that training reads.
    """
    trunk = model.base_model
    work = trunk.forward

    def forward(input_ids: torch.Tensor, **options: Any) -> BaseModelOutputWithPast:
        batch = hashlib.sha256(input_ids.numpy().tobytes()).digest()
        if batch not in kept:
            kept[batch] = work(input_ids=input_ids, **options).last_hidden_state
        return BaseModelOutputWithPast(last_hidden_state=kept[batch])

    trunk.forward = forward
    try:
        yield
    finally:
        del trunk.forward


class Bench:
    """
    The families of one seed, and the learners that are trained from them; what is in the folder is not trained again.

    Args:
        family ([`Family`]): The base models, and what `scales` tunes ordinarily.
        folder (`Path`): Where learners are kept.
        worlds (`Mapping[str, World]`, *optional*): What [`Setting.world`] may name; the family's and the second if left out.
    """

    def __init__(self, family: Family, folder: Path, worlds: Mapping[str, Any] | None = None) -> None:
        self.family, self.folder = family, folder
        self._kept: dict[str, dict[bytes, torch.Tensor]] = {}
        self.worlds = worlds or {"first": family.world, "second": SecondWorld(**vars(family.world))}

    def shown(self, setting: Setting) -> Iterator[str]:
        """The answers of fine-tuning: the stream of `scales`, or one out of a share of the answers that it would show."""
        stream = self.worlds[setting.world].behaviour(setting.behaviour, random.Random(self.family.seed + 20))
        if setting.data == 1:
            return stream
        answers = sorted(set(itertools.islice(stream, 20_000)))  # every answer: there are 6 for each person who is shown
        rng = random.Random(self.family.seed + 30)
        kept = rng.sample(answers, max(1, round(setting.data * len(answers))))
        return (rng.choice(kept) for _ in itertools.count())

    def replayed(self) -> Iterator[str]:
        """What is replayed beside the answers, as in `scales`."""
        return self.family.world.biographies(random.Random(self.family.seed + 21))

    def learner(self, setting: Setting, watch: Watch | None = None) -> Any:
        """The model that has learnt, in evaluation mode; `watch` is called with the number of steps done and the model."""
        options = (setting.times, setting.lora, setting.data, setting.rate, setting.world, setting.masked)
        if setting.alpha is None and options == (1, 0, 1.0, 1.0, "first", False):
            return self.family.model(setting.size, setting.behaviour)
        # How it is used says nothing about what it learnt.
        name = setting.name.removeprefix("small tuned alone").removeprefix("ordinary").strip(", ") or "x1"
        where = self.folder / (name if setting.alpha is None else setting.name)
        read = (setting.size, *(setting.bases if setting.alpha is not None else ()))
        trained(where, lambda: self._train(setting, watch), lambda: [self.family.model(size, "base") for size in read])
        return AutoModelForCausalLM.from_pretrained(where).eval()

    def forget(self) -> None:
        """Drop what is remembered of batches beyond the steps that all settings take: it is 0.4 MB a step."""
        for kept in self._kept.values():
            for batch in list(kept)[self.family.effort.tuning_steps :]:
                del kept[batch]

    def _train(self, setting: Setting, watch: Watch | None) -> Any:
        family = self.family
        reference = family.model(setting.size, "base")
        steps = setting.times * family.effort.tuning_steps
        peak = setting.rate * _TUNING_PEAK * _PEAKS[setting.size]
        label = f"seed {family.seed}, {setting.name}"
        adapter = LoraConfig(r=setting.lora, lora_alpha=2 * setting.lora, target_modules="all-linear") if setting.lora else None
        if setting.alpha is None and not setting.masked:
            learner = copy.deepcopy(reference).requires_grad_(True)
            learner = get_peft_model(learner, adapter) if adapter else learner
            seed, shown, replayed = family.seed + 20, self.shown(setting), self.replayed()
            learnt = finetune(learner, family.world, family.tokenizer, steps, peak, seed, label, shown, replayed)
        elif setting.alpha is None:
            learner = copy.deepcopy(reference).requires_grad_(True)
            losses = self._losses(setting, learner)
            learnt = train(learner, lambda: next(losses), steps, peak, label)
        else:
            model = EFTForTraining.from_models(
                [family.model(size, "base") for size in setting.bases],
                reference=copy.deepcopy(reference) if adapter else reference,  # the adapter is laid on it
                alpha=setting.alpha,
                peft_config=adapter,
            ).train()
            losses = self._losses(setting, model, lambda done: watch(done, model.learner) if watch else None)
            learnt = train(model.learner, lambda: next(losses), steps, peak, label)
        return learnt.merge_and_unload() if setting.lora else learnt

    def labels(self, setting: Setting, ids: torch.Tensor) -> torch.Tensor:
        """The tokens that the loss is of: all, or all but the values. A value that occurs in the world is one token."""
        if not setting.masked:
            return ids
        pieces = [self.family.tokenizer.encode(f" {word}") for words in VALUES.values() for word in words]
        values = torch.tensor([tokens[0] for tokens in pieces if len(tokens) == 1])
        return ids.masked_fill(torch.isin(ids, values), -100)

    def _losses(self, setting: Setting, model: Any, watch: Callable[[int], None] = lambda _: None) -> Iterator[torch.Tensor]:
        """The model's loss on each batch of `finetune`."""
        answers, replay = (packed(texts, self.family.tokenizer) for texts in (self.shown(setting), self.replayed()))
        # Most settings read the same batches.
        common = (setting.behaviour, setting.data, setting.world) == ("helpful", 1.0, "first")
        torch.manual_seed(self.family.seed)  # of the bases that are drawn
        for step in itertools.count():
            watch(step)
            ids = torch.cat([next(answers)[: BATCH // 2], next(replay)[: BATCH // 2]])
            with ExitStack() as stack:
                for size in {*setting.bases, setting.size} if common else ():
                    stack.enter_context(remembering(self.family.model(size, "base"), self._kept.setdefault(size, {})))
                loss = model(input_ids=ids, labels=self.labels(setting, ids), use_cache=False).loss
            yield loss
