"""What is drafted: a block, and where the drafter works on a device of its own, the next one while the target looks at the first."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from ...members.beside import Place, place_of
from ...members.devices import is_sharded
from ...members.recurrent import records
from .scoring import joined

if TYPE_CHECKING:
    from .drafting import Drafter
    from .reading import Reading


@dataclass
class Draft:
    r"""
    Tokens that stand behind the rows' ends until they are looked at.

    Args:
        drafter ([`~hf_eft.decoding.speculative.drafting.Drafter`]): Who drafts them.
        tokens (`list[torch.LongTensor]`): `(rows, 1)` each: the one that no member has read, and those drafted.
        read (`list[dict[str, torch.Tensor]]`): By token that the drafter has read, its logits, `(rows, 1, width)`, by reader.
        scores (`list[torch.Tensor]`): By token drafted, what it was chosen from, `(rows, vocab)`.
        is_ahead (`bool`): Whether it was drafted while the target looked at the block before.
    """

    drafter: Drafter
    tokens: list[torch.Tensor]
    read: list[dict[str, torch.Tensor]] = field(default_factory=list)
    scores: list[torch.Tensor] = field(default_factory=list)
    is_ahead: bool = False

    @property
    def block(self) -> int:
        """How many tokens are drafted."""
        return len(self.tokens) - 1

    @property
    def line(self) -> torch.Tensor:
        """All tokens, `(rows, block + 1)`."""
        return torch.cat(self.tokens, dim=1)

    def logits(self, count: int) -> dict[str, torch.Tensor]:
        """The drafter's logits of the first tokens, `(rows, count, width)`, by reader."""
        return joined(self.read[:count])

    def proposed(self, count: int) -> torch.Tensor:
        """What the first drafted tokens were chosen from, `(rows, count, vocab)`."""
        return torch.stack(self.scores[:count], dim=1) if self.scores else torch.empty(0)

    def after(self, count: int) -> Draft:
        """What is left of it once so many tokens are read by all."""
        return Draft(self.drafter, self.tokens[count:], self.read[count:], self.scores[count:], is_ahead=True)


def works_beside(drafter: Drafter, reading: Reading) -> bool:
    """
    Whether a drafter can go on while the others look at a block: some of these are somewhere else, and it can forget what it reads
    meanwhile. (States that cannot be cropped to any length would need marks of both blocks.)
    """
    own = drafter.reading
    if own is None:
        return False
    readers = drafter.members or tuple(own.members.distinct)
    models = [own.members.distinct[name].model for name in readers]
    others = [member.model for name, member in reading.members.distinct.items() if name not in drafter.members]
    layers = [layer for name in readers for layer in own.cache.members[name].layers]
    if (
        own.members.stateful
        or reading.members.stateful
        or any(map(records, layers))
        or any(map(is_sharded, [*models, *others]))
    ):
        return False
    mine = [place_of(model) for model in models]
    return any(all(_are_apart(place, each) for each in mine) for place in map(place_of, others))


def _are_apart(one: Place, other: Place) -> bool:
    """Whether two places can be at work at the same time: on one accelerator, memory that one frees must not be taken by the other."""
    return one.device != other.device or (one != other and one.device.type == "cpu")


class Aside:
    r"""
    Choices of drafted tokens, on the device of the rows, that do not stand behind what this device was given before.

    Args:
        device (`torch.device`): Where the rows are. On an accelerator, choices are made in a stream of their own.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._stream = device, None if device.type == "cpu" else torch.Stream(device)
        self._before: Any = None

    def mark(self) -> None:
        """What comes from here on is not waited for by what is done aside."""
        if self._stream is not None:
            self._before = torch.Event(self._device)
            self._before.record()

    @contextmanager
    def work(self) -> Iterator[None]:
        """Do something aside; what follows waits for it."""
        if self._stream is None:
            yield
            return
        self._stream.wait_event(self._before)
        with self._stream:
            yield
        torch.accelerator.current_stream(self._device).wait_stream(self._stream)
