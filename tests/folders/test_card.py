"""Cards: their metadata is read back, their programs run, and nothing hostile or private gets into them."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard

from hf_eft import Combination, EFTForCausalLM, Truncation, tiny
from hf_eft.files.repositories import check_repository
from hf_eft.folders.card import licence_of, model_card, recipe_card, snippet

IDS = {"base": "owner/large", "tuned": "owner/small-chat", "reference": "owner/small"}
COMMITS = {"base": "a" * 40, "tuned": "b" * 40, "reference": "0123456789" * 4}
MEMBERS = {name: (IDS[name], COMMITS[name]) for name in IDS}
HOSTILE = [
    "/home/someone/models/secret",
    "./secret",
    "../secret",
    "~/secret",
    "C:\\models\\secret",
    "a/b/c",
    "owner/na`me",
    "owner/name\n- evil: true",
    "owner/name: x",
    "owner/<script>alert(1)</script>",
    'owner/"); import os #',
    "owner/name | cell",
    "[x](javascript:y)",
    "",
]


def wrapper(family: tiny.Family, **options: Any) -> EFTForCausalLM:
    return EFTForCausalLM.from_models(family.base, tuned=family.tuned, reference=family.reference, **options)


def data_of(card: str) -> dict[str, Any]:
    return ModelCard(card).data.to_dict()


def run_blocks(card: str, folders: dict[str, Path | str], capsys: pytest.CaptureFixture[str], tokens: int = 8) -> list[str]:
    """Each program of a card alone, with repositories replaced by folders: what it prints."""
    blocks, printed = re.findall(r"^```python\n(.*?)^```", card, flags=re.M | re.S), []
    for block in blocks:
        for repo, folder in folders.items():
            block = block.replace(f'"{repo}"', repr(str(folder)))
        torch.manual_seed(0)
        capsys.readouterr()
        exec(compile(block.replace("max_new_tokens=64", f"max_new_tokens={tokens}, do_sample=False"), "card", "exec"), {})
        printed.append(capsys.readouterr().out.strip())
    return printed


def said(model: Any, tokenizer: Any) -> str:
    inputs = tokenizer("What is a heat pump?", return_tensors="pt", return_token_type_ids=False)
    return tokenizer.decode(model.generate(**inputs, max_new_tokens=8)[0], skip_special_tokens=True).strip()


FOLDERS = {IDS[name]: tiny.path(name) for name in IDS}


def test_the_card_of_a_saved_combination(family: tiny.Family, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = wrapper(family, alpha=0.5)
    model.save_pretrained(tmp_path)
    family.tokenizer.save_pretrained(tmp_path)
    card = model_card(model, sources={**IDS, "tuned": MEMBERS["tuned"]}, repo_id="owner/up-scaled")
    data = data_of(card)
    assert data["library_name"] == "transformers" and data["pipeline_tag"] == "text-generation"
    assert {"emulated-fine-tuning", "hf_eft"} <= set(data["tags"])
    assert data["base_model"] == list(IDS.values())
    assert "base_model_relation" not in data and "license" not in data
    assert "log p = base + 0.5 tuned - 0.5 reference - log Z" in card
    assert (
        f"| `tuned` | [owner/small-chat](https://huggingface.co/owner/small-chat) | `{COMMITS['tuned']}` | not stated | the behaviour |"
        in card
    )
    for risk in (
        "undo its safety training",
        "`reference` enters with a negative weight",
        "What `tuned` learnt",
        "licence applies",
    ):
        assert risk in card
    printed = run_blocks(card, {"owner/up-scaled": tmp_path}, capsys)
    assert printed == [said(model, family.tokenizer)] * 3


def test_without_a_repository_the_card_is_of_its_own_folder(
    family: tiny.Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = wrapper(family)
    model.save_pretrained(tmp_path)
    family.tokenizer.save_pretrained(tmp_path)
    (tmp_path / "README.md").write_text(model_card(model))
    monkeypatch.chdir(tmp_path)
    assert run_blocks((tmp_path / "README.md").read_text(), {}, capsys) == [said(model, family.tokenizer)] * 3


def test_no_path_of_this_machine_gets_into_a_card(family: tiny.Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = model_card(wrapper(family))  # whose members were loaded from folders
    assert "base_model" not in data_of(card) and card.count("not published") == 3
    parts = set(tiny.FOLDER.parts) - {"/", "hf_eft", "base"}
    assert not [part for part in parts if part in re.split(r"\W+", card)], parts
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "secret").mkdir(parents=True)
    for path in ("runs/secret", *HOSTILE, "secret"):
        base = copy.copy(family.base)
        base.config = copy.deepcopy(family.base.config)
        base.config._name_or_path = path
        model = EFTForCausalLM.from_models(base, tuned=family.tuned, reference=family.reference)
        assert "secret" not in (card := model_card(model)) and card.count("not published") == 3
        remember(monkeypatch, dict.fromkeys(IDS, (path, None)))
        assert "secret" not in (card := model_card(model)) and card.count("not published") == 3
        monkeypatch.undo()
        monkeypatch.chdir(tmp_path)


def remember(monkeypatch: pytest.MonkeyPatch, sources: Any) -> None:
    """Let every model say that its members came from there."""
    monkeypatch.setattr(EFTForCausalLM, "sources", property(lambda model: sources))


def test_what_the_model_remembers(family: tiny.Family, monkeypatch: pytest.MonkeyPatch) -> None:
    base = copy.copy(family.base)
    base.config = copy.deepcopy(family.base.config)
    base.config._name_or_path, base.config._commit_hash = "owner/loaded", COMMITS["base"]
    model = EFTForCausalLM.from_models(base, tuned=family.tuned, reference=family.reference)
    remember(monkeypatch, {"tuned": ("small", COMMITS["tuned"]), "reference": ("owner/of-the-hub", None)})
    card = model_card(model)
    assert data_of(card)["base_model"] == ["owner/loaded", "small", "owner/of-the-hub"]
    assert f"`{COMMITS['base']}`" in card and f"`{COMMITS['tuned']}`" in card
    assert data_of(model_card(model, sources={"base": "owner/said"}))["base_model"] == [
        "owner/said",
        "small",
        "owner/of-the-hub",
    ]


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT asks for it
def test_an_adapter_is_not_the_model_under_it(family: tiny.Family) -> None:
    peft = pytest.importorskip("peft")
    small = copy.deepcopy(family.reference)
    small.config._name_or_path = IDS["reference"]
    adapter = peft.get_peft_model(small, peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False)).eval()
    model = EFTForCausalLM.from_models(family.base, tuned=adapter)
    assert data_of(model_card(model))["base_model"] == [IDS["reference"]]
    assert "| `tuned` | not published |" in model_card(model)
    card = model_card(model, sources={"tuned": "owner/adapter"})
    assert "| `tuned` | [owner/adapter]" in card and "| `reference` | [owner/small]" in card


@pytest.mark.parametrize(
    "combination, names",
    [
        (Combination.emulate(beta=1.5), ("base", "tuned", "reference")),
        (Combination.emulate(truncation=Truncation("keep", 0.9)), ("base", "tuned", "reference")),
        (Combination.steer({"one": 0.7, "two": 0.3}), ("base", "one", "two", "reference")),
        (Combination.interpolate(0.5), ("tuned", "reference")),
        (Combination.mix({"one": 0.5, "two": 0.5}), ("one", "two")),
        (Combination.contrast(), ("base", "reference")),
        (Combination({"base": 1.0, "tuned": [0.0, 1.0], "reference": [0.0, -1.0]}), ("base", "tuned", "reference")),
    ],
    ids=str,
)
def test_the_card_of_a_recipe_runs(
    combination: Combination, names: tuple[str, ...], family: tiny.Family, capsys: pytest.CaptureFixture[str]
) -> None:
    ids = {
        "base": IDS["base"],
        "tuned": IDS["tuned"],
        "one": IDS["tuned"],
        "two": IDS["reference"],
        "reference": IDS["reference"],
    }
    members = {name: (ids[name], "c" * 40) for name in names}
    card = recipe_card(members, combination, repo_id="owner/recipe")
    assert data_of(card)["base_model"] == list(dict.fromkeys(ids[name] for name in names))
    models = {name: getattr(family, {"one": "tuned", "two": "reference"}.get(name, name)) for name in names}
    tuned = {name: models[name] for name in names if name not in ("base", "reference")}
    model = EFTForCausalLM.from_models(
        models.get("base"), tuned=tuned or None, reference=models.get("reference"), combination=combination
    )
    if combination.scheduled:  # the add-on needs the prompt's mask
        card = card.partition("### As an add-on")[0]
    printed = run_blocks(card, FOLDERS, capsys)
    assert len(printed) == 2 + ("base" in names and not combination.scheduled)
    assert set(printed) == {said(model, family.tokenizer)}
    if (
        not any(value < 0 for value in combination.coefficients.values() if isinstance(value, float))
        and not combination.scheduled
    ):
        assert "Negative weights" not in card


def test_the_snippet_runs(family: tiny.Family, capsys: pytest.CaptureFixture[str]) -> None:
    text = snippet(IDS["tuned"], IDS["reference"], base=IDS["base"], revisions={"tuned": COMMITS["tuned"]})
    assert f'"{IDS["tuned"]}", revision="{COMMITS["tuned"]}"' in text and f'("{IDS["base"]}", use_safetensors=True)' in text
    assert run_blocks(text, FOLDERS, capsys) == [said(wrapper(family), family.tokenizer)] * 3
    assert not re.search(r"^# ", re.sub(r"```.*?```", "", text, flags=re.S), flags=re.M), "it is part of another card"
    alone = snippet(IDS["tuned"], IDS["reference"])
    assert run_blocks(alone, FOLDERS, capsys) == [said(family.tuned, family.tokenizer)] * 3
    assert "put a larger model" in alone and "put a larger model" not in text


@pytest.mark.parametrize("place", HOSTILE)
def test_hostile_places_are_refused(place: str, family: tiny.Family) -> None:
    model = wrapper(family)
    for write in (
        lambda: model_card(model, sources={"tuned": place}),
        lambda: model_card(model, repo_id=place),
        lambda: recipe_card({**MEMBERS, "tuned": (place, COMMITS["tuned"])}, Combination.emulate()),
        lambda: recipe_card(MEMBERS, Combination.emulate(), repo_id=place),
        lambda: snippet(place, IDS["reference"]),
        lambda: snippet(IDS["tuned"], place),
        lambda: snippet(IDS["tuned"], IDS["reference"], base=place),
    ):
        with pytest.raises(ValueError, match="must be a repository of the Hub"):
            write()


def test_hostile_names_commits_and_licences_are_refused() -> None:
    for name in ("tu`ned", "tuned: x", "<b>", "_tuned", "a b", ""):
        with pytest.raises(ValueError, match="cannot be called"):
            recipe_card({name: MEMBERS["tuned"]}, Combination({name: 1.0}))
    for commit in ("main", "", "b" * 39, "B" * 40, "b" * 40 + "\n", None):
        with pytest.raises(ValueError, match="can move"):
            recipe_card({**MEMBERS, "tuned": (IDS["tuned"], commit)}, Combination.emulate())  # type: ignore[dict-item]
    with pytest.raises(ValueError, match="can move"):
        snippet(IDS["tuned"], IDS["reference"], revisions={"tuned": "main"})
    with pytest.raises(ValueError, match=r"`revisions` has \['other'\]"):
        snippet(IDS["tuned"], IDS["reference"], revisions={"other": COMMITS["tuned"]})
    with pytest.raises(ValueError, match="identifier of a licence"):
        recipe_card(MEMBERS, Combination.emulate(), licences={"tuned": "mit\nevil: true"})
    with pytest.raises(ValueError, match="callables, which cannot be written"):
        recipe_card(MEMBERS, Combination.emulate(alpha=lambda t: 1.0))
    with pytest.raises(ValueError, match="names 'other'"):
        recipe_card(MEMBERS, Combination({"base": 1.0, "other": 1.0}))


def test_a_formula_that_breaks_out_is_refused(family: tiny.Family) -> None:
    def alpha(t: int) -> float:
        return 1.0

    assert "base + alpha(t) tuned" in model_card(wrapper(family, combination=Combination({"base": 1.0, "tuned": alpha})))
    alpha.__name__ = "x\n```\n<script>"
    with pytest.raises(ValueError, match="cannot be written into a card"):
        model_card(wrapper(family, combination=Combination({"base": 1.0, "tuned": alpha})))
    with pytest.raises(ValueError, match=r"`sources` names \['other'\]"):
        model_card(wrapper(family), sources={"other": "owner/name"})


@pytest.mark.parametrize(
    "front, expected",
    [
        ("license: mit", "mit"),
        ("license: other\nlicense_name: llama3", "llama3"),
        ("license: other", "other"),
        ("tags: [x]", None),
        ("license: [mit, apache-2.0]", None),
        ('license: "mit | <script>"', None),
        ("license: {a: b", None),
    ],
)
def test_licence_of_a_folder(front: str, expected: str | None, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(f"---\n{front}\n---\n# A model\n")
    assert licence_of(tmp_path) == expected
    assert licence_of(str(tmp_path / "nowhere")) is None
    assert licence_of("owner/not-in-the-cache") is None  # and the Hub is not asked
    (tmp_path / "README.md").write_text("no metadata")
    assert licence_of(tmp_path) is None


def test_licences_of_all_members(family: tiny.Family, tmp_path: Path) -> None:
    def licences(**stated: str) -> dict[str, Any]:
        return data_of(recipe_card(MEMBERS, Combination.emulate(), licences=stated))

    assert licences(base="mit", tuned="mit", reference="mit")["license"] == "mit"
    mixed = licences(base="llama2", tuned="mit", reference="mit")
    assert mixed["license"] == "other" and mixed["license_name"] == "llama2-and-mit"
    assert licences(base="mit")["license_name"] == "mit-and-unstated"
    assert "license" not in licences()
    assert "| llama2 |" in recipe_card(MEMBERS, Combination.emulate(), licences={"base": "llama2"})
    (tmp_path / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    model = wrapper(family)
    for member in model.members.values():
        member.config._name_or_path = str(tmp_path)
    try:
        card = model_card(model)
        assert data_of(card)["license"] == "apache-2.0", "read from the folder that a member was loaded from"
        assert str(tmp_path) not in card
    finally:
        for name, member in model.members.items():
            member.config._name_or_path = str(tiny.path(name))


def test_places() -> None:
    check_repository("tuned", "owner/name", COMMITS["tuned"])
    check_repository("tuned", "gpt2")
    with pytest.raises(ValueError, match="'tuned' must be a repository"):
        check_repository("tuned", None)
