"""Which of a set of members have weights of their own, which are adapters on another's, and which are another member."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from transformers import PreTrainedModel

from .adapters import Adapted
from .members import Members


@dataclass
class Parts:
    r"""
    What there is to describe, and to save, of a set of members.

    Args:
        shared (`dict[str, str]`): For a member that is another member's model, that member.
        adapters (`dict[str, str]`): For a member that is an adapter, the model it is on: a member, or one of `trunks`.
        own (`dict[str, PreTrainedModel]`): The members with weights of their own.
        trunks (`dict[str, PreTrainedModel]`): Models under adapters that are no members, by a name that no member has.
    """

    shared: dict[str, str]
    adapters: dict[str, str] = field(default_factory=dict)
    own: dict[str, PreTrainedModel] = field(default_factory=dict)
    trunks: dict[str, PreTrainedModel] = field(default_factory=dict)

    @classmethod
    def of(cls, members: Members) -> Parts:
        """The parts of members as they run."""
        return cls.among(members.models, members.adapters)

    @classmethod
    def among(cls, models: Mapping[str, PreTrainedModel], adapters: Mapping[str, Adapted]) -> Parts:
        """The parts of models by name, of which some are views of what `adapters` says."""
        first: dict[int, str] = {}
        owner = {name: first.setdefault(id(model), name) for name, model in models.items()}
        parts = cls({name: other for name, other in owner.items() if name != other})
        read = {name: adapters.get(name, Adapted(models[name], None)) for name in first.values()}
        parts.own = {name: models[name] for name, member in read.items() if member.adapter is None}
        places = {id(read[name].trunk): name for name in parts.own}
        for name, member in read.items():
            if member.adapter is None:
                continue
            key = id(member.trunk)
            if key not in places:
                places[key] = _free({*models, *parts.trunks})
                parts.trunks[places[key]] = member.trunk
            parts.adapters[name] = places[key]
        return parts

    @property
    def models(self) -> dict[str, PreTrainedModel]:
        """Everything with weights of its own, by name."""
        return {**self.own, **self.trunks}


def _free(taken: set[str]) -> str:
    """A name for a model that is no member."""
    return next(name for i in range(1, len(taken) + 2) if (name := "trunk" if i == 1 else f"trunk_{i}") not in taken)
