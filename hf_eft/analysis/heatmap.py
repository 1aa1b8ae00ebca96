"""The heat-map: what the delta did, as one HTML page that loads nothing and trusts no text."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .records import Analysis, Shift, finite
from .thumbnails import figures

_FOLDER = Path(__file__).parent
_DIGITS = 5  # significant ones of the numbers in the page
_SEEN = 0.0005  # the least change of a probability that three decimals show
_WITHIN = 0.98  # the share of the tokens whose values the colours tell apart; those beyond have the colour at the end

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<header>
<h1><bdi>{title}</bdi></h1>
<div class="controls">
<label>Colour: <select id="quantity"></select></label>
<span class="legend"><span id="low"></span><span id="ramp" class="ramp"></span><span id="high"></span></span>
<span class="legend"><span class="key changed">word</span> another first choice</span>
<label><input type="checkbox" id="with-numbers"> numbers</label>
<span><button id="previous" type="button">← previous change</button> <button id="next" type="button">next change →</button></span>
</div>
<div class="legend" id="about"></div>
</header>
<div class="columns">
<main>{figures}<div id="analyses"></div></main>
<aside aria-label="Details of the token">
<div id="details"></div>
<p class="help">Point at a token or at the chart. Keys: arrows, Home, End; n and p for the next and the previous change.</p>
</aside>
</div>
<noscript>This page draws its text with its own script, which is switched off here.</noscript>
<script type="application/json" id="data">{data}</script>
<script>{script}</script>
</body>
</html>
"""


def page(analyses: Sequence[Analysis], title: str = "What the delta did", images: Sequence[Any] = ()) -> str:
    r"""
    The heat-map of one or several texts: every token coloured by a quantity of choice, its details where it is pointed at or focused, a
    chart over the sequence.

    The page is one file. It loads nothing, which its content security policy forbids as well, and runs no script but its own, which
    the policy knows by its hash. Texts are data in it: markup in them is shown, controls and marks of direction are shown by name.

    Args:
        analyses (`Sequence[Analysis]`): One or more, below one another under common colours: strengths, or continuations, to compare.
        title (`str`, *optional*, defaults to `"What the delta did"`): The heading.
        images (`Sequence[PIL.Image.Image]`, *optional*): Those of the prompt, shown above the texts, made smaller where they are large.

    Returns:
        `str`: HTML, to be written as UTF-8.

    Raises:
        `ValueError`: If there is nothing to show.

    Example:

    ```python
    >>> from hf_eft import EFTForCausalLM, tiny
    >>> from hf_eft.analysis import analyse
    >>> from hf_eft.analysis.heatmap import page

    >>> base, tuned, reference, tokenizer = tiny.load()
    >>> model = EFTForCausalLM.from_models(base, tuned=tuned, reference=reference)
    >>> text = page([analyse(model, tokenizer, "Question: What does Oscar Palmer enjoy?\nAnswer:", max_new_tokens=24)])
    >>> text.startswith("<!doctype html>")
    True
    ```
    """
    if not analyses:
        raise ValueError("There is nothing to show: give one analysis or more.")
    style, script = ((_FOLDER / name).read_text(encoding="utf-8") for name in ("heatmap.css", "heatmap.js"))
    words: dict[str, int] = {}
    columns = [_columns(analysis, words) for analysis in analyses]
    data = {"words": list(words), "quantities": _quantities(analyses, columns), "analyses": columns}
    policy = f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; base-uri 'none'; form-action 'none'"
    policy += "; img-src data:" if images else ""
    shown = "".join(character if character.isprintable() else " " for character in title)
    return _PAGE.format(
        policy=policy, title=html.escape(shown), style=style, script=script, data=_island(data), figures=figures(images)
    )


