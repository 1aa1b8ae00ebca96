"""What a combination will take, before anything is loaded: memory by member, the time of a token, the best block, and what does not fit."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from transformers import PreTrainedConfig

from ..decoding.speculative.schedule import expected_tokens
from .machines import HERE, KNOWN, Machine, machine_of
from .places import configurations
from .shapes import Shape

__all__ = ["HERE", "KNOWN", "Machine", "Member", "Plan", "configurations", "machine_of", "plan", "plan_of"]

_MOST = 16  # the longest block
_AT_ONCE = 2  # of a member on disk, modules in memory: the one that is read, and the one that was
_SPARE = 0.03  # of a device's memory: what its libraries take


@dataclass(frozen=True)
class Member:
    r"""
    One model of a plan.

    Args:
        shape ([`~hf_eft.planning.shapes.Shape`]): What it takes by itself.
        weights (`int`): Bytes of its weights in memory: none for an adapter on another member's model, some of one on disk.
        cache (`int`): Bytes of its states at the end.
        devices (`tuple[int, ...]`): Where its layers go, by number of device.
        step (`float`): Seconds of a step of one token for each row, at half of what is generated; infinite on disk.
        block (`Mapping[int, float]`): Seconds of a look at so many tokens for each row.
    """

    shape: Shape
    weights: int
    cache: int
    devices: tuple[int, ...]
    step: float
    block: Mapping[int, float] = field(repr=False)


@dataclass(frozen=True)
class Plan:
    r"""
    What a combination will take.

    Args:
        members (`Mapping[str, Member]`): Every distinct model, the base first.
        machine ([`Machine`]): One of the devices.
        count (`int`): How many there are.
        rows (`int`): Sequences at a time.
        prompt (`int`): Tokens of a prompt.
        new_tokens (`int`): Tokens that follow.
        working (`int`): Bytes beside weights and states at the peak.
        combining (`float`): Seconds of a step for putting the logits together.
    """

    members: Mapping[str, Member]
    machine: Machine
    count: int
    rows: int
    prompt: int
    new_tokens: int
    working: int
    combining: float

    @property
    def weights(self) -> int:
        """Bytes of all weights."""
        return sum(member.weights for member in self.members.values())

    @property
    def caches(self) -> int:
        """Bytes of all states at the end."""
        return sum(member.cache for member in self.members.values())

    @property
    def peak(self) -> int:
        """Bytes at the peak of a call."""
        return self.weights + self.caches + self.working

    @property
    def fits(self) -> bool:
        """Whether that is there."""
        return self.peak <= self.count * self.machine.memory * (1 - _SPARE)

    @property
    def step(self) -> float:
        """Seconds of a step of plain decoding: one token for each row."""
        return sum(member.step for member in self.members.values()) + self.combining

    @property
    def alone(self) -> float:
        """The same of the base alone."""
        return next(iter(self.members.values())).step

    def drafting(self, agreement: float, drafter: str = "tuned") -> tuple[int, float]:
        r"""
        The block with the most tokens a second.

        Args:
            agreement (`float`): On what share of the tokens drafter and combination agree.
            drafter (`str`, *optional*, defaults to `"tuned"`): Who drafts.

        Returns:
            `tuple[int, float]`: The block, 0 for none, and seconds of a token of each row.
        """
        others = [member for name, member in self.members.items() if name != drafter]
        draft = self.members[drafter].step
        best = (0, self.step)
        for block in range(1, _MOST + 1):
            bonus = 1 - (1 - agreement**block) ** self.rows  # the drafter reads the last token if any row keeps all
            seconds = (block + bonus) * draft + sum(member.block[block + 1] for member in others) + 2 * self.combining
            best = min(best, (block, seconds / expected_tokens(agreement, block)), key=lambda each: each[1])
        return best

    def nearest(self) -> list[str]:
        """What would fit, if this does not: fewer rows, shorter texts, smaller weights, more devices."""
        if self.fits:
            return []
        room = self.count * self.machine.memory * (1 - _SPARE)
        found: list[str] = []
        share = (room - self.weights) / max(1, self.caches + self.working)
        if share * self.rows >= 1:
            found.append(f"{int(share * self.rows)} rows at a time")
        if share > 0 and (tokens := int(share * (self.prompt + self.new_tokens))) > self.prompt:
            found.append(f"{self.rows} rows of {tokens} tokens in all")
        member = next(iter(self.members.values()))
        base, held = member.shape, member.weights
        for kind, bits in (("8 bits", 8.5), ("4 bits", 4.5)):
            if bits < base.bits and self.peak - held + base.parameters * bits / 8 <= room:
                found.append(f"the base in {kind}")
                break
        found.append(f"{-(-self.peak // int(self.machine.memory * (1 - _SPARE)))} such devices")
        return found


def plan(
    configs: Mapping[str, PreTrainedConfig],
    *,
    machine: Machine,
    count: int = 1,
    rows: int = 1,
    prompt: int = 512,
    new_tokens: int = 512,
    dtype: torch.dtype | None = None,
    bits: Mapping[str, float] | None = None,
    adapters: Mapping[str, str] | None = None,
    on_disk: Collection[str] = (),
) -> Plan:
    r"""
    Say what a combination will take, from the configurations of its models alone.

    Args:
        configs (`Mapping[str, PreTrainedConfig]`): Of every distinct model, by name, the base first.
        machine ([`Machine`]): What they run on.
        count (`int`, *optional*, defaults to 1): How many of it.
        rows (`int`, *optional*, defaults to 1): Sequences at a time.
        prompt (`int`, *optional*, defaults to 512): Tokens of a prompt.
        new_tokens (`int`, *optional*, defaults to 512): Tokens that follow.
        dtype (`torch.dtype`, *optional*): Of all members, in place of their configurations'.
        bits (`Mapping[str, float]`, *optional*): Of a weight, for members that are quantised.
        adapters (`Mapping[str, str]`, *optional*):
            Members that are adapters, and on whose model: they read in the same pass. What an adapter itself takes is left out.
        on_disk (`Collection[str]`, *optional*):
            Members whose weights are on disk (accelerate's `disk_offload`), and in memory one module at a time. Their time is not planned.

    Returns:
        [`Plan`]

    Raises:
        `ValueError`: If a member cannot be planned, or a number is not one.
    """
    for what, names in (("on disk", on_disk), ("quantised", bits or ())):
        if missing := sorted(set(names) - set(configs)):
            raise ValueError(f"There is no member {missing[0]!r} to be {what} among {', '.join(configs)}.")
    for name, value in (("rows", rows), ("prompt", prompt), ("new_tokens", new_tokens), ("count", count)):
        if value < 1:
            raise ValueError(f"`{name}` must be 1 or more, got {value}.")
    shapes = {name: Shape.of(name, config, dtype, (bits or {}).get(name)) for name, config in configs.items()}
    length = prompt + new_tokens - 1  # the last token is not read
    members: dict[str, Member] = {}
    for name, trunk in {**{name: name for name in shapes}, **(adapters or {})}.items():
        if trunk not in shapes:
            raise ValueError(
                f"The member {name!r} is an adapter on {trunk!r}, which is none of the models {', '.join(shapes)}."
            )
        shape, half = shapes[trunk], prompt + new_tokens // 2
        away = trunk in on_disk
        looks = {
            n: math.inf if away else _seconds(shape, machine, rows, n, half, beside=name != trunk) for n in range(1, _MOST + 2)
        }
        weights = 0 if name != trunk else _AT_ONCE * shape.largest_module if away else shape.weights
        members[name] = Member(shape, weights, shape.cache(rows, length), (), looks.pop(1), looks)
    members = _placed(members, machine, count)
    logits = rows * max(shape.vocab for shape in shapes.values())
    combined = 4 * logits * 2 + sum(rows * member.shape.vocab * member.shape.dtype.itemsize for member in members.values())
    # Reading prompts, member by member, the states of the last of which are not longer yet; or the last step, in which states grow.
    reading = max(shape.working(rows, prompt) - _growth(shape, rows, prompt, length) for shape in shapes.values())
    growing = max(shape.largest_layer(rows, length) for shape in shapes.values())
    return Plan(
        members, machine, count, rows, prompt, new_tokens, max(reading, growing, 0) + combined,
        (2 + len(members)) * 4 * logits / machine.bandwidth + machine.overhead,
    )  # fmt: skip


def _growth(shape: Shape, rows: int, prompt: int, length: int) -> int:
    """How much a member's states grow after the prompt."""
    return shape.cache(rows, length) - shape.cache(rows, prompt)


def plan_of(
    members: str | Mapping[str, str] | Mapping[str, PreTrainedConfig], machine: str | Machine = HERE, **options: Any
) -> Plan:
    r"""
    The same, from where the members are.

    Args:
        members (`str`, `Mapping[str, str]` or `Mapping[str, PreTrainedConfig]`):
            A saved combination; or folders, ids or configurations by name, the base first.
        machine (`str` or [`Machine`], *optional*, defaults to `"here"`): What they run on: this machine, measured, or one of [`KNOWN`].
        options: Those of [`plan`].

    Example:

    ```python
    >>> from hf_eft import EFTForCausalLM, tiny

    >>> found = EFTForCausalLM.plan({name: str(tiny.path(name)) for name in ("base", "tuned", "reference")}, "h100", rows=64)
    >>> found.fits, found.caches > found.weights
    (True, True)
    ```
    """
    if isinstance(members, Mapping) and all(isinstance(each, PreTrainedConfig) for each in members.values()):
        configs: Mapping[str, Any] = members
    else:
        configs, adapters = configurations(members)
        options = {"adapters": adapters, **options}
    if isinstance(machine, str):
        dtype = options.get("dtype") or next(iter(configs.values())).dtype or torch.float32
        machine = machine_of(machine, dtype)
    return plan(configs, machine=machine, **options)


def _seconds(shape: Shape, machine: Machine, rows: int, tokens: int, length: int, beside: bool) -> float:
    """Of reading so many tokens for each row behind so many others; `beside` as many that read in the same pass."""
    product = _products(shape, machine, rows * tokens)
    if beside:
        product = _products(shape, machine, 2 * rows * tokens) - product
    overhead = 0.0 if beside else machine.between + shape.layers * machine.overhead
    return overhead + product + machine.moves * shape.cache(rows, length) / machine.bandwidth


def _products(shape: Shape, machine: Machine, rows: int) -> float:
    """Seconds of all products with weights, with this number of rows."""
    return sum(n * machine.product(size, size * shape.bits / 8, rows) for size, n in shape.matrices.items())


def _placed(members: Mapping[str, Member], machine: Machine, count: int) -> dict[str, Member]:
    """Where members go: the small ones on the first device, and the base on what the devices have left, layer by layer."""
    room = [machine.memory * (1 - _SPARE)] * count
    placed: dict[str, Member] = {}
    base, *small = members
    for name in small:
        device = max(range(count), key=lambda i: (room[i] >= members[name].weights + members[name].cache, -i))
        room[device] -= members[name].weights + members[name].cache
        placed[name] = replace(members[name], devices=(device,))
    layer = (members[base].weights + members[base].cache) / members[base].shape.layers
    devices, left = [], members[base].shape.layers
    for i in range(count):
        if taken := min(left, max(0, int(room[i] / layer))):
            devices.append(i)
            left -= taken
    return {base: replace(members[base], devices=tuple(devices) or (0,)), **placed}
