"""Vision-language models from configurations, prompts with pictures for them, and the stateless formula with the picture at every step."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from families import _APART, BOS, EOS, PAD, VOCAB, remember

IMAGE, VIDEO, START, STOP = 5, 6, 7, 8
#: Tokens that stand for a picture where they are read, so that a text with one of them cannot be read without it.
PLACES = [IMAGE, VIDEO, START, STOP]
_WORDS = 20  # the first id of those that texts are made of

_TEXT: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD,
}  # fmt: skip
_WINDOW = {**_TEXT, "sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"]}
_SIGHT: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 8, "patch_size": 4,
}  # fmt: skip
_QWEN: dict[str, Any] = {
    "depth": 1, "hidden_size": 32, "num_heads": 2, "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2,
}  # fmt: skip
_MERGED = {**_QWEN, "out_hidden_size": 32, "intermediate_size": 48}
_ROPE = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
_NAMED = {"image_token_id": IMAGE, "video_token_id": VIDEO, "vision_start_token_id": START, "vision_end_token_id": STOP}
_INDEX = {"image_token_index": IMAGE}
_AXES = {**_TEXT, "rope_parameters": _ROPE}

# Each is here for what it does with a picture: positions on three axes, all tokens of a picture seeing each other, features between
# layers, tiles, sizes of their own, padding among pictures.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2_vl": ("Qwen2VL", {"text_config": _AXES, "vision_config": {**_QWEN, "embed_dim": 32, "mlp_ratio": 2}, **_NAMED}),
    "qwen2_5_vl": (
        "Qwen2_5_VL",
        {"text_config": _AXES, "vision_config": {**_MERGED, "fullatt_block_indexes": [0], "window_size": 16}, **_NAMED},
    ),
    "qwen3_vl": (
        "Qwen3VL",
        {
            "text_config": {**_TEXT, "rope_parameters": {**_ROPE, "mrope_section": [2, 1, 1]}},
            "vision_config": {**_MERGED, "num_position_embeddings": 16, "deepstack_visual_indexes": [0]},
            **_NAMED,
        },
    ),
    "gemma3": (
        "Gemma3",
        {
            **_INDEX, "text_config": _WINDOW, "vision_config": _SIGHT, "mm_tokens_per_image": 4, "boi_token_index": START,
            "eoi_token_index": STOP,
        },
    ),
    "gemma4": (
        "Gemma4",
        {
            "text_config": {
                **_WINDOW, "global_head_dim": 8, "hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0,
                "vocab_size_per_layer_input": VOCAB, "use_bidirectional_attention": "vision",
            },
            "vision_config": {
                **_SIGHT, "num_key_value_heads": 2, "head_dim": 16, "pooling_kernel_size": 2, "position_embedding_size": 16,
            },
            "audio_config": None, "image_token_id": IMAGE, "video_token_id": VIDEO, "boi_token_id": START, "eoi_token_id": STOP,
        },
    ),
    "llava": (
        "Llava",
        {
            **_INDEX, "text_config": {**_TEXT, "model_type": "llama"}, "vision_config": {**_SIGHT, "model_type": "clip_vision_model"},
            "image_seq_length": 4, "vision_feature_layer": -1,
        },
    ),
    "llava_next": (
        "LlavaNext",
        {
            **_INDEX, "text_config": {**_TEXT, "model_type": "llama"}, "vision_config": {**_SIGHT, "model_type": "clip_vision_model"},
            "image_grid_pinpoints": [[8, 16], [16, 8]], "image_seq_length": 4, "vision_feature_layer": -1,
        },
    ),
    "mistral3": (
        "Mistral3",
        {
            **_INDEX, "text_config": {**_TEXT, "model_type": "mistral"},
            "vision_config": {**_SIGHT, "model_type": "pixtral", "head_dim": 16}, "spatial_merge_size": 2, "vision_feature_layer": -1,
        },
    ),
    "idefics3": (
        "Idefics3",
        {"text_config": {**_TEXT, "model_type": "llama"}, "vision_config": _SIGHT, "image_token_id": IMAGE, "scale_factor": 2},
    ),
    "smolvlm": (
        "SmolVLM",
        {"text_config": {**_TEXT, "model_type": "llama"}, "vision_config": _SIGHT, "image_token_id": IMAGE, "scale_factor": 2},
    ),
}  # fmt: skip
QWEN = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
KINDS = {**dict.fromkeys((*QWEN, "gemma4"), "mm_token_type_ids"), "gemma3": "token_type_ids"}


def make(family: str, seed: int, **text: Any) -> Any:
    """A model whose distribution is far from uniform and far from that of another seed; `text` changes what reads the text."""
    name, options = FAMILIES[family]
    torch.manual_seed(seed + _APART)
    config = getattr(transformers, f"{name}Config")(**{**options, "text_config": {**options["text_config"], **text}})
    model = getattr(transformers, f"{name}ForConditionalGeneration")(config).eval()
    generator = torch.Generator().manual_seed(seed + _APART)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.3, generator=generator)
    model.generation_config = transformers.GenerationConfig(pad_token_id=PAD, bos_token_id=BOS)
    return model


@functools.cache
def seeing(family: str, seed: int) -> Any:
    """Like `make`, made once: for tests that leave the model as it is."""
    return remember(f"{family} {seed}, which sees", make(family, seed))


@dataclass
class Shown:
    """Prompts padded on the left, with as many pictures in each row as `counts` says."""

    family: str
    counts: Sequence[int]
    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    pictures: dict[str, torch.Tensor]

    @property
    def inputs(self) -> dict[str, torch.Tensor]:
        """What `generate` takes."""
        return {
            "input_ids": self.input_ids, "attention_mask": self.attention_mask, **self.pictures,
            **kinds(self.family, self.input_ids),
        }  # fmt: skip

    def row(self, index: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The ids of a row, `(length,)`, and its pictures."""
        ids = self.input_ids[index][self.attention_mask[index].bool()]
        first, count = sum(self.counts[:index]), self.counts[index]
        if not count:
            return ids, {}
        mine = {name: values[first : first + count] for name, values in self.pictures.items()}
        if self.family in ("idefics3", "smolvlm"):  # by row, with room for as many as the fullest has
            mine = {name: values[index : index + 1, :count] for name, values in self.pictures.items()}
        elif self.family in QWEN:  # patches of all pictures, one after the other
            ends = [0, *self.pictures["image_grid_thw"].prod(-1).cumsum(0).tolist()]
            mine["pixel_values"] = self.pictures["pixel_values"][ends[first] : ends[first + count]]
        elif self.family == "mistral3":  # as large as the largest
            height, width = mine["image_sizes"].amax(0).tolist()
            mine["pixel_values"] = mine["pixel_values"][:, :, :height, :width]
        return ids, mine


