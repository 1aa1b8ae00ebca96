"""`inputs_embeds` without ids: the ids are looked up in the main member's embedding table, where that is exact."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from .devices import execution_device
from .vocabulary import table_rows

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_CHUNK = 256  # tokens compared with the whole table at a time: bounds the memory by _CHUNK x vocab floats


def ids_from_embeds(model: PreTrainedModel, inputs_embeds: torch.Tensor) -> torch.Tensor:
    r"""
    The token ids whose embeddings `inputs_embeds` are.

    Args:
        model (`torch.nn.Module`): The model that reads `inputs_embeds`.
        inputs_embeds (`torch.FloatTensor` of shape `(batch, positions, hidden)`): Rows of its embedding table.

    Returns:
        `torch.LongTensor` of shape `(batch, positions)`.

    Raises:
        `ValueError`: If a vector is no row of the table, or more than one row: then only the caller knows the ids.
    """
    embedding = model.get_input_embeddings()
    every_id = torch.arange(table_rows(model), device=execution_device(embedding))
    table = embedding(every_id)  # (vocab, hidden): through the module, which may scale
    vectors = inputs_embeds.reshape(-1, inputs_embeds.shape[-1]).to(table.device)
    ids = []
    for chunk in vectors.split(_CHUNK):
        distance = torch.cdist(chunk.float(), table.float())  # (tokens, vocab)
        _two, nearest = distance.topk(2, largest=False)
        exact = (table[nearest[:, 0]].to(chunk.dtype) == chunk).all(-1)
        unique = (table[nearest[:, 0]] != table[nearest[:, 1]]).any(-1)
        if not bool((exact & unique).all()):
            found = "is no row" if not bool(exact.all()) else "is more than one row"
            raise ValueError(
                f"`inputs_embeds` without `input_ids`: a vector {found} of the main member's embedding table, so the other "
                "members cannot know which token it stands for. Pass `input_ids` as well."
            )
        ids.append(nearest[:, 0])
    return torch.cat(ids).view(inputs_embeds.shape[:-1])
