"""`EFTTeacher`: a combination as the teacher of one model, for trainers that want one body and one head."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutput

from ..members.membership import describe
from ..modeling_eft import EFTForCausalLM
from .heads import Halves

# What a trainer would do to the logits that it makes, as the first member's configuration says it of that member alone.
_OF_ONE_HEAD = ("final_logit_softcapping", "logit_scale", "output_multiplier", "lm_head_multiplier", "logits_scaling")


class EFTTeacher(EFTForCausalLM):
    r"""
    A combination as one body and one head: the members' last states side by side, and their heads' weights, each times its coefficient,
    likewise. Their product is the combination's logits, as these are a sum. That is what [`trl.DistillationTrainer`] computes of its
    teacher; trainers that take logits (`GKDTrainer`, `GOLDTrainer`) take any [`EFTForCausalLM`].

    Memory: the heads once more, `vocabulary x sum of widths`.

    Make it with [`EFTTeacher.of`].

    Example:

    ```python
    >>> from hf_eft import EFTForCausalLM, tiny
    >>> from hf_eft.training import EFTTeacher

    >>> base, tuned, reference, tokenizer = tiny.load()
    >>> teacher = EFTTeacher.of(EFTForCausalLM.from_models(base, tuned=tuned, reference=reference))
    >>> ids = tokenizer("Question: Who", return_tensors="pt")["input_ids"]
    >>> logits = teacher.get_output_embeddings()(teacher.base_model(input_ids=ids).last_hidden_state)
    >>> bool((logits - teacher(input_ids=ids).logits).abs().max() < 1e-3)
    True
    ```
    """

    _head: nn.Linear | None = None

    @classmethod
    def of(cls, model: EFTForCausalLM) -> EFTTeacher:
        """
        The members of a combination as a teacher.

        Raises:
            `ValueError`: If its logits are no sum of the members' linear heads.
        """
        recipe, members = model.combination, model._members
        if recipe.truncation is not None or recipe.scheduled or recipe.phased or recipe.rules:
            raise ValueError(
                f"The combination {recipe} is no plain sum, which a trainer that wants one head could compute. Leave truncation, "
                "schedules, rules and phases out; or use a trainer that takes logits (`GKDTrainer`)."
            )
        if len(set(members.vocabulary.widths.values())) > 1 or members.vocabulary.known is not None:
            raise ValueError(
                f"The members' heads are of the widths {members.vocabulary.widths}, or do not know the same tokens; one head has one "
                "width. Use a trainer that takes logits (`GKDTrainer`)."
            )
        text = members.models[members.main].config.get_text_config()
        if changed := [key for key in _OF_ONE_HEAD if getattr(text, key, None) not in (None, 1, 1.0)]:
            raise ValueError(
                f"The member {members.main!r} has {changed} in its configuration, which a trainer that wants one head would apply to the "
                "logits of all members. Use a trainer that takes logits (`GKDTrainer`)."
            )
        teacher = cls(describe(members, recipe), members, recipe)
        teacher.generation_config = model.generation_config
        teacher.requires_grad_(False).eval()
        halves = {
            name: Halves(name, member.model, "logits_to_keep" in member.accepts) for name, member in members.distinct.items()
        }
        teacher.__dict__["_halves"] = halves
        teacher._states(torch.zeros(1, 2, dtype=torch.long), None)
        for name, half in halves.items():
            _check_linear(name, half)
        teacher.__dict__["_head"] = teacher._one_head()
        return teacher

    def _states(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> dict[str, torch.Tensor]:
        def read(name: str) -> Callable[[int], Any]:
            return lambda keep: self._members.step(input_ids, attention_mask=attention_mask, logits_to_keep=keep, only={name})[
                name
            ]

        with torch.no_grad():
            return {name: half.states(read(name)) for name, half in self.__dict__["_halves"].items()}

    def _one_head(self) -> nn.Linear:
        members, parts, bias = self._members, [], None
        device = members.distinct[members.main].device
        for name, member in members.distinct.items():
            c = sum(self.combination.coefficient(each) for each, owner in members.owner.items() if owner == name)
            head = member.model.get_output_embeddings()
            parts.append(head.weight.detach().to(device, torch.float32) * c)  # (vocab, width)
            if head.bias is not None:
                bias = head.bias.detach().to(device, torch.float32) * c + (0.0 if bias is None else bias)
        weight = torch.cat(parts, dim=1)
        head = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
        head.weight = nn.Parameter(weight, requires_grad=False)
        if bias is not None:
            head.bias = nn.Parameter(bias, requires_grad=False)
        return head

    @property
    def base_model(self) -> Any:
        """The members' bodies as one: a callable that returns their last states side by side, `(batch, positions, sum of widths)`."""
        return super().base_model if self._head is None else self._bodies

    def _bodies(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, use_cache: bool = False, **kwargs: Any
    ) -> BaseModelOutput:
        head = self.get_output_embeddings()
        states = [values.to(head.weight.device, torch.float32) for values in self._states(input_ids, attention_mask).values()]
        return BaseModelOutput(last_hidden_state=torch.cat(states, dim=-1))

    def get_output_embeddings(self) -> Any:
        if self._head is None:
            return super().get_output_embeddings()
        device = self._members.distinct[self._members.main].device
        if self._head.weight.device != device:
            self._head.to(device)
        return self._head


def _check_linear(name: str, half: Halves) -> None:
    """Raise if a member's logits are not its states times its head's weight."""
    head = half.model.get_output_embeddings()
    weight = getattr(head, "weight", None)
    plain = False
    if not half.whole and type(head) is nn.Linear and isinstance(weight, torch.Tensor) and weight.is_floating_point():
        states = 8.0 * torch.randn(4, head.in_features, generator=torch.Generator().manual_seed(0)).to(
            weight.device, weight.dtype
        )
        with torch.no_grad():
            plain = torch.allclose(half.logits(states).float(), head(states).float(), rtol=1e-2, atol=1e-2)
    if not plain:
        raise ValueError(
            f"The member {name!r} ({type(half.model).__name__}) does more than multiply its states with its head's weight (a scale, a cap, "
            "an adapter, packed weights), which a trainer that wants one head does not do. Use a trainer that takes logits (`GKDTrainer`)."
        )
