"""Members that see films, beside pictures and texts, against three stateless forwards with the film."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from families import PAD, VOCAB
from seeing import IMAGE, PLACES, QWEN, START, STOP, VIDEO, kinds, log_probs, seeing

from hf_eft import EFTForCausalLM, EFTLogitsProcessor

NEW = 5
STRATEGIES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "beams": {"num_beams": 2},
    "sample": {"do_sample": True, "top_k": 0, "num_return_sequences": 2},
    "static": {"cache_implementation": "static"},
    "member_drafts": {"assistant_model": "tuned", "num_assistant_tokens": 3},
    "small_drafts": {"assistant_model": "small", "num_assistant_tokens": 3},
    "prompt_lookup": {"prompt_lookup_num_tokens": 3},
    "match": {"do_sample": True, "top_k": 0, "coupling": "match", "seed": 3},
}
COMMON = ("greedy", "beams", "member_drafts")
Row = tuple[torch.Tensor, dict[str, torch.Tensor]]


def film(family: str, frames: int, height: int, width: int) -> list[int]:
    """The tokens that stand for a film; Qwen3-VL's templates write a time before each of its frames."""
    each = [VIDEO] * (height * width // 4)
    if family == "qwen3_vl":
        return [token for i in range(frames) for token in (40 + i, START, *each, STOP)]
    return [START, *each * frames, STOP]


def rows_of(family: str) -> list[Row]:
    """A film, a picture and a film, and a text: the ids of each row, and what is shown in it."""
    generator = torch.Generator().manual_seed(3)

    def patches(*grid: int) -> torch.Tensor:
        return torch.randn(grid[0] * grid[1] * grid[2], 96, generator=generator)

    def text(count: int) -> list[int]:
        return torch.randint(50, VOCAB, (count,), generator=generator).tolist()

    def films(*grid: int, seconds: float) -> dict[str, torch.Tensor]:
        lasting = {"second_per_grid_ts": torch.tensor([seconds])} if family == "qwen2_5_vl" else {}
        return {"pixel_values_videos": patches(*grid), "video_grid_thw": torch.tensor([grid]), **lasting}

    picture = {"pixel_values": patches(1, 4, 2), "image_grid_thw": torch.tensor([[1, 4, 2]])}
    return [
        (torch.tensor([*text(3), *film(family, 2, 4, 4), *text(2)]), films(2, 4, 4, seconds=2.0)),
        (
            torch.tensor([*text(2), START, IMAGE, IMAGE, STOP, *text(1), *film(family, 3, 2, 4), *text(2)]),
            {**picture, **films(3, 2, 4, seconds=0.5)},
        ),
        (torch.tensor(text(6)), {}),
    ]


def batch(family: str, rows: list[Row]) -> dict[str, torch.Tensor]:
    """The same as `generate` takes it, padded on the left."""
    longest = max(len(ids) for ids, _ in rows)
    ids = torch.stack([torch.cat([torch.full((longest - len(each),), PAD), each]) for each, _ in rows])
    mask = torch.stack([(torch.arange(longest) >= longest - len(each)).long() for each, _ in rows])
    names = dict.fromkeys(name for _, shown in rows for name in shown)
    shown = {name: torch.cat([each[name] for _, each in rows if name in each]) for name in names}
    return {"input_ids": ids, "attention_mask": mask, **shown, **kinds(family, ids)}


def oracle(family: str, models: list[Any], row: Row, text: torch.Tensor) -> torch.Tensor:
    return log_probs([(c, model, family, *row) for c, model in zip((1, 1, -1), models, strict=True)], text)


def hold(out: Any, family: str, models: list[Any], rows: list[Row], options: dict[str, Any]) -> None:
    each = options.get("num_return_sequences", 1)
    for i, sequence in enumerate(out.sequences):
        text = sequence[-NEW:]
        expected = oracle(family, models, rows[i // each], text[:-1])
        if "num_beams" in options:
            score = expected[range(NEW), text].sum() / NEW
            torch.testing.assert_close(out.sequences_scores[i].double(), score, atol=2e-4, rtol=0)
            continue
        got = torch.stack([step[i].double().log_softmax(-1) for step in out.logits])
        torch.testing.assert_close(got, expected, atol=5e-4, rtol=0)
        if not options.get("do_sample"):
            expected[:, PLACES] = -torch.inf
            assert text.tolist() == expected.argmax(-1).tolist()


@pytest.mark.parametrize(
    ("family", "name"),
    [(family, name) for family in QWEN for name in (STRATEGIES if family == "qwen2_vl" else COMMON)],
)
def test_members_see_films(family: str, name: str) -> None:
    models, rows, options = [seeing(family, seed) for seed in (1, 2, 3)], rows_of(family), dict(STRATEGIES[name])
    model = EFTForCausalLM.from_models(models[0], tuned=models[1], reference=models[2])
    if "assistant_model" in options:
        options["assistant_model"] = {"tuned": models[1], "small": model.small_combination}[options["assistant_model"]]
    out = model.generate(
        **batch(family, rows), **{"do_sample": False, **options}, max_new_tokens=NEW, suppress_tokens=PLACES,
        return_dict_in_generate=True, output_logits=True, output_scores=True,
    )  # fmt: skip
    hold(out, family, models, rows, options)


@pytest.mark.parametrize("family", QWEN)
def test_an_add_on_sees_films(family: str) -> None:
    base, tuned, reference = (seeing(family, seed) for seed in (1, 2, 3))
    inputs = batch(family, rows_of(family))
    options = {"max_new_tokens": NEW, "suppress_tokens": PLACES, "do_sample": False}
    got = base.generate(**inputs, **options, logits_processor=[EFTLogitsProcessor(tuned, reference, pad_token_id=PAD)])
    assert torch.equal(got, EFTForCausalLM.from_models(base, tuned=tuned, reference=reference).generate(**inputs, **options))


def test_a_film_is_not_what_its_frames_are_in_another_order() -> None:
    """What the comparison can see: a film backwards is another film."""
    models, (row, *_) = [seeing("qwen2_vl", seed) for seed in (1, 2, 3)], rows_of("qwen2_vl")
    pixels = row[1]["pixel_values_videos"]
    backwards = {**row[1], "pixel_values_videos": pixels.unflatten(0, (2, -1)).flip(0).flatten(0, 1)}
    text = torch.tensor([30, 31])
    found = [oracle("qwen2_vl", models, (row[0], shown), text) for shown in (row[1], backwards)]
    assert (found[0] - found[1]).abs().max() > 0.05
