"""
Random files to everything that reads one; see `readers.py`.

    python tests/fuzz.py --seconds 3600                      # all readers in turn
    python tests/fuzz.py --target json_lines --seconds 60

Where atheris is installed (`pip install 'hf-eft[fuzz]'`; it has no builds for Windows and macOS), which lines of the package are run
guides what is tried next; otherwise hypothesis tries at random. What was reached is kept in `--corpus`, so that a run carries on.
It prints a line for each reader, and exits with 1 if one failed; what failed is in the corpus beside the others, as `crash-...`.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "critical")

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from random_json import changed, edited, written

OPTIONS: dict[str, Any] = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}


@st.composite
def files(draw: st.DrawFn, seeds: list[bytes]) -> bytes:
    """A file that is nearly one that can be read."""
    data = draw(st.sampled_from(seeds))
    kind = draw(st.integers(0, 9))
    if kind == 0:
        return draw(st.binary(max_size=64))
    if kind < 4:
        return draw(edited(data))
    try:
        lines = [json.loads(line) for line in (data.split(b"\n") if kind == 4 else [data])]
    except ValueError:
        return draw(edited(data))
    return b"\n".join([draw(written(draw(changed(line)))) for line in lines])


def fuzzed(name: str) -> Any:
    """The test of a reader: of any file, whether it is read, or refused in a way that is clear."""
    from readers import TARGETS, check

    target = TARGETS[name]

    @given(files(target.seeds()))
    def test(data: bytes) -> None:
        check(target, data)

    return test


def quiet() -> None:
    """What readers warn of is no matter here."""
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)


def at_random(name: str, seconds: float, corpus: Path) -> None:
    """Hypothesis: seed after seed, from the one where the last run ended."""
    quiet()
    test, end, state = fuzzed(name), time.monotonic() + seconds, corpus / f"{name}.seed"
    number = int(state.read_text()) if state.exists() else 0
    while True:
        settings(max_examples=100, phases=[Phase.generate, Phase.shrink], **OPTIONS)(seed(number)(test))()
        number += 1
        state.write_text(str(number))
        if time.monotonic() >= end:
            return


def guided(name: str, seconds: float, corpus: Path) -> None:
    """Atheris: what hypothesis makes of bytes, which are chosen by what they reach. Ends the process."""
    import atheris

    with atheris.instrument_imports(include=["hf_eft"]):
        test = fuzzed(name)
    quiet()
    test = settings(**OPTIONS)(test)
    reached = corpus / name
    reached.mkdir(parents=True, exist_ok=True)
    flags = [
        f"-max_total_time={int(seconds)}",
        f"-artifact_prefix={reached}/",
        "-timeout=60",
        "-max_len=2000",
        "-rss_limit_mb=6000",
    ]
    atheris.Setup([sys.argv[0], str(reached), *flags, "-print_final_stats=1", "-verbosity=0"], test.hypothesis.fuzz_one_input)
    atheris.Fuzz()


def has_atheris() -> bool:
    try:
        import atheris  # noqa: F401
    except ImportError:
        return False
    return True


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", help="one reader; all of them if left out")
    parser.add_argument("--seconds", type=float, default=3600, help="in all")
    parser.add_argument("--corpus", type=Path, default=Path("fuzz-corpus"))
    parser.add_argument("--random", action="store_true", help="without atheris, though it is there")
    given = parser.parse_args(arguments)
    given.corpus.mkdir(parents=True, exist_ok=True)
    if given.target is not None:
        (at_random if given.random or not has_atheris() else guided)(given.target, given.seconds, given.corpus)
        return 0
    from readers import TARGETS

    report = given.corpus / "report.json"
    known = json.loads(report.read_text()) if report.exists() else {}
    for name in TARGETS:
        start = time.monotonic()
        flags = ["--target", name, "--seconds", str(given.seconds / len(TARGETS)), "--corpus", str(given.corpus)]
        done = subprocess.run(
            [sys.executable, __file__, *flags, *(["--random"] if given.random else [])], capture_output=True, text=True
        )
        before = known.get(name, {"seconds": 0.0, "failures": []})
        known[name] = {**before, "seconds": before["seconds"] + time.monotonic() - start}
        if done.returncode:
            known[name]["failures"] = [*before["failures"], (done.stdout + done.stderr)[-4000:]]
        report.write_text(json.dumps(known, indent=1))
        print(f"{name}: {known[name]['seconds']:.0f} s, {'FAILED' if done.returncode else 'nothing found'}", flush=True)
        if done.returncode:
            print(known[name]["failures"][-1], flush=True)
    return 1 if any(each["failures"] for each in known.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
