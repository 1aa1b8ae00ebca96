"""
Make the pictures of the heat-map and the playground, from the embedded family, in a headless Chromium.

    python docs/pictures/look.py            # both; needs the extra `playground`, playwright and a Chromium
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
sys.path[:0] = [str(FOLDER.parents[1]), str(FOLDER.parents[1] / "tests")]

from browser import missing, opened  # noqa: E402  (the tests' browser)

from hf_eft import Combination, EFTForCausalLM, playground, tiny  # noqa: E402
from hf_eft.analysis import analyse  # noqa: E402
from hf_eft.analysis.heatmap import page  # noqa: E402

PORT = 7861
QUESTION = "What does Oscar Palmer enjoy?"


def heatmap(model: EFTForCausalLM, tokenizer: object, target: Path) -> None:
    """The same question at two strengths, one token pointed at."""
    analyses = []
    for alpha in (1.0, 0.5):
        model.combination = Combination.emulate(alpha=alpha)
        analyses.append(analyse(model, tokenizer, tiny.PROMPT.format(QUESTION), max_new_tokens=24))
    model.combination = Combination.emulate()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "page.html"
        path.write_text(page(analyses), encoding="utf-8")
        with opened(path.as_uri(), viewport={"width": 1200, "height": 800}) as (tab, _):
            tab.select_option("#quantity", label="lift")
            tab.locator(".t", has_text="Happy").first.click()
            tab.screenshot(path=target)


def served(model: EFTForCausalLM, tokenizer: object, target: Path) -> None:
    """A question, its three answers and the heat-map of the last."""
    blocks = playground.launch(model, tokenizer, port=PORT, prevent_thread_lock=True)
    try:
        with opened(f"http://127.0.0.1:{PORT}/", viewport={"width": 1200, "height": 1330}) as (tab, _):
            tab.wait_for_selector("#prompt textarea")
            tab.fill("#prompt textarea", QUESTION)
            tab.click("#generate")
            tab.frame_locator(".heatmap iframe").locator(".t").first.wait_for()
            tab.screenshot(path=target)
    finally:
        blocks.close(verbose=False)


def main() -> int:
    """Make both pictures."""
    if reason := missing():
        print(f"No pictures: {reason}.", file=sys.stderr)
        return 1
    base, tuned, reference, tokenizer = tiny.load()
    model = EFTForCausalLM.from_models(base, tuned=tuned, reference=reference)
    heatmap(model, tokenizer, FOLDER / "heatmap.png")
    served(model, tokenizer, FOLDER / "playground.png")
    for name in ("heatmap.png", "playground.png"):
        print(f"{name}: {(FOLDER / name).stat().st_size / 1000:.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
