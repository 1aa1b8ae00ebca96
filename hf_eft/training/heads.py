"""A member in two halves, so that its logits need never be there for all positions at once: the body, and the head."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput, logging

logger = logging.get_logger(__name__)


class Halves:
    r"""
    A member's model, read in two halves.

    The second half is the model's own `forward` with the body's states given: whatever a model does to its logits (a scale, a soft cap, a
    bias, an adapter on the head) is done by itself. Whether its `forward` is made of these halves is seen at the first reading, where the
    last position is computed both ways; if it is not, all its logits are computed at once.

    Args:
        name (`str`): The member.
        model (`PreTrainedModel`): Its model.
        takes_last (`bool`): Whether its `forward` can return the logits of the last position only.
    """

    def __init__(self, name: str, model: PreTrainedModel, takes_last: bool) -> None:
        self.name, self.model = name, model
        self._bodies = bodies_of(model) if takes_last else []
        self._kinds: dict[nn.Module, type[ModelOutput]] = {}  # of the bodies' outputs
        self.tried = False
        self.keeps_apart = False  # whether it was seen that texts in one row do not see each other

    @property
    def whole(self) -> bool:
        """Whether the logits are computed at once."""
        return not self._bodies

    def states(self, read: Callable[[int], Any]) -> torch.Tensor:
        r"""
        What [`logits`] makes logits of, `(batch, positions, width)`: the body's last states, or the logits themselves.

        Args:
            read (`Callable[[int], ModelOutput]`): Has the member read, and returns so many positions' logits; 0 for all.
        """
        if self.whole:
            return read(0).logits
        with _seen(self._bodies) as seen:
            output = read(1)
        if not self.tried:
            self._bodies = [body for body in self._bodies if body in seen and self._is_half(body, seen[body], output.logits)]
            self.tried = True
            if self.whole:
                logger.info(f"The logits of the member {self.name!r} ({type(self.model).__name__}) are computed at once.")
                return self.states(read)
        return seen[self._bodies[0]].last_hidden_state

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """The logits of states, `(rows, width)`: `(rows, vocab)`."""
        if self.whole:
            return states
        return self._second(self._bodies[0], states[None])[0]

    def _second(self, body: nn.Module, states: torch.Tensor) -> torch.Tensor:
        ids = torch.zeros(states.shape[:2], dtype=torch.long, device=states.device)
        with _given(body, self._kinds[body](last_hidden_state=states)):
            return self.model(input_ids=ids, use_cache=False).logits

    def _is_half(self, body: nn.Module, output: Any, last: torch.Tensor) -> bool:
        if not isinstance(output, ModelOutput) or output.get("last_hidden_state") is None:
            return False
        self._kinds[body] = type(output)
        with torch.no_grad():
            again = self._second(body, output.last_hidden_state[:, -1:])
        return again.shape == last.shape and torch.allclose(again, last, rtol=1e-3, atol=1e-3)


def bodies_of(model: PreTrainedModel) -> list[nn.Module]:
    """What may be the model without its head, the outermost first."""
    found = [model.base_model, model.get_decoder()]
    return [body for body in dict.fromkeys(found) if isinstance(body, nn.Module) and body is not model]


@contextmanager
def _seen(bodies: list[nn.Module]) -> Iterator[dict[nn.Module, Any]]:
    """What each returns, while this lasts."""
    seen: dict[nn.Module, Any] = {}

    def note(module: nn.Module, _: Any, output: Any) -> None:
        seen[module] = output

    hooks = [body.register_forward_hook(note) for body in bodies]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _given(body: nn.Module, output: Any) -> Iterator[None]:
    """Have a module return this, whatever it is asked."""
    before = body.__dict__.get("forward")
    body.__dict__["forward"] = lambda *args, **kwargs: output
    try:
        yield
    finally:
        if before is None:
            del body.__dict__["forward"]
        else:
            body.__dict__["forward"] = before
