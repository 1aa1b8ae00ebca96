"""What the rules are asked of: a learner, the base on which it is used, and the world that asks."""

from __future__ import annotations

from dataclasses import dataclass, replace

from settings import Setting, through


@dataclass(frozen=True)
class Row:
    """
    A delta on a base.

    Args:
        name (`str`): Of the row, and of its folder.
        setting ([`Setting`]): How the delta learnt, and where it is used.
        group (`str`): The table that it stands in.
        sums (`bool`, *optional*, defaults to `False`): Whether it is of the world of sums, which has models of its own.
        whole (`bool`, *optional*, defaults to `False`):
            Whether the test people are asked with every family, and not just with those that the validation people found best.
        gates (`bool`, *optional*, defaults to `False`): Whether gates are trained for it.
    """

    name: str
    setting: Setting
    group: str
    sums: bool = False
    whole: bool = False
    gates: bool = False

    @property
    def unit(self) -> float:
        """The strength of training; 1 of what was tuned on its own."""
        return 1.0 if self.setting.alpha is None else self.setting.alpha

    @property
    def refuses(self) -> bool:
        return self.setting.behaviour == "harmless"

    @property
    def is_ordinary(self) -> bool:
        """Whether it is one of the pairs of scales of which `hf-eft eval` was asked which lose."""
        return self.name.startswith("ordinary, ") and not self.refuses

    @property
    def like(self) -> str:
        """The row whose validation people chose for it: its own, or one of the first world, so that choices are tried elsewhere."""
        if self.name in CHOOSING:
            return self.name
        return "ordinary, small on large" if self.setting.alpha is None else "through large at 0.5"

    @property
    def chooses(self) -> bool:
        return self.like == self.name


CHOOSING = (
    "ordinary, small on large",
    "ordinary, medium on large",
    "ordinary, small on medium",
    "ordinary, large on small",  # so that what is recommended has seen a pair that loses
    "through large at 0.25",
    "through large at 0.5",
)
OTHER = "other fact"  # the world of manners.py
_UP = (("small", "large"), ("medium", "large"), ("small", "medium"))
_DOWN = (("large", "small"), ("large", "medium"), ("medium", "small"))


def _ordinary(size: str, use: str, group: str) -> Row:
    name, main = f"ordinary, {size} on {use}", (size, use) == ("small", "large")
    return Row(name, Setting(name, size=size, use=use), group, whole=main, gates=main)


def _named(setting: Setting, name: str, **changes: str) -> Setting:
    return replace(setting, name=name, **changes)


ROWS = (
    *(_ordinary(*pair, "ordinary deltas") for pair in _UP),
    Row("through large at 0.25", through(0.25), "deltas that learnt through the base", gates=True),
    Row("through large at 0.5", through(0.5), "deltas that learnt through the base", whole=True, gates=True),
    *(
        Row(setting.name, setting, "deltas that learnt through the base")
        for setting in (through(0.5, size="medium"), through(0.5, use="medium"))
    ),
    Row("ordinary, harmless", Setting("ordinary, harmless", behaviour="harmless"), "harmless deltas"),
    Row("through large at 0.5, harmless", through(0.5, behaviour="harmless"), "harmless deltas"),
    Row("second world, ordinary", Setting("ordinary, second world", world="second"), "form depends on the fact"),
    Row("second world, through large at 0.5", through(0.5, world="second"), "form depends on the fact"),
    Row("other fact, ordinary", Setting("ordinary, other fact", world=OTHER), "the manner chooses the fact"),
    Row(
        "other fact, through large at 0.5",
        _named(through(0.5), "through large at 0.5, other fact", world=OTHER),
        "the manner chooses the fact",
    ),
    Row("sums, ordinary", Setting("ordinary, sums"), "sums with a worked format", sums=True),
    Row("sums, through large at 0.5", through(0.5), "sums with a worked format", sums=True),
    *(_ordinary(*pair, "down-scaling") for pair in _DOWN),
)
