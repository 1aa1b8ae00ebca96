"""
Every type that transformers maps to a causal language model, or to one of images and text, in both leaves and under every strategy, against
the stateless formula.

    python tests/architectures.py                        # what is not known yet, then docs/architectures.md
    python tests/architectures.py --types llama gemma3+picture    # these, shown here; the page is left as it is
    python tests/architectures.py --jobs 2 --fresh       # everything anew, two at a time

Each type is held in a process of its own, with a limit on time and memory. Results are kept by type in build/architectures/, and taken from
there as long as neither transformers, torch, the package nor these tests are others.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import resource
import signal
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import architecture_page
import architecture_sight
import torch
import transformers
from architecture_checks import hold_type
from architecture_models import TYPES

import hf_eft

ROOT = Path(__file__).parents[1]
KEPT = ROOT / "build" / "architectures"
SECONDS = 300
BYTES = 4 << 30  # what a type may add to what is loaded already


def fingerprint() -> str:
    """Of everything that a result depends on."""
    digest = hashlib.sha256(f"{transformers.__version__} {torch.__version__}".encode())
    parts = set(Path(__file__).parent.glob("architecture_*.py")) - {Path(architecture_page.__file__)}
    for path in sorted(Path(hf_eft.__file__).parent.rglob("*.py")) + sorted(parts):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def kept(model_type: str, mark: str | None) -> dict[str, Any] | None:
    """What is known of a type; with a mark, only what was found with this code."""
    path = KEPT / f"{model_type}.json"
    if not path.is_file():
        return None
    found = json.loads(path.read_text())
    return found if mark in (None, found.get("mark")) else None


def start(model_type: str, mark: str) -> int:
    """Hold a type in a child, which writes what it finds; returns its process."""
    (KEPT / f"{model_type}.json").unlink(missing_ok=True)
    pid = os.fork()  # what is imported need not be imported again
    if pid:
        return pid
    status = 1
    try:
        with (KEPT / f"{model_type}.log").open("w") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        used = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_DATA, (used + BYTES, used + BYTES))
        signal.alarm(SECONDS)
        begun = time.monotonic()
        try:
            hold = architecture_sight.hold_type if model_type.endswith(architecture_sight.SUFFIX) else hold_type
            found = hold(model_type, note=lambda found: write(model_type, found))
        except Exception as error:  # the model cannot be made
            found = {"unmade": f"{type(error).__name__}: {' '.join(str(error).split())}"[:600]}
        write(model_type, {**found, "mark": mark, "seconds": round(time.monotonic() - begun, 1)})
        status = 0
    finally:
        os._exit(status)


def write(model_type: str, found: dict[str, Any]) -> None:
    (KEPT / f"{model_type}.json").write_text(json.dumps({"type": model_type, **found}, indent=1))


def ended(found: dict[str, Any], how: str) -> dict[str, Any]:
    """What is known of a type whose process ended before its time: what it was at is nobody's refusal."""
    if "now" not in found:
        return {"unmade": how}
    return {**found, "held": [*found["held"], {**found.pop("now"), "result": "foreign", "reason": how}]}


def run(types: list[str], jobs: int, mark: str) -> None:
    """Hold every type, several at a time, and say how far it is."""
    waiting, running, done = list(types), {}, 0
    while waiting or running:
        while waiting and len(running) < jobs:
            begun = waiting.pop(0)
            running[start(begun, mark)] = begun
        pid, status = os.wait()
        model_type = running.pop(pid)
        if status:
            how = f"took over {SECONDS} s" if os.WTERMSIG(status) == signal.SIGALRM else f"ended with status {status}"
            write(model_type, {**ended(kept(model_type, None) or {}, f"its process {how}"), "mark": mark, "seconds": SECONDS})
        done += 1
        print(f"{done}/{len(types)} {architecture_page.line(kept(model_type, mark) or {})}", flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Returns 1 if anything is wrong or another library's error."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--types", nargs="+", metavar="TYPE", help="only these")
    parser.add_argument("--jobs", type=int, default=1, help="how many at a time")
    parser.add_argument("--fresh", action="store_true", help="hold again what is known")
    parser.add_argument("--stale", action="store_true", help="take what was found with other code as well")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "architectures.md", help="where the table goes")
    options = parser.parse_args(arguments)
    every = [*TYPES, *architecture_sight.TYPES]
    if unknown := set(options.types or ()) - set(every):
        parser.error(f"transformers {transformers.__version__} maps no {sorted(unknown)} to a causal language model")
    KEPT.mkdir(parents=True, exist_ok=True)
    types, mark = options.types or every, fingerprint()
    wanted = None if options.stale else mark
    todo = [name for name in types if options.fresh or kept(name, wanted) is None]
    torch.set_num_threads(1)
    hold_type("llama", ["member drafts"])  # imports what every child needs
    run(todo, options.jobs, mark)
    found = [known for name in types if (known := kept(name, wanted)) is not None]
    if options.types is None:
        options.page.write_text(architecture_page.page(found))
    totals = architecture_page.totals(found)
    print(*(f"{name}: {count}" for name, count in totals.items()), sep=", ")
    return int(bool(totals["wrong"] or totals["foreign"]))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