def _island(data: Any) -> str:
    """JSON that HTML cannot mistake for anything: ASCII, and no character in it that begins or ends markup."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _columns(analysis: Analysis, words: dict[str, int]) -> dict[str, Any]:
    """An analysis by columns, its texts as places in `words`."""

    def word(text: str) -> int:
        return words.setdefault(text, len(words))

    def shifts(found: tuple[Shift, ...]) -> list[list[Any]]:
        seen = [shift for shift in found if abs(shift.after - shift.before) >= _SEEN]
        return [[word(shift.text), _short(shift.before), _short(shift.after)] for shift in seen]

    records = analysis.records
    return {
        "recipe": analysis.recipe,
        "against": analysis.against,
        "members": list(analysis.members),
        "prompt": analysis.prompt,
        "rtl": _is_right_to_left(analysis.continuation),
        "numbers": _numbers(analysis),
        "tokens": [word(record.token.text) for record in records],
        "ids": [record.token.id for record in records],
        "logProb": [_short(record.log_prob) for record in records],
        "logProbs": {name: [_short(record.log_probs[name]) for record in records] for name in analysis.members},
        "choice": [word(record.choice.text) for record in records],
        "choices": {name: [word(record.choices[name].text) for record in records] for name in analysis.members},
        "changed": [int(record.changed) for record in records],
        "changedBy": [None if record.changed_by is None else word(record.changed_by) for record in records],
        "raised": [shifts(record.raised) for record in records],
        "lowered": [shifts(record.lowered) for record in records],
        "values": {key: [_short(value) for value in values] for key, values in _values(analysis).items()},
    }


def _values(analysis: Analysis) -> dict[str, list[float | None]]:
    """What may colour the tokens, by name."""
    records, against = analysis.records, analysis.against
    values: dict[str, list[float | None]] = {
        "total_variation": [record.total_variation[against] for record in records],
        "lift": [record.lift for record in records],
    }
    if records[0].deltas:
        values["delta"] = [record.delta for record in records]
        values["reward"] = [record.reward for record in records]
    if len(analysis.tuned) > 1:
        values |= {f"delta_{name}": [record.deltas[name] for record in records] for name in records[0].deltas}
    if len({tuple(record.coefficients.values()) for record in records}) > 1:
        values |= {f"coefficient_{name}": [record.coefficients[name] for record in records] for name in records[0].coefficients}
    values["kl"] = [record.kl[against] for record in records]
    return values | {f"acceptance_{name}": [record.acceptance[name] for record in records] for name in analysis.tuned}


def _quantities(analyses: Sequence[Analysis], columns: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """How each quantity is called and drawn: under limits that all analyses have in common."""
    keys = list(dict.fromkeys(key for each in columns for key in each["values"]))
    against = " or ".join(dict.fromkeys(analysis.against for analysis in analyses))
    described = []
    for key in keys:
        kind, _, name = key.partition("_") if key.startswith(("delta_", "acceptance_", "coefficient_")) else (key, "", "")
        label, about, drawn, unit = _DESCRIBED[kind]
        sizes = sorted(abs(v) for each in columns for v in each["values"].get(key, []) if v is not None)
        bounded = kind in ("total_variation", "acceptance")
        limit = 1.0 if bounded else max(0.01, sizes[math.ceil(_WITHIN * len(sizes)) - 1] if sizes else 0.0)
        described.append(
            {
                "key": key,
                "label": f"{label} of {name}" if name else label,
                "about": about.format(against=against, tuned=name or "tuned"),
                "kind": drawn,
                "unit": unit,
                "limit": limit,
                "clipped": bool(sizes) and sizes[-1] > limit,
            }
        )
    return described


_DESCRIBED = {
    "total_variation": (
        "total variation",
        "How much probability the combination moved, from what {against} has.",
        "sequential",
        "",
    ),
    "lift": ("lift", "By how much the combination raised this token's log-prob over {against}'s.", "diverging", "nats"),
    "delta": ("delta", "What {tuned} thinks more of this token than its reference does: the log ratio.", "diverging", "nats"),
    "reward": ("reward so far", "The sum of the deltas up to this token: the implicit reward.", "diverging", "nats"),
    "coefficient": ("coefficient", "What the log-prob of {tuned} is multiplied by here.", "diverging", ""),
    "kl": ("KL divergence", "Divergence of the combination from {against}.", "sequential", "nats"),
    "acceptance": ("acceptance", "How likely a draft by {tuned} is accepted here, when sampling.", "sequential", ""),
}


def _numbers(analysis: Analysis) -> list[tuple[str, str]]:
    """What stands above the text."""
    summary = analysis.summary()

    def shown(key: str, form: str) -> str:
        return "not finite" if summary[key] is None else format(summary[key], form).replace("-", "\N{MINUS SIGN}")

    numbers = [("tokens", str(summary["tokens"])), (f"other first choice than {analysis.against}", shown("changed", ".0%"))]
    numbers.append(("mean total variation", shown(f"total_variation_{analysis.against}", ".3f")))
    numbers.append(("log-prob: combined", shown("log_prob", ".2f")))
    numbers += [(name, shown(f"log_prob_{name}", ".2f")) for name in analysis.members]
    rewards = analysis.records[-1].rewards
    numbers += [("reward" if len(rewards) == 1 else f"reward of {name}", shown(f"reward_{name}", "+.2f")) for name in rewards]
    return numbers


def _is_right_to_left(text: str) -> bool:
    """Whether most letters are of a script that is written so; marks of direction have no say."""
    kinds = [unicodedata.bidirectional(character) for character in text]
    return sum(kind in ("R", "AL") for kind in kinds if kind) > sum(kind == "L" for kind in kinds) if kinds else False


def _short(value: float | None) -> float | None:
    known = finite(value)
    return None if known is None else float(f"{known:.{_DIGITS}g}")
