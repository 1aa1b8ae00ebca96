"""`EFTForTraining`: an [`EFTForCausalLM`] of which one member learns, through the combination."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.modules.module import _IncompatibleKeys
from transformers import PreTrainedModel

from ..members.adapters import by_adapter
from ..members.members import Members, named_members
from ..members.membership import describe
from ..recipe.combination import REFERENCE, Coefficient, Combination
from . import checkpoints
from .bases import with_base
from .in_pieces import EFTInPieces
from .learner import freeze, loaded, name_of_learner, new_learner
from .modes import keep_apart


class EFTForTraining(EFTInPieces):
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

    _learns: str
    # What `generate` is told beside what a trainer tells it: `{"assistant_model": model.tuned}`, for drafts.
    rollouts: Mapping[str, Any] | None = None
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

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """
        As [`EFTForCausalLM.generate`], with the options of `rollouts` where a call does not say otherwise.

        Raises:
            `ValueError`: In training mode with several bases: roll-outs would be of another combination than the one that learns.
        """
        if self.training and len(self._bases) > 1:
            raise ValueError(
                "With several bases, texts that are learnt from must not be generated: they would be of the first base, the loss of the "
                "one that is drawn. Learn through one base with this trainer; or call `eval()` first, to generate with the first."
            )
        return super().generate(*args, **{**(self.rollouts or {}), **kwargs})

    def get_input_embeddings(self) -> torch.nn.Module:
        """The learner's, which what trainers do to embeddings in training is meant for."""
        return self._members.models[self._learns].get_input_embeddings()

    def enable_input_require_grads(self) -> None:
        self._members.models[self._learns].enable_input_require_grads()

    def disable_input_require_grads(self) -> None:
        self._members.models[self._learns].disable_input_require_grads()

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

    def _models(self) -> list[Any]:
        found = [model for members in self._bases for model in members.distinct_models.values()]
        return list({id(model): model for model in found}.values())

    def reference_policy(self) -> EFTInPieces:
        """
        The combination without what was learnt, the reference in the learner's place: with `alpha`, the base. It shares the members, and is
        what [`trl.DPOTrainer`] takes as its `ref_model`.

        Raises:
            `ValueError`: If there is no reference, or several bases, of which the policy may have drawn another.
        """
        if REFERENCE not in self._members.names:
            raise ValueError(f"Without a reference among {list(self._members.names)}, there is nothing before what was learnt.")
        if len(self._bases) > 1:
            raise ValueError("With several bases there is no one policy before what was learnt. Make a model with one base.")
        coefficients = dict(self.combination.coefficients)
        coefficients[REFERENCE] = coefficients.get(REFERENCE, 0.0) + coefficients.pop(self._learns)  # type: ignore[operator, arg-type]
        kept = {name: c for name, c in coefficients.items() if c != 0}
        recipe = Combination(kept, self.combination.truncation)
        members = self._members.only(tuple(name for name in self._members.names if name in kept))
        policy = EFTInPieces(describe(members, recipe), members, recipe)
        policy.positions_per_piece = self.positions_per_piece
        return policy.eval()

    # Checkpoints --------------------------------------------------------------------------------------------------------

    @property
    def _adapter(self) -> str | None:
        """Which adapter of the learner it is."""
        member = self._members.adapters.get(self._learns)
        return member.adapter if member is not None and isinstance(member.adapter, str) else None

    def save_pretrained(self, save_directory: Any, *, state_dict: Any = None, **kwargs: Any) -> None:  # type: ignore[override]
        """Save the learner, as it saves itself; `state_dict` would be that of all members, and is not looked at."""
        for kept in self._kept_states.values():
            kept.flush()
        checkpoints.save(self.learner, save_directory, self._adapter, **kwargs)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load what [`save_pretrained`] wrote into the learner; or weights of all members, as `state_dict()` names them."""
        prefixes = tuple(f"{name}." for name in self._members.distinct)
        if state_dict and all(key.startswith(prefixes) for key in state_dict):
            return super().load_state_dict(state_dict, strict, assign)
        checkpoints.load(self.learner, state_dict, self._adapter)
        return _IncompatibleKeys([], [])
