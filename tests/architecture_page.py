"""What was found, as a line, as totals, and as the page docs/architectures.md."""

from __future__ import annotations

import datetime
import os
import platform
import re
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import transformers
from architecture_checks import ADD_ON, LEAVES, NEW, STRATEGIES, TOLERANCE, WRAPPER_ONLY
from architecture_models import SET_ASIDE
from architecture_sight import STRATEGIES as SEEN
from architecture_sight import SUFFIX
from architecture_sight import WRAPPER_ONLY as SEEN_BY_WRAPPER

RESULTS = ("exact", "refused", "theirs", "wrong", "foreign", "not reached")  # the worst of several is the last of these
FAILS = "fails in transformers alone"

HEAD = """# Architectures

Every type that transformers maps to a causal language model, made tiny out of its configuration and held in both leaves, under every
strategy, against the formula computed from whole prefixes, without a cache and without this library. Each type is met as tuned and
reference member beside a Llama as base, and as all three with base = reference, which must give the tuned model. All values that a strategy
is shown are compared (log-probs within {tolerance}, float32, {new} new tokens), and with them the tokens; two tokens whose log-probs are
nearer than twice that are a tie.

`python tests/architectures.py` (also in `make nightly`), transformers {transformers}, torch {torch}, {machine}, {date}.

| | |
|---|---|
{totals}

A cell says what both leaves do, or [`EFTForCausalLM`](strategies.md) / `EFTLogitsProcessor` where they differ. **{fails}**: the add-on
is called by the base's own `generate`, which without it, too, ends in an error or shows other scores than the model has. Batches of drafts
and continuous batching are the wrapper's only. A number stands for a refusal, below.
"""


SEEING = """## With a picture

Every type that transformers maps to a model of images and text, made tiny, as base, tuned and reference member
([members that see](vision.md)): rows with a picture of their own, against the formula from whole texts with the picture. A picture has
the form that the processor of its type makes. A type that is refused as a member, as encoder-decoders are, is refused whatever it sees.
**{fails}**: the model's own `generate` ends in the same error, or shows other scores than the model has.

| | |
|---|---|
| types | {types} |
| exact in everything | {exact} |
| exact in some, refused or failing alone in others | {some} |
| exact in nothing: refused, or failing alone | {none} |
| not made (below) | {unmade} |
| results that are wrong | {wrong} |
| results that are another library's error | {foreign} |
""".replace("{fails}", FAILS)


def results(found: dict[str, Any], strategy: str, leaf: str) -> list[dict[str, str]]:
    return [held for held in found.get("held", ()) if (held["strategy"], held["leaf"]) == (strategy, leaf)]


def worst(held: list[dict[str, str]]) -> dict[str, str]:
    return max(held, key=lambda each: RESULTS.index(each["result"]))


def line(found: dict[str, Any]) -> str:
    """What was found of one type."""
    counts = Counter(held["result"] for held in found.get("held", ()))
    said = found.get("unmade") or ", ".join(f"{counts[name]} {name}" for name in RESULTS if counts[name])
    doubt = f" ({found['unread']})" if "unread" in found else ""
    return f"{found['type']}: {said}{doubt}, {found['seconds']} s"


def totals(found: list[dict[str, Any]]) -> dict[str, int]:
    """How many types, and how many results of each kind."""
    counts = Counter(held["result"] for each in found for held in each.get("held", ()))
    made = [each for each in found if "held" in each]
    return {"types": len(found), "not made": len(found) - len(made), **{name: counts[name] for name in RESULTS}}


def reason(text: str) -> str:
    """A refusal without what differs between members and models of one kind."""
    text = re.sub(r"^\w+: ", "", text)
    text = re.sub(r"'(base|tuned|reference)'(, '(base|tuned|reference)')*", "…", text)
    text = re.sub(r" \(\w+(For\w+|LMHeadModel|WithLMHead|Decoder)\)", "", text)
    text = re.sub(r"off by \d+%", "off by a part", text)
    return re.split(r"(?<=[a-z`\"…)])\. ", text)[0].rstrip(".")