def kinds(family: str, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """Which tokens stand for a picture, and which for a film, for families that are told."""
    return {KINDS[family]: (ids == IMAGE).long() + 2 * (ids == VIDEO).long()} if family in KINDS else {}


def shown(family: str, counts: Sequence[int] = (1, 2, 0), words: Sequence[int] = (3, 2, 6), seed: int = 0) -> Shown:
    """Rows of `words` tokens, and behind them pictures of several sizes, two tokens after each."""
    generator = torch.Generator().manual_seed(7 + seed + _APART)
    blocks, pictures = _drawn(family, counts, generator)

    def text(count: int) -> list[int]:
        return torch.randint(_WORDS, VOCAB, (count,), generator=generator).tolist()

    rows, left = [], iter(blocks)
    for count, before in zip(counts, words, strict=True):
        row = text(before)
        for _ in range(count):
            row += next(left) + text(2)
        rows.append(row)
    longest = max(map(len, rows))
    ids = torch.tensor([[PAD] * (longest - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    return Shown(family, counts, ids, mask, pictures)


def _drawn(family: str, counts: Sequence[int], generator: torch.Generator) -> tuple[list[list[int]], dict[str, torch.Tensor]]:
    """The tokens of every picture, and the pictures as the family's processor would hand them over."""
    number = sum(counts)

    def pixels(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    if family in QWEN:
        grids = [[(1, 4, 4), (1, 4, 2), (1, 2, 4)][i % 3] for i in range(number)]
        patches = [t * h * w for t, h, w in grids]
        pictures = {"pixel_values": pixels(sum(patches), 96), "image_grid_thw": torch.tensor(grids)}
        return [[START, *[IMAGE] * (count // 4), STOP] for count in patches], pictures
    if family == "gemma3":
        return [[START, *[IMAGE] * 4, STOP]] * number, {"pixel_values": pixels(number, 3, 8, 8)}
    if family == "gemma4":
        places = torch.cartesian_prod(torch.arange(4), torch.arange(4)).flip(-1)[None].expand(number, -1, -1)
        pictures = {"pixel_values": pixels(number, 16, 48).sigmoid(), "image_position_ids": places}
        return [[START, *[IMAGE] * 4, STOP]] * number, pictures
    if family == "llava":
        return [[IMAGE] * 4] * number, {"pixel_values": pixels(number, 3, 8, 8)}
    if family == "llava_next":
        sizes = torch.tensor([[(8, 16), (16, 8), (8, 14)][i % 3] for i in range(number)])
        pictures = {"pixel_values": pixels(number, 3, 3, 8, 8), "image_sizes": sizes}  # the whole, and two tiles
        with torch.no_grad():
            features = seeing(family, 1).get_image_features(**pictures, return_dict=True).pooler_output
        return [[IMAGE] * len(each) for each in features], pictures
    if family == "mistral3":
        sizes = torch.tensor([[(8, 16), (16, 8), (16, 16)][i % 3] for i in range(number)])
        height, width = sizes.amax(0).tolist()
        pictures = {"pixel_values": pixels(number, 3, height, width), "image_sizes": sizes}
        return [[IMAGE] * (h // 8 * (w // 8)) for h, w in sizes.tolist()], pictures
    seen = torch.arange(max(counts))[None] < torch.tensor(counts)[:, None]  # (rows, most)
    padded = pixels(*seen.shape, 3, 8, 8) * seen[..., None, None, None]
    mask = seen[..., None, None].expand(*seen.shape, 8, 8)
    return [[IMAGE]] * number, {"pixel_values": padded, "pixel_attention_mask": mask}


@torch.no_grad()
def along(model: Any, family: str | None, ids: torch.Tensor, pictures: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """One model's log-probs after every prefix of a row, `(length, vocab)`, in doubles: the whole row and its pictures, without a cache."""
    told = kinds(family, ids[None]) if family is not None else {}
    return model(input_ids=ids[None], use_cache=False, **pictures, **told).logits[0].double().log_softmax(-1)


def log_probs(
    terms: Sequence[tuple[float, Any, str | None, torch.Tensor, Mapping[str, torch.Tensor]]], continuation: torch.Tensor
) -> torch.Tensor:
    """
    The combination's log-probs of every token of a continuation and of the one after it, `(length + 1, vocab)`: of terms with coefficient,
    model, family, prompt and pictures.
    """
    total: Any = 0.0
    for coefficient, model, family, prompt, pictures in terms:
        read = along(model, family, torch.cat([prompt, continuation]), pictures)
        total = total + coefficient * read[len(prompt) - 1 :]
    return total.log_softmax(-1)


def emulated(models: Sequence[Any], given: Shown, index: int, continuation: torch.Tensor) -> torch.Tensor:
    """The same for a base, a tuned and a reference model that see one row of prompts."""
    prompt, pictures = given.row(index)
    return log_probs(
        [(c, model, given.family, prompt, pictures) for c, model in zip((1, 1, -1), models, strict=True)], continuation
    )
