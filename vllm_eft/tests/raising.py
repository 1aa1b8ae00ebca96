"""A logits processor that raises in the worker when a request asks for it: `--logits-processors raising:Raises`."""

from __future__ import annotations

from typing import Any

from vllm.v1.sample.logits_processor import LogitsProcessor


class Raises(LogitsProcessor):
    """Of the V1 model runner."""

    def __init__(self, vllm_config: Any, device: Any, is_pin_memory: bool) -> None: ...

    def is_argmax_invariant(self) -> bool:
        return True

    def apply(self, logits: Any) -> Any:
        return logits

    def update_state(self, batch_update: Any) -> None:
        for _, params, *_ in batch_update.added if batch_update else ():
            if (params.extra_args or {}).get("raise"):
                raise RuntimeError("This request asked for it.")
