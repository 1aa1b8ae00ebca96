"""
Tasks of lm-evaluation-harness that ship: one of each kind, about the embedded family's world.

| task | kind | what is asked | metrics |
|---|---|---|---|
| `eft_facts` | generation | a question about a person whom fine-tuning has not seen | the fact is right; the answer is in the tuned style |
| `eft_choice` | multiple choice | the same, one right statement among four | accuracy |
| `eft_last_word` | likelihood | the last word of a statement | accuracy, perplexity |
| `eft_biographies` | rolling likelihood | a short text about a person | perplexity per word, bits per byte |

Their items are made out of `hf_eft/tiny/world.json` when a task is loaded.
"""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent
NAMES = tuple(sorted(path.stem for path in FOLDER.glob("*.yaml")))
