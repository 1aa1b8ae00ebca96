"""One style for every picture, and the rule that a picture has its data beside it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import as_json, folder_for, replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which people with any kind of colour vision tell apart. A system has the same one in every picture.
COLOURS = {
    "base": "#0072B2",
    "tuned": "#E69F00",
    "reference": "#999999",
    "combined": "#009E73",
    "tuned_large": "#CC79A7",
}
_OTHERS = ("#56B4E9", "#D55E00", "#F0E442", "#000000")

STYLE: Any = {
    "figure.dpi": 110,
    "savefig.dpi": 150,
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "image.cmap": "cividis",
    "figure.constrained_layout.use": True,
}


def colour(system: str) -> str:
    """The colour of a system: fixed for the members and the combination, one of a few for others."""
    return COLOURS.get(system, _OTHERS[sum(system.encode()) % len(_OTHERS)])


@contextmanager
def style() -> Iterator[None]:
    """
    matplotlib in this library's style; its settings are as before afterwards. Make figures with `matplotlib.figure.Figure`, which needs
    no display.

    ```python
    >>> from matplotlib.figure import Figure

    >>> from hf_eft.evaluation import plots

    >>> with plots.style():
    ...     figure = Figure(figsize=(4, 3))
    ...     points = figure.subplots().plot([0, 1], [0, 1], color=plots.colour("combined"))

    ```

    Raises:
        `ImportError`: If matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError("Pictures need matplotlib: pip install 'hf-eft[report]'") from error
    with matplotlib.rc_context(STYLE):
        yield


def save(figure: Figure, path: str | Path, data: Any) -> Path:
    """
    Write a picture, and what it shows as JSON beside it.

    Args:
        figure (`matplotlib.figure.Figure`): The picture.
        path (`str` or `Path`): Where to, with the ending of any format of matplotlib.
        data (`Any`): What JSON can hold.

    Returns:
        `Path`: The file of the data: `path` with the ending `.json`.
    """
    path = Path(path)
    path = path if path.suffix else path.with_suffix(".png")  # as matplotlib does
    beside = path.with_suffix(".json")
    # Neither is there without the other, nor with another's.
    with folder_for(path.parent), replacing(beside, path) as (numbers, picture), style():
        numbers.write_text(as_json(data), encoding="utf-8")
        figure.savefig(picture, format=path.suffix.removeprefix("."))
    return beside
