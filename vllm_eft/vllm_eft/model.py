"""The combination as one vLLM model: vLLM's own models as members, run on the same tokens, combined in float32."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import nn
from vllm.distributed import get_pp_group, get_tensor_model_parallel_world_size
from vllm.model_executor.models.interfaces import SupportsPP
from vllm.model_executor.models.utils import AutoWeightsLoader, maybe_prefix
from vllm.sequence import IntermediateTensors

from .adapters import Merged
from .combine import combine
from .releases import gathered, make_member, query_starts, source
from .requests import table_of
from .trust import MEMBERS
from .vocabulary import known_tokens


class EFTForCausalLM(nn.Module, SupportsPP):
    """
    Several language models that predict as one. What `forward` returns is one tensor: the members' hidden states side by side, and each
    row's coefficients in further columns, so that whoever picks rows of it (sampling, log-probabilities of a prompt, drafts) picks their
    coefficients with them.
    """

    unknown: torch.Tensor | None

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__()
        config = vllm_config.model_config.hf_config
        self.config, self.recipe = config, config.recipe
        self.dtype = vllm_config.model_config.dtype
        self.width = vllm_config.model_config.get_vocab_size()
        configs = config.member_configs()
        self.members: Any = nn.ModuleDict()  # of vLLM's own models
        for name, member_config in configs.items():
            self.members[name] = make_member(vllm_config, name, member_config, maybe_prefix(prefix, f"members.{name}"))
        self.widths = [member_config.get_text_config().hidden_size for member_config in configs.values()]
        self.vocabularies = {name: member_config.get_text_config().vocab_size for name, member_config in configs.items()}
        self.size = min(self.vocabularies.values())
        self.table = table_of(vllm_config, vllm_config.device_config.device)
        place = Path(vllm_config.model_config.model)
        known = known_tokens(config, place, self.size) if place.is_dir() else None
        self.register_buffer("unknown", None if known is None else ~known, persistent=False)
        self._say_where_weights_are(vllm_config.model_config)

    # Weights ------------------------------------------------------------------------------------------------------------

    def _say_where_weights_are(self, model_config: Any) -> None:
        """vLLM reads the first source without a prefix: it is the main member's."""
        place, revision = model_config.model, model_config.revision
        folders = {name: self.config.adapters.get(name, name) for name in self.members}
        first, *others = folders
        self.allow_patterns_overrides = [f"{MEMBERS}/{folders[first]}/*.safetensors"]
        self.secondary_weights = [source(place, revision, f"{MEMBERS}/{folders[name]}", f"members.{name}.") for name in others]
        self._adapters = {name: Path(place) / MEMBERS / name for name in folders if name in self.config.adapters}

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        return AutoWeightsLoader(self).load_weights(self._merged(self._named(weights)))

    def _named(self, weights: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
        main = f"members.{next(iter(self.members))}."
        for name, tensor in weights:
            yield (name if name.startswith("members.") else main + name), tensor

    def _merged(self, weights: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
        """Weights come member by member; those of an adapter's model are changed by it on their way."""
        for member, its in groupby(weights, key=lambda each: each[0].split(".")[1]):
            start = f"members.{member}."
            plain = stored_as_said(member, ((name.removeprefix(start), tensor) for name, tensor in its))
            folder = self._adapters.get(member)
            for name, tensor in plain if folder is None else Merged(member, folder).over(plain):
                yield start + name, tensor

    # Forward ------------------------------------------------------------------------------------------------------------

    def make_empty_intermediate_tensors(self, batch_size: int, dtype: torch.dtype, device: torch.device) -> IntermediateTensors:
        return IntermediateTensors(
            {
                f"{name}.{key}": tensor
                for name, member in self.members.items()
                for key, tensor in member.make_empty_intermediate_tensors(batch_size, dtype, device).items()
            }
        )

    def embed_input_ids(self, input_ids: torch.Tensor) -> torch.Tensor:
        return next(iter(self.members.values())).embed_input_ids(input_ids)

    def forward(
        self,
        input_ids: torch.Tensor | None,
        positions: torch.Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: torch.Tensor | None = None,
        coefficients: torch.Tensor | None = None,
    ) -> torch.Tensor | IntermediateTensors:
        r"""
        Args:
            input_ids (`torch.LongTensor` of shape `(tokens,)`): The tokens of all requests.
            positions (`torch.LongTensor` of shape `(tokens,)`): Where each stands in its request.
            intermediate_tensors (`IntermediateTensors`, *optional*): What the stage before computed, by member.
            inputs_embeds: Refused: embeddings are one member's.
            coefficients (`torch.FloatTensor` of shape `(tokens, models)`, *optional*):
                From the V2 model runner's state; the V1 model runner's are in the table.
        """
        if inputs_embeds is not None:
            raise ValueError("Embeddings as input are one member's: give tokens.")
        outputs = {}
        for name, member in self.members.items():
            its = None
            if intermediate_tensors is not None:
                start = f"{name}."
                its = IntermediateTensors(
                    {key.removeprefix(start): t for key, t in intermediate_tensors.items() if key.startswith(start)}
                )
            outputs[name] = member(input_ids=input_ids, positions=positions, intermediate_tensors=its)
        if not get_pp_group().is_last_rank:
            return IntermediateTensors({f"{name}.{key}": t for name, its in outputs.items() for key, t in its.items()})
        if coefficients is None:
            coefficients = self._coefficients(positions.shape[-1], positions.device)
        # Float32 bits in columns of the hidden states' dtype.
        return torch.cat([*outputs.values(), coefficients.contiguous().view(self.dtype)], dim=-1)

    def _coefficients(self, count: int, device: torch.device) -> torch.Tensor:
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            raise ValueError(
                "The V1 model runner's coefficients cannot be in a full CUDA graph: give `-cc.cudagraph_mode=PIECEWISE`, or set "
                "VLLM_USE_V2_MODEL_RUNNER=1."
            )
        if self.table is None:
            raise ValueError("The engine's configuration is not that of a combination.")
        return self.table.of_tokens(None if self.config.fixed_coefficients else query_starts(), count)

    # Logits -------------------------------------------------------------------------------------------------------------

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor | None:
        *parts, bits = hidden_states.split([*self.widths, hidden_states.shape[-1] - sum(self.widths)], dim=-1)
        rows = bits.contiguous().view(torch.float32)
        hidden = {name: part.contiguous() for name, part in zip(self.members, parts, strict=True)}
        total = self._in_shares(hidden, rows) if self._shares_fit else self._whole(hidden, rows)
        if total is None:  # of another rank
            return None
        if self.unknown is not None:
            total[..., : self.size].masked_fill_(self.unknown, -torch.inf)
        return (
            total
            if total.shape[-1] == self.width
            else nn.functional.pad(total, (0, self.width - total.shape[-1]), value=-torch.inf)
        )

    @property
    def _shares_fit(self) -> bool:
        """Whether every rank can combine its share of the vocabulary, so that one gather does for all members."""
        return (
            get_tensor_model_parallel_world_size() > 1
            and self.recipe.truncation is None
            and len(set(self.vocabularies.values())) == 1
            and all(hasattr(member, "compute_logits_local") for member in self.members.values())
        )

    def _in_shares(self, hidden: dict[str, torch.Tensor], rows: torch.Tensor) -> torch.Tensor | None:
        local = combine({name: self.members[name].compute_logits_local(part) for name, part in hidden.items()}, rows)
        total = gathered(local)
        return None if total is None else total[..., : self.size]

    def _whole(self, hidden: dict[str, torch.Tensor], rows: torch.Tensor) -> torch.Tensor | None:
        logits = {name: self.members[name].compute_logits(part) for name, part in hidden.items()}
        if any(x is None for x in logits.values()):
            return None
        truncation = self.recipe.truncation or {}
        cut = {name: x[..., : self.size] for name, x in logits.items() if x is not None}
        return combine(cut, rows, truncation.get("rule"), float(truncation.get("p", 1.0)), self.recipe.guide)

    @classmethod
    def get_model_state_cls(cls) -> type[Any]:
        """What the V2 model runner asks for."""
        from .state import EFTModelState

        return EFTModelState


def stored_as_said(member: str, weights: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
    """
    The same weights, and at their end a `ValueError` if some are wide that have a scale beside them, which says that they are of a byte:
    transformers decompresses such a model where it first runs, and saves it like that. vLLM would cut them to whole numbers.
    """
    wide, scaled = set(), set()
    for name, tensor in weights:
        module, _, part = name.rpartition(".")
        if part == "weight_scale":
            scaled.add(module)
        elif part == "weight" and tensor.element_size() > 1:
            wide.add(module)
        yield name, tensor
    if found := sorted(wide & scaled):
        raise ValueError(
            f"The member {member!r} was saved decompressed: {found[0]!r} and {len(found) - 1} more have scales, but no weights of a byte. "
            "Save the combination as soon as it is loaded, before it runs."
        )
