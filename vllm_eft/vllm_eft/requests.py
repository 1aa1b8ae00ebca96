"""
The coefficients of requests under the V1 model runner, and their check under both.

A logits processor is what the V1 model runner tells about requests, before each forward pass. This one changes no logits: it keeps a
table, row i being request i of the batch, which the model reads in its forward. (Scaling logits in it instead would come after the
log-probabilities are taken.)
"""

from __future__ import annotations

from typing import Any

import torch
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates

from .engine import check_request
from .releases import v2_processor

_TABLES: dict[str, Table] = {}


class Table:
    """Coefficients of the requests in the batch, on the device: `rows` of shape `(requests, models)`, and what holds without a word."""

    def __init__(self, default: list[float], size: int, device: Any) -> None:
        self.default = torch.tensor(default, dtype=torch.float32, device=device)
        self.rows = self.default.repeat(size, 1)

    def of_tokens(self, starts: torch.Tensor | None, count: int) -> torch.Tensor:
        """The coefficients of `count` tokens, request i's between `starts[i]` and `starts[i + 1]`; those of padding are the default."""
        if starts is None:
            return self.default.expand(count, -1).contiguous()
        lengths = starts[1:] - starts[:-1]
        rows = self.rows[: len(lengths)].repeat_interleave(lengths.to(self.rows.device), dim=0)
        return torch.cat([rows, self.default.expand(count - len(rows), -1)]) if len(rows) < count else rows[:count].contiguous()


def table_of(vllm_config: Any, device: Any) -> Table | None:
    """The table that the processor and the model of one engine share; they know each other by the engine's id."""
    key = vllm_config.instance_id
    if key not in _TABLES:
        config = vllm_config.model_config.hf_config
        if config.model_type != "eft":
            return None
        _TABLES[key] = Table(config.recipe.rows()[0], vllm_config.scheduler_config.max_num_seqs, device)
    return _TABLES[key]


class EFTCoefficients(*dict.fromkeys([LogitsProcessor, v2_processor() or LogitsProcessor])):  # type: ignore[misc]
    """
    Of both model runners' interfaces, as one list in the configuration names it. To the V2 model runner it only says which parameters
    are right: there the coefficients go through `EFTModelState`.
    """

    def __init__(self, vllm_config: Any, device_or_states: Any, is_pin_memory: bool | None = None) -> None:
        self.table: Table | None = None
        if is_pin_memory is None:  # V2
            return
        self.table = table_of(vllm_config, device_or_states)
        self.recipe = vllm_config.model_config.hf_config.recipe
        self.asked: dict[int, list[float]] = {}

    @classmethod
    def validate_params(cls, params: Any) -> None:
        """Where a request arrives, so that it is a 400 of that request: in a worker it would end the engine."""
        check_request(params.extra_args)

    def add_request(self, req_idx: int, sampling_params: Any) -> bool:
        return False  # changes no logits

    def is_argmax_invariant(self) -> bool:
        return True

    def apply(self, logits: torch.Tensor, ctx: Any = None) -> torch.Tensor:
        return logits

    def _row(self, params: Any, prompt: Any, output: Any) -> list[float] | None:
        rows = self.recipe.asked(params.extra_args)
        return None if rows is None else rows[0]

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        if self.table is None or not process_dict_updates(self.asked, batch_update, self._row):
            return
        self.table.rows[:] = self.table.default
        for index, row in self.asked.items():
            self.table.rows[index] = torch.tensor(row)
