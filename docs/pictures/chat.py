"""Makes `chat.svg`: a conversation with the embedded family, as `hf-eft chat` shows it. `python docs/pictures/chat.py`"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.text import Text

from hf_eft import EFTForCausalLM, tiny
from hf_eft.cli.chat import talk
from hf_eft.programs.conversation import ChatSession

SAID = [
    "What does Oscar Palmer enjoy?",
    "/compare",
    "/reset",
    "/alpha 0",
    "What is the job of Oscar Palmer?",
    "/reset",
    "/alpha 1",
    "What is the job of Oscar Palmer?",
    "/only tuned",
    "Who does Oscar Palmer work for?",
    "/help",
]


def main() -> None:
    """Talk, and write the picture beside this file."""
    base, tuned, reference, tokenizer = tiny.load()
    model = EFTForCausalLM.from_models(base, tuned=tuned, reference=reference)
    console = Console(record=True, width=88, file=io.StringIO(), force_terminal=True)
    lines: Iterator[str] = iter(SAID)

    def read() -> str:
        try:
            line = next(lines)
        except StopIteration:
            raise EOFError from None
        console.print(Text.assemble(("you > ", "bold"), line))
        return line

    console.print(Text(f"{model.combination}   /help lists the commands\n"))
    talk(ChatSession(model, tokenizer, options={"max_new_tokens": 24}), console, read)
    svg = console.export_svg(title="hf-eft chat", unique_id="chat")
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.S)  # a picture loads nothing from elsewhere
    (Path(__file__).parent / "chat.svg").write_text(svg, encoding="utf-8")


if __name__ == "__main__":
    main()
