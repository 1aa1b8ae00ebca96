"""How long the parts of a round took, without waiting for them."""

from __future__ import annotations

import time
from typing import Any

import torch


class Clock:
    """
    Notes when the device comes to a place in the program. On an accelerator these are events, which are asked when all is over.

    Args:
        device (`torch.device`): Where most of the work is done.
        one_for_all (`bool`, *optional*, defaults to `False`):
            Whether the first process of the group tells all others its times, since what they do next depends on them.
    """

    def __init__(self, device: torch.device, one_for_all: bool = False) -> None:
        self._device, self._one_for_all = device, one_for_all
        self._laps: list[Any] = []
        self.lap()

    @property
    def waits(self) -> bool:
        """Whether `seconds` waits until the device has come to the last place."""
        return self._device.type != "cpu"

    def lap(self) -> None:
        """The program is here."""
        if not self.waits:
            self._laps.append(time.perf_counter())
            return
        event = torch.Event(self._device, enable_timing=True)
        event.record()
        self._laps.append(event)

    def seconds(self) -> list[float]:
        """Between one place and the next."""
        mine = self._measured()
        if not self._one_for_all:
            return mine
        times = torch.tensor(mine, dtype=torch.float64, device=self._device)
        torch.distributed.broadcast(times, src=0)
        return times.tolist()

    def _measured(self) -> list[float]:
        pairs = zip(self._laps, self._laps[1:], strict=False)
        if not self.waits:
            return [end - start for start, end in pairs]
        self._laps[-1].synchronize()
        return [start.elapsed_time(end) / 1000 for start, end in pairs]
