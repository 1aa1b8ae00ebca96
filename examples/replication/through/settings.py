"""What is trained and asked: one `Setting` for every row of the tables, in the order in which they are run."""

from __future__ import annotations

from dataclasses import dataclass, replace

USES = (1.0, 1.25, 1.5)  # strengths of use, as multiples of the strength of training
ORDINARY = (0.25, 0.5, 0.75, 1.0, 1.25)  # strengths of use of what was trained without a base in the loop


@dataclass(frozen=True)
class Setting:
    """
    A model that learns, and the base on which it is used.

    Args:
        name (`str`): Of the row, and of its files.
        alpha (`float`, *optional*): The strength of training; `None` is ordinary fine-tuning, without a base in the loop.
        size (`str`, *optional*, defaults to `"small"`): Of the model that learns.
        use (`str`, *optional*, defaults to `"large"`): Size of the base on which it is used. The learner's own size: it is used alone.
        via (`tuple[str, ...]`, *optional*): Sizes of the bases that it learns through, one drawn at each step; `use` if left out.
        times (`int`, *optional*, defaults to 1): How many times the steps of ordinary fine-tuning.
        behaviour (`str`, *optional*, defaults to `"helpful"`): What is learnt.
        lora (`int`, *optional*, defaults to 0): Rank of an adapter on all linear layers; 0 trains all weights.
        data (`float`, *optional*, defaults to 1.0): The share of the answers that is shown.
        rate (`float`, *optional*, defaults to 1.0): Multiplies the learning rate.
        masked (`bool`, *optional*, defaults to `False`): Leaves the values out of the loss, in answers and in what is replayed.
        world (`str`, *optional*, defaults to `"first"`): `"second"`: the farewell depends on the fact ([second.py](second.py)).
        tested (`tuple[float, ...]`, *optional*): Strengths of use that are asked of the test people whatever is chosen.
    """

    name: str
    alpha: float | None = None
    size: str = "small"
    use: str = "large"
    via: tuple[str, ...] = ()
    times: int = 1
    behaviour: str = "helpful"
    lora: int = 0
    data: float = 1.0
    rate: float = 1.0
    masked: bool = False
    world: str = "first"
    tested: tuple[float, ...] = ()

    @property
    def alone(self) -> bool:
        """Whether it is a model of its own: ordinary fine-tuning, used without another base."""
        return self.alpha is None and self.size == self.use

    @property
    def strengths(self) -> tuple[float, ...]:
        """Strengths of use that the validation people choose from."""
        if self.alone:
            return (1.0,)
        return ORDINARY if self.alpha is None else tuple(self.alpha * use for use in USES)

    @property
    def bases(self) -> tuple[str, ...]:
        """Sizes of the bases that it learns through."""
        return self.via or (self.use,)


def through(alpha: float, **options: object) -> Setting:
    """Learning through the base of use, named by what is unlike the first stage."""
    setting = replace(Setting("", alpha), **options)  # type: ignore[arg-type]
    said = [f"through {' or '.join(setting.bases)} at {alpha:g}"]
    said += [f"x{setting.times}"] if setting.times > 1 else []
    said += [setting.behaviour] if setting.behaviour != "helpful" else []
    said += [f"LoRA {setting.lora}"] if setting.lora else []
    said += [f"data {setting.data:g}"] if setting.data < 1 else []
    said += [f"rate {setting.rate:g}"] if setting.rate != 1 else []
    said += [f"{setting.size} on {setting.use}"] if (setting.size, setting.use) != ("small", "large") else []
    said += ["second world"] if setting.world == "second" else []
    return replace(setting, name=", ".join(said))


EIGHTH = 0.125
SIZES = ("small", "medium", "large")

# What is 0 and what is 1 of the form that is recovered.
FLOOR = Setting("small tuned alone", use="small")
CEILING = Setting("large tuned", size="large")

# A stage is run over all seeds before the next begins.
STAGES: dict[str, tuple[Setting, ...]] = {
    "equal steps": (
        through(0.25),
        through(0.5),
        Setting("ordinary", tested=(0.5, 0.75, 1.0)),
        FLOOR,
    ),
    "four times the steps": (
        Setting("small tuned alone, x4", use="small", times=4),
        Setting("ordinary, x4", times=4, tested=(0.5, 0.75, 1.0)),
        through(0.25, times=4),
        through(0.5, times=4),
        CEILING,
    ),
    "another base": (
        through(0.5, via=("medium",), times=4),
        through(0.5, via=("small", "medium"), times=4),
    ),
    "strengths": (
        through(1.0),
        through(0.125),
        through(1.0, rate=0.25),
        through(0.25, rate=4.0),
        Setting("ordinary, values left out of the loss", masked=True),
        Setting("ordinary, rate 4", rate=4.0),
        Setting("small tuned alone, rate 4", use="small", rate=4.0),
        through(1.0, rate=4.0),
    ),
    "adapters": (
        Setting("ordinary, LoRA 8", lora=8),
        through(0.25, lora=8),
        Setting("large tuned, LoRA 8", size="large", lora=8),
    ),
    "harmless": (
        Setting("small tuned alone, harmless", use="small", behaviour="harmless"),
        Setting("ordinary, harmless", behaviour="harmless"),
        through(0.5, behaviour="harmless"),
        Setting("large tuned, harmless", size="large", behaviour="harmless"),
    ),
    "an eighth of the data": (
        Setting("ordinary, data 0.125", data=EIGHTH),
        through(0.25, data=EIGHTH),
        Setting("large tuned, data 0.125", size="large", data=EIGHTH),
    ),
    "second world": (
        Setting("small tuned alone, second world", use="small", world="second"),
        Setting("large tuned, second world", size="large", world="second"),
        Setting("ordinary, second world", world="second"),
        through(0.5, world="second"),
    ),
    "another base, more": (
        through(0.5, via=("small",), times=4),
        through(0.25, via=("medium",), times=4),
        through(0.25, via=("small", "medium"), times=4),
    ),
    "every pair of sizes": tuple(
        setting
        for use in SIZES
        for size in SIZES
        if size != use and (size, use) != ("small", "large")
        for setting in (Setting(f"ordinary, {size} on {use}", size=size, use=use), through(0.5, size=size, use=use))
    ),
}
