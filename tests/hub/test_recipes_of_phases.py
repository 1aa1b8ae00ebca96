"""A recipe folder whose phases are marked by tokens says how these are spelt, so that other members' tokens are refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_hub import FakeHub, serving
from families import build, prompts

from hf_eft import Combination, Phase, hub, tiny

NAMES = ("base", "tuned", "reference")
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # what huggingface_hub does without Xet


@pytest.fixture
def online(tmp_path: Path) -> Iterator[FakeHub]:
    with serving(tmp_path / "cache") as fake:
        yield fake


def put(online: FakeHub, folder: Path, tokenizers: dict[str, Any]) -> None:
    for seed, name in enumerate(NAMES):
        build("llama", seed).save_pretrained(folder / name)
        if name in tokenizers:
            tokenizers[name].save_pretrained(folder / name)
        online.add(f"family/{name}", folder / name)


def composed(folder: Path, phases: list[Phase]) -> dict[str, Any]:
    chosen = Combination.emulate(alpha={"think": 1, "answer": 0}, phases=phases)
    hub.compose({name: f"family/{name}" for name in NAMES}, folder, combination=chosen, references=True)
    found: dict[str, Any] = json.loads((folder / "config.json").read_text())["combination"]
    return found


def test_tokens_are_spelled_by_a_tuned_member_s_tokenizer(online: FakeHub, tmp_path: Path) -> None:
    tokenizer = tiny.load()[-1]
    put(online, tmp_path, dict.fromkeys(("base", "tuned"), tokenizer))
    start, end = tokenizer.convert_ids_to_tokens([5, 6])
    [phase] = composed(tmp_path / "recipe", [Phase("think", [5], [6])])["phases"]
    assert phase["spelled"] == [[start], [end]]
    loaded, _ = hub.load(tmp_path / "recipe", allow_references=True)
    options: dict[str, Any] = {**prompts("left"), "max_new_tokens": 3}
    loaded.generate(**options)
    path = tmp_path / "recipe" / "config.json"
    path.write_text(path.read_text().replace(json.dumps(start), '"another"'))
    with pytest.raises(ValueError, match=r"tokens \[5\] of the phase 'think' were \['another'\]"):
        hub.load(tmp_path / "recipe", allow_references=True)[0].generate(**options)


@pytest.mark.parametrize(
    "phases", [[Phase("think", "<think>", "</think>")], [Phase("think", [5], [6])]], ids=["texts", "tokens"]
)
def test_texts_need_no_spelling_and_members_without_tokenizers_have_none(
    phases: list[Phase], online: FakeHub, tmp_path: Path
) -> None:
    put(online, tmp_path, {})
    [phase] = composed(tmp_path / "recipe", phases)["phases"]
    assert phase.get("spelled") is None


def test_a_recipe_across_tokenizers_says_its_vocabulary(online: FakeHub, tmp_path: Path) -> None:
    for name, place in zip(NAMES, ("base", "second_tuned", "second_reference"), strict=True):
        online.add(f"family/{name}", tiny.path(place))
    places = {name: f"family/{name}" for name in NAMES}
    with pytest.raises(ValueError, match="give them as texts"):
        recipe = Combination.emulate(alpha={"think": 1, "answer": 0}, phases=[Phase("think", [5], [6])])
        hub.compose(places, tmp_path / "marked", combination=recipe, references=True, vocabulary="tokens")
    hub.compose(places, tmp_path / "recipe", references=True, vocabulary="tokens")
    assert "model.tokenizers" in (tmp_path / "recipe/README.md").read_text()
    loaded, tokenizers = hub.load(tmp_path / "recipe", allow_references=True)
    expected = hub.load(places, vocabulary="tokens")[0]
    ids = tokenizers["tuned"](tiny.questions()[0].prompt, return_tensors="pt")["input_ids"]
    assert loaded.vocabulary == "tokens"
    assert loaded.generate(ids, max_new_tokens=6).tolist() == expected.generate(ids, max_new_tokens=6).tolist()
