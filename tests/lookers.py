"""Processors of tiny models that see, made without a network, and pictures for them."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from typing import Any

import torch
from families import PAD, VOCAB
from PIL import Image
from seeing import IMAGE, START, STOP, VIDEO, seeing
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlavaProcessor, PreTrainedTokenizerFast, ProcessorMixin, Qwen2VLImageProcessorPil, Qwen2VLProcessor
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from hf_eft import EFTForCausalLM

_MARKS = {
    "<bos>": 1,
    "<eos>": 2,
    "<|image_pad|>": IMAGE,
    "<|video_pad|>": VIDEO,
    "<|vision_start|>": START,
    "<|vision_end|>": STOP,
}
#: A template of models that see: it goes through parts, and cannot read a text that is none.
TEMPLATE = (
    "{% for m in messages %}{{ m.role }} {% for part in m.content %}{% if part.type == 'image' %}PICTURE {% elif part.type == 'video' %}"
    "<|vision_start|> <|video_pad|> <|vision_end|> {% else %}{{ part.text }} "
    "{% endif %}{% endfor %}{% endfor %}{% if add_generation_prompt %}assistant {% endif %}"
)
SIDE = 8  # pixels of a picture that `picture` draws


class Pictures(Qwen2VLProcessor):
    """Qwen2-VL's with a stand-in for its processor of films, which needs torchvision."""

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, chat_template: str | None = None) -> None:
        self.image_token, self.image_token_id = "<|image_pad|>", IMAGE
        self.video_token, self.video_token_id = "<|video_pad|>", VIDEO
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)


def tokenizer() -> Any:
    """Words of `w20` to `w63`, roles, and the marks of pictures; its texts can be read again."""
    roles = {"user": 9, "assistant": 10, "system": 11}
    words = {f"w{i}": i for i in range(VOCAB) if i not in {PAD, *_MARKS.values(), *roles.values()}}
    backend = Tokenizer(models.WordLevel({"<pad>": PAD, **_MARKS, **roles, **words}, unk_token="w3"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>")
    made.add_special_tokens({"additional_special_tokens": list(_MARKS)[2:]})
    return made


def processor(family: str) -> Any:
    """That of a family of `seeing`, whose pixels it makes."""
    if family == "llava":
        sizes = {"size": {"shortest_edge": 8}, "crop_size": {"height": 8, "width": 8}}
        images = LlavaImageProcessorPil(**sizes)
        # (One of the patches is the class, which the strategy leaves out.)
        return LlavaProcessor(
            images, tokenizer(), patch_size=4, vision_feature_select_strategy="default", num_additional_image_tokens=1,
            image_token="<|image_pad|>", chat_template=TEMPLATE.replace("PICTURE", "<|image_pad|>"),
        )  # fmt: skip
    images = Qwen2VLImageProcessorPil(patch_size=4, merge_size=2, temporal_patch_size=2, min_pixels=64, max_pixels=1024)
    made = Pictures(images, tokenizer(), TEMPLATE.replace("PICTURE", "<|vision_start|> <|image_pad|> <|vision_end|>"))
    made.video_processor = Films(images)
    return made


class Films:
    """Stands for Qwen2-VL's processor of films: patches of two frames each."""

    def __init__(self, images: Any) -> None:
        self.images, self.merge_size = images, 2

    def __call__(self, videos: Any, do_sample_frames: bool = True, **options: Any) -> dict[str, torch.Tensor]:
        frames = [frame for film in videos for frame in (film[::2] if do_sample_frames else film)]
        made = self.images(frames, return_tensors="pt")
        (_, height, width), *others = grids = made["image_grid_thw"].tolist()
        assert all(grid == grids[0] for grid in others)  # films of one size, which is enough here
        patches = made["pixel_values"].view(len(frames), height * width, 3, 2, 16)  # (frames, patches, channels, time, pixels)
        pairs = torch.stack([patches[::2, :, :, 0], patches[1::2, :, :, 0]], dim=3).flatten(0, 1).flatten(1)
        return {
            "pixel_values_videos": pairs,
            "video_grid_thw": torch.tensor([[len(film) // 2, height, width] for film in videos]),
        }


def combination(*families: str) -> EFTForCausalLM:
    """Base, tuned and reference, each of its family."""
    models = [seeing(family, seed) for seed, family in enumerate(families, start=1)]
    return EFTForCausalLM.from_models(models[0], tuned=models[1], reference=models[2])


def picture(seed: int = 0, size: tuple[int, int] = (2 * SIDE, SIDE)) -> Image.Image:
    """Of many colours, another for each seed."""
    image = Image.new("RGB", size)
    image.putdata(
        [((37 * i + 91 * seed) % 256, (11 * i * i) % 256, (53 * i + 7 * seed) % 256) for i in range(size[0] * size[1])]
    )
    return image


def data_url(image: Image.Image, kind: str = "png", **options: Any) -> str:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def own_inputs(processors: Mapping[str, Any], *parts: Any) -> dict[str, Any]:
    """What `generate` is given of a question of texts and pictures: the processor of each member, by name, makes its own inputs."""
    content = [{"type": "text", "text": each} if isinstance(each, str) else {"type": "image", "image": each} for each in parts]
    made = {
        name: dict(
            each.apply_chat_template(
                [[{"role": "user", "content": content}]], add_generation_prompt=True, tokenize=True, return_dict=True,
                return_tensors="pt",
            )
        )
        for name, each in processors.items()
    }  # fmt: skip
    first = next(iter(made))
    return {**made[first], "member_inputs": {name: inputs for name, inputs in made.items() if name != first}}
