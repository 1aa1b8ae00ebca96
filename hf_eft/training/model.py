"""`EFTForTraining`: an [`EFTForCausalLM`] of which one member learns, through the combination."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from ..members.adapters import by_adapter
from ..members.members import Members, named_members
from ..modeling_eft import EFTForCausalLM
from ..recipe.combination import Coefficient, Combination
from .bases import with_base
from .learner import freeze, loaded, name_of_learner, new_learner
from .loss import Loss
from .modes import keep_apart


class EFTForTraining(EFTForCausalLM):
    r"""
    A combination of which one member learns: the loss is that of `softmax(sum_k c_k log p_k)`, and gradients reach that member alone.

    Contract:

    - **What learns**: [`learner`], a model or an adapter on the reference. All other weights have no gradient, and their models stay in
      evaluation mode whatever [`train`] is told.
    - **Loss**: of the tokens that have a label, each predicted by the combination; a token that follows padding is predicted by nothing and
      is left out. Computed in pieces over positions, so that `forward` with labels returns no logits (unless `keep_logits` is set).
    - **Everything else** is as in [`EFTForCausalLM`]: `generate`, drafts, members' own prompts.
    - [`save_pretrained`] writes the learner only: what trainers call for their checkpoints.

    Example:

    ```python
    >>> import torch
    >>> from hf_eft import tiny
    >>> from hf_eft.training import EFTForTraining

    >>> base, _, reference, tokenizer = tiny.load()
    >>> model = EFTForTraining.from_models(base, reference=reference, alpha=0.5).train()
    >>> text = tokenizer("Question: Where was Oscar Palmer born? Answer:", return_tensors="pt", return_token_type_ids=False)
    >>> loss = model(**text, labels=text["input_ids"]).loss
    >>> loss.backward()
    >>> all(p.grad is None for p in base.parameters()), all(p.grad is not None for p in model.learner.parameters())
    (True, True)
    ```
    """

    keep_logits = False  # whether `forward` returns the logits of all positions beside the loss
    positions_per_piece: int | None = None  # how many a piece of the loss has; by default 128 MiB of logits in float32
    _learns: str
    _bases: list[Members]  # the members with each base, the first being those that evaluate and generate

    @classmethod
    def from_models(  # type: ignore[override]
        cls,
        base: PreTrainedModel | Sequence[PreTrainedModel] | None,
        tuned: Any = None,
        reference: PreTrainedModel | None = None,
        *,
        alpha: Coefficient | None = None,
        beta: Coefficient | None = None,
        combination: Combination | None = None,
        peft_config: Any = None,
        learns: str | None = None,
        tokenizers: Mapping[str, Any] | None = None,
    ) -> EFTForTraining:
        r"""
        Make a combination that learns, of live models. Their weights are left as they are, those of the learner excepted; `requires_grad`
        is taken from all others.

        Args:
            base (`PreTrainedModel` or `Sequence[PreTrainedModel]`, *optional*):
                The model to learn through; or several, one of which is drawn for each batch that is learnt from, by PyTorch's generator of
                the CPU, whose state trainers keep with their checkpoints. The first evaluates and generates.
            tuned (`PreTrainedModel`, `PeftModel`, `str`, or a mapping, *optional*):
                The member that goes on learning: a model, a `PeftModel`, or the folder of an adapter; or several members by name, see
                `learns`. By default one that begins as the reference.
            reference (`PreTrainedModel`, *optional*): What the learner was before.
            alpha (`float`, *optional*): Strength of the behaviour delta in training.
            beta (`float`, *optional*): As in [`EFTForCausalLM.from_models`].
            combination ([`Combination`], *optional*): As there.
            peft_config (`peft.PeftConfig`, *optional*):
                Have an adapter learn, on the reference, whose weights are there once. By default a copy of the reference learns.
            learns (`str`, *optional*): Which of several tuned members learns.
            tokenizers (`Mapping[str, PreTrainedTokenizerBase]`, *optional*): As in [`EFTForCausalLM.from_models`].

        Raises:
            `ValueError`: If a member cannot learn or be learnt through, or it is not said which one learns.
        """
        bases = list(base) if isinstance(base, Sequence) else [base]
        if peft_config is not None and tuned is not None:
            raise ValueError(
                "Give `tuned`, which goes on learning as it is, or a `peft_config` for a new adapter on the reference."
            )
        if tuned is None:
            tuned = new_learner(reference, peft_config)
        elif isinstance(tuned, Mapping):
            tuned = {name: loaded(member, reference) if name == learns else member for name, member in tuned.items()}
        else:
            tuned = by_adapter(loaded(tuned, reference))
        recipe = Combination.of(alpha, beta, combination, tuned)
        name = name_of_learner(tuned, recipe, learns)
        model = super().from_models(bases[0], tuned, reference, combination=recipe, tokenizers=tokenizers)
        model._have_learn(name, named_members(None, tuned, None)[name], bases[1:])
        return model

    def _have_learn(self, name: str, learner: Any, others: Sequence[Any]) -> None:
        members: Members = self._members
        self.__dict__["_bases"] = [members, *(with_base(members, base) for base in others)]
        frozen = [model for each in self._bases for other, model in each.models.items() if other != name]
        freeze(frozen, learner, members.models[name], members.adapters.get(name))
        keep_apart(members.models[name], dict.fromkeys(frozen))
        self.__dict__["_learner"] = learner  # no submodule: its weights are those of a member
        self._learns = name
        self.eval()

    @property
    def learner(self) -> Any:
        """The model that learns: a `PreTrainedModel` or a `PeftModel`, which can be saved and used alone."""
        return self.__dict__["_learner"]

    def train(self, mode: bool = True) -> EFTForTraining:
        """Have the learner be in training mode. The other members stay in evaluation mode."""
        self.training = mode
        members = self._members
        for each in self._bases:
            for model in each.distinct_models.values():
                model.eval()
        members.models[self._learns].train(mode)
        for stack in members.stacks:
            stack.member.model.training = mode  # one pass of all adapters would keep activations of those that do not learn
        return self

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        shift_labels: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        r"""
        As [`EFTForCausalLM.forward`], and with labels:

        Args:
            input_ids (`torch.LongTensor` of shape `(batch, positions)`): The texts.
            attention_mask (`torch.LongTensor` of shape `(batch, positions)`, *optional*): 0 where a token is padding.
            position_ids (`torch.LongTensor` of shape `(1 or batch, positions)`, *optional*):
                Positions. Where they begin again, another text begins (packing without padding).
            labels (`torch.LongTensor` of shape `(batch, positions)`, *optional*): The tokens to learn; -100 is none.
            shift_labels (`torch.LongTensor` of shape `(batch, positions)`, *optional*): Instead: at each position, the token after it.
            num_items_in_batch (`int`, *optional*): What the sum over tokens is divided by, in place of their number.
            **kwargs: As there: `coefficients`, `member_inputs`.

        Returns:
            [`~transformers.modeling_outputs.CausalLMOutputWithPast`]: The loss, without logits; without labels, as there.
        """
        with self._through_a_base():
            if labels is None and shift_labels is None:
                return super().forward(input_ids, attention_mask, position_ids, **kwargs)
            loss = Loss(self, input_ids, attention_mask, position_ids, kwargs)
            logits = None
            if self.keep_logits:
                with torch.no_grad():
                    logits = super().forward(input_ids, attention_mask, position_ids, **kwargs).logits
            return CausalLMOutputWithPast(loss=loss.mean(labels, shift_labels, num_items_in_batch), logits=logits)

    @contextmanager
    def _through_a_base(self) -> Iterator[None]:
        """Where it is learnt, have the base be one that is drawn."""
        if len(self._bases) == 1 or not self.training or not torch.is_grad_enabled():
            yield
            return
        drawn = int(torch.randint(len(self._bases), ()))
        self.__dict__["_members"] = self._bases[drawn]
        try:
            yield
        finally:
            self.__dict__["_members"] = self._bases[0]

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        for each in self.__dict__.get("_bases", [])[1:]:
            each.models[each.main]._apply(fn, recurse)  # no submodule: a trainer would count its weights
        return super()._apply(fn, recurse)

    def save_pretrained(self, save_directory: Any, *, state_dict: Any = None, **kwargs: Any) -> None:  # type: ignore[override]
        """Save the learner, as it saves itself; `state_dict` would be that of all members, and is not looked at."""
        self.learner.save_pretrained(save_directory, **kwargs)
