"""The coefficients of requests under the V2 model runner, which hands requests to the model's own state."""

from __future__ import annotations

from typing import Any

import torch
from vllm.v1.worker.gpu.model_states.default import DefaultModelState


class EFTModelState(DefaultModelState):
    """Keeps each request's coefficients, and gives the model those of every token of a forward, always in the same memory."""

    def __init__(self, vllm_config: Any, model: Any, encoder_cache: Any, device: torch.device) -> None:
        super().__init__(vllm_config, model, encoder_cache, device)
        self.recipe = vllm_config.model_config.hf_config.recipe
        self.default = torch.tensor(self.recipe.rows(), dtype=torch.float32, device=device)  # (steps, models)
        models = self.default.shape[1]
        self.of_requests = self.default.new_zeros(self.max_num_reqs, len(self.default), models)
        self.prompts = torch.zeros(self.max_num_reqs, dtype=torch.long, device=device)
        self.of_tokens = self.default[0].repeat(self.max_num_tokens, 1)  # where CUDA graphs read them

    def add_request(self, req_index: int, new_req_data: Any) -> None:
        super().add_request(req_index, new_req_data)
        params = new_req_data.sampling_params
        asked = self.recipe.asked(params.extra_args) if params is not None else None
        rows = self.default if asked is None else torch.tensor(asked, dtype=torch.float32, device=self.device)
        steps = self.of_requests.shape[1]
        if len(rows) > steps:  # a longer schedule than any before: the last value of the others holds on
            last = self.of_requests[:, -1:].expand(-1, len(rows) - steps, -1)
            self.of_requests = torch.cat([self.of_requests, last], dim=1)
        self.of_requests[req_index, : len(rows)] = rows
        self.of_requests[req_index, len(rows) :] = rows[-1]
        self.prompts[req_index] = len(new_req_data.prompt_token_ids or ())

    def prepare_inputs(self, input_batch: Any, req_states: Any) -> dict[str, Any]:
        inputs = super().prepare_inputs(input_batch, req_states)
        count = input_batch.num_tokens_after_padding
        tokens = torch.arange(count, device=self.device)
        ends = input_batch.query_start_loc[1 : input_batch.num_reqs + 1]
        place = torch.searchsorted(ends, tokens, right=True).clamp_(max=input_batch.num_reqs - 1)
        request = input_batch.idx_mapping[place]
        # A token at position t of a prompt of n says what is generated as number t + 1 - n.
        step = input_batch.positions[:count].long() + 1 - self.prompts[request]
        self.of_tokens[:count] = self.of_requests[request, step.clamp_(0, self.of_requests.shape[1] - 1)]
        return {**inputs, "coefficients": self.of_tokens[:count]}

    def prepare_dummy_inputs(self, num_reqs: int, num_tokens: int) -> dict[str, Any]:
        return {**super().prepare_dummy_inputs(num_reqs, num_tokens), "coefficients": self.of_tokens[:num_tokens]}