class Notes:
    """Refusals by number."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}

    def cell(self, found: dict[str, Any], strategy: str) -> str:
        """What the leaves do with a strategy."""
        said = []
        for leaf in LEAVES:
            if leaf == ADD_ON and strategy in (SEEN_BY_WRAPPER if found["type"].endswith(SUFFIX) else WRAPPER_ONLY):
                continue
            held = worst(results(found, strategy, leaf) or [{"result": "not reached"}])
            if held["result"] == "refused":
                number = self.numbers.setdefault(reason(held["reason"]), len(self.numbers) + 1)
                said.append(f"refused [{number}](#refusals)")
            else:
                said.append({"exact": "exact", "theirs": FAILS}.get(held["result"], f"**{held['result']}**"))
        return said[0] if len(set(said)) == 1 else " / ".join(said)


def machine() -> str:
    """In words: how many cores of what, and its vector instructions."""
    cpu = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    name = re.search(r"model name\s*:\s*(.*)", cpu)
    words = " ".join((name.group(1) if name else platform.machine()).split()[:2])
    vectors = "AVX-512" if "avx512f" in cpu else "AVX2" if "avx2" in cpu else ""
    cores = os.cpu_count() or 1
    return (
        f"{cores} core{'s' * (cores > 1)} of {'an' if words[0] in 'AEIOU' else 'a'} {words}{f' ({vectors})' if vectors else ''}"
    )


def summary(found: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """The totals of the page: how many types are how exact, and what is not."""
    made = [each for each in found if "held" in each]
    counts = totals(found)

    def kinds(each: dict[str, Any], strategies: set[str]) -> set[str]:
        return {held["result"] for held in each["held"] if held["strategy"] in strategies}

    every = set(STRATEGIES)
    drafting = {name for name in every if "draft" in name or "lookup" in name}
    batching = {"continuous batching"}
    all_exact = [each for each in made if kinds(each, every) == {"exact"}]
    but_batching = [each for each in made if each not in all_exact and kinds(each, every - batching) == {"exact"}]
    rest = [each for each in made if each not in all_exact and each not in but_batching]
    but_drafts = [each for each in rest if kinds(each, every - batching - drafting) == {"exact"}]
    none = [each for each in made if "exact" not in kinds(each, every)]
    some = len(made) - sum(map(len, (all_exact, but_batching, but_drafts, none)))
    return [
        ("types", str(len(found))),
        ("exact in everything", str(len(all_exact))),
        ("exact in everything but continuous batching, which refuses them", str(len(but_batching))),
        ("exact in everything but speculation (and continuous batching)", str(len(but_drafts))),
        ("exact in some", str(some)),
        ("refused as members", str(len(none))),
        ("not made (below)", str(counts["not made"])),
        ("results that are wrong", str(counts["wrong"])),
        ("results that are another library's error", str(counts["foreign"])),
    ]


def pictures(seen: list[dict[str, Any]], notes: Notes) -> list[str]:
    """What was found of types of images and text, with a picture."""
    made = [each for each in seen if "held" in each]
    counts = totals(seen)
    rows = [
        f"| `{each['type'].removesuffix(SUFFIX)}` | " + " | ".join(notes.cell(each, strategy) for strategy in SEEN) + " |"
        for each in made
    ]
    found = [{held["result"] for held in each["held"]} for each in made]
    exact = sum(each == {"exact"} for each in found)
    some = sum("exact" in each for each in found) - exact
    unmade = [f"- `{each['type'].removesuffix(SUFFIX)}`: {each['unmade'][:400]}" for each in seen if "unmade" in each]
    return [
        SEEING.format(
            types=len(seen),
            exact=exact,
            some=some,
            none=len(made) - exact - some,
            unmade=counts["not made"],
            wrong=counts["wrong"],
            foreign=counts["foreign"],
        ),
        f"| type | {' | '.join(SEEN)} |\n|{'---|' * (len(SEEN) + 1)}\n" + "\n".join(rows) + "\n",
        *(["### Not held with a picture\n\n" + "\n".join(unmade) + "\n"] if unmade else []),
    ]


def page(found: list[dict[str, Any]]) -> str:
    """The whole page."""
    notes = Notes()
    seen = [each for each in found if each["type"].endswith(SUFFIX)]
    found = [each for each in found if each not in seen]
    rows = [
        f"| `{each['type']}` | " + " | ".join(notes.cell(each, strategy) for strategy in STRATEGIES) + " |"
        for each in found
        if "held" in each
    ]
    head = HEAD.format(
        tolerance=TOLERANCE,
        new=NEW,
        transformers=transformers.__version__,
        torch=torch.__version__.split("+")[0],
        machine=machine(),
        date=datetime.date.today(),
        totals="\n".join(f"| {name} | {value} |" for name, value in summary(found)),
        fails=FAILS,
    )
    parts = [head, f"| type | {' | '.join(STRATEGIES)} |\n|{'---|' * (len(STRATEGIES) + 1)}\n" + "\n".join(rows) + "\n"]
    parts += pictures(seen, notes)
    parts.append("## Refusals\n\n" + "\n".join(f"{number}. {text}." for text, number in notes.numbers.items()) + "\n")
    parts.append("## Set aside\n\n" + "\n".join(f"- `{name}`: {text}" for name, text in SET_ASIDE.items()) + "\n")
    unmade = [f"- `{each['type']}`: {each['unmade'][:400]}" for each in found if "unmade" in each]
    if unmade:
        parts.append("## Not made\n\n" + "\n".join(unmade) + "\n")
    return "\n".join(parts)
