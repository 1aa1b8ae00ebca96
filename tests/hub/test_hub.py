"""Repositories of the Hub, against a fake of its HTTP interface: what is published, what is fetched, and with which token."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ruling
import torch
from fake_hub import FakeHub, serving
from families import build
from saveable import logits
from transformers import AutoModelForCausalLM

from hf_eft import Combination, EFTForCausalLM, hub, tiny

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated"),  # PEFT asks for it
    pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"),  # what huggingface_hub does without Xet
]

NAMES = ("base", "tuned", "reference")
MINE, STORED = "hf_mine", "hf_stored"


@pytest.fixture
def online(tmp_path: Path) -> Iterator[FakeHub]:
    with serving(tmp_path / "cache", STORED) as fake:
        yield fake


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("members")
    for seed, name in enumerate(NAMES):
        build("llama", seed).save_pretrained(folder / name)
    return {name: folder / name for name in NAMES}


def put(online: FakeHub, members: dict[str, Path]) -> dict[str, str]:
    """The members as repositories; the commits, by repository."""
    return {f"family/{name}": online.add(f"family/{name}", folder) for name, folder in members.items()}


def recipe_of(online: FakeHub, members: dict[str, Path], folder: Path, **options: Any) -> dict[str, str]:
    commits = put(online, members)
    hub.compose({name: f"family/{name}" for name in NAMES}, folder, references=True, **options)
    return commits


def test_a_saved_folder_is_published_and_comes_back(online: FakeHub, members: dict[str, Path], tmp_path: Path) -> None:
    base, tuned, reference, tokenizer = tiny.load()
    model = EFTForCausalLM.from_models(
        base, tuned=tuned, reference=reference, tokenizers=dict.fromkeys(NAMES, tokenizer), alpha=0.5
    )
    done = model.push_to_hub("me/combined", token=MINE)
    assert done.oid == online.head("me/combined")
    assert online.tokens("me/combined") == {MINE}
    files = online.files("me/combined", "main")
    assert {"README.md", "config.json", "tokenizer.json", "members/base/model.safetensors"} <= set(files)
    assert all(request.token is None for request in online.requests if request.path.startswith("/storage"))

    loaded, tokenizers = hub.load("me/combined", token=MINE)
    assert loaded.combination == Combination.emulate(alpha=0.5)
    assert list(tokenizers) == list(NAMES)
    ids = tokenizer(tiny.questions()[0].prompt, return_tensors="pt", return_token_type_ids=False)
    assert torch.equal(loaded(**ids).logits, model(**ids).logits)
    auto = AutoModelForCausalLM.from_pretrained("me/combined", token=MINE)
    assert torch.equal(auto(**ids).logits, model(**ids).logits)
    assert online.tokens("me/combined") == {MINE}


def test_pushing_again_leaves_no_member_behind(online: FakeHub, members: dict[str, Path], tmp_path: Path) -> None:
    model, _ = hub.load(members)
    (tmp_path / "notes.py").write_text("import os")
    model.save_pretrained(tmp_path / "saved", push_to_hub=True, repo_id="me/combined", token=MINE)
    contrast = EFTForCausalLM.from_models(model.base, reference=model.reference, combination=Combination.contrast())
    contrast.save_pretrained(tmp_path / "saved")
    (tmp_path / "saved/secret.env").write_text("HF_TOKEN")
    hub.push(tmp_path / "saved", "me/combined", token=MINE)
    files = online.files("me/combined", "main")
    assert not any("tuned" in path or path.endswith((".env", ".py")) for path in files)
    loaded, _ = hub.load("me/combined")
    assert torch.equal(logits(loaded), logits(contrast))


def test_a_revision_and_a_subfolder(online: FakeHub, members: dict[str, Path], tmp_path: Path) -> None:
    model, _ = hub.load(members)
    model.save_pretrained(tmp_path / "in/sub")
    old = online.add("me/combined", tmp_path / "in")
    other, _ = hub.load(members, alpha=0.5)
    other.save_pretrained(tmp_path / "in/sub")
    online.add("me/combined", tmp_path / "in")
    new = EFTForCausalLM.from_pretrained("me/combined", subfolder="sub", cache_dir=tmp_path / "other")
    assert new.combination == Combination.emulate(alpha=0.5)
    assert torch.equal(logits(new), logits(other))
    first = EFTForCausalLM.from_pretrained("me/combined", subfolder="sub", revision=old, cache_dir=tmp_path / "other")
    assert first.combination == Combination.emulate()
    asked = len(online.requests)
    again = EFTForCausalLM.from_pretrained(
        "me/combined", subfolder="sub", revision=old, cache_dir=tmp_path / "other", local_files_only=True
    )
    assert torch.equal(logits(again), logits(first))
    assert len(online.requests) == asked
    with pytest.raises(OSError, match="cannot be found"):
        EFTForCausalLM.from_pretrained("me/combined", revision="no-such-branch")


def test_members_by_id(online: FakeHub, members: dict[str, Path]) -> None:
    commits = put(online, members)
    newer = online.commit("family/base", {})
    places = {name: f"family/{name}" for name in NAMES}
    model, _ = hub.load_members(places, revisions={"base": commits["family/base"]}, token=MINE)
    assert {model[name].config._commit_hash for name in NAMES} == set(commits.values())
    assert online.tokens("family/base") == {MINE}
    assert not any(newer in request.path for request in online.requests)
    combined = EFTForCausalLM.from_models(model["base"], tuned=model["tuned"], reference=model["reference"])
    assert combined.sources == {name: (f"family/{name}", commits[f"family/{name}"]) for name in NAMES}
    assert torch.equal(logits(combined), logits(hub.load(members)[0]))


def test_a_recipe_refers_to_commits(online: FakeHub, members: dict[str, Path], tmp_path: Path) -> None:
    commits = recipe_of(online, members, tmp_path / "recipe", combination=Combination.emulate(alpha=0.5), token=MINE)
    written = [path for path in (tmp_path / "recipe").iterdir() if path.is_file()]
    assert {path.name for path in written} == {"config.json", "README.md"}
    assert sum(path.stat().st_size for path in written) < 8_000
    described = json.loads((tmp_path / "recipe/config.json").read_text())["references"]
    assert described == {name: {"repo_id": f"family/{name}", "revision": commits[f"family/{name}"]} for name in NAMES}
    assert not any(MINE in path.read_text() for path in written)

    for name in NAMES:  # what moves afterwards moves nothing
        online.commit(f"family/{name}", {"config.json": b"{}"})
    model, _ = hub.load(tmp_path / "recipe", allow_references=True)
    assert list(model.members) == list(NAMES)
    assert model.combination == Combination.emulate(alpha=0.5)
    assert torch.equal(logits(model), logits(hub.load(members, alpha=0.5)[0]))
    assert model.sources["tuned"] == ("family/tuned", commits["family/tuned"])
    auto = AutoModelForCausalLM.from_pretrained(tmp_path / "recipe", allow_references=True, dtype=torch.bfloat16)
    assert {member.dtype for member in auto.members.values()} == {torch.bfloat16}

    hub.push(tmp_path / "recipe", "me/recipe", token=MINE)
    again, _ = hub.load("me/recipe", allow_references=True, dtype=torch.float32)
    assert torch.equal(logits(again), logits(model))
    model.save_pretrained(tmp_path / "saved")
    assert torch.equal(logits(EFTForCausalLM.from_pretrained(tmp_path / "saved")), logits(model))


def test_a_recipe_brings_the_weights_of_its_gate(online: FakeHub, members: dict[str, Path], tmp_path: Path) -> None:
    gated = Combination.emulate(alpha=ruling.GATE)
    recipe_of(online, members, tmp_path / "recipe", combination=gated)
    hub.push(tmp_path / "recipe", "me/recipe", token=MINE)
    for where in (tmp_path / "recipe", "me/recipe"):
        model, _ = hub.load(where, allow_references=True)
        assert model.combination == gated
        assert torch.equal(logits(model), logits(hub.load(members, combination=gated)[0]))
    model.push_to_hub("me/combined", token=MINE)
    assert hub.load("me/combined", token=MINE)[0].combination == gated
    model.combination = Combination.emulate()
    model.push_to_hub("me/combined", token=MINE)
    assert "rules.safetensors" not in (online.files("me/combined", "main") or {})


def test_members_of_a_recipe_keep_their_order(online: FakeHub, members: dict[str, Path], tmp_path: Path) -> None:
    put(online, members)
    places = {"base": "family/base", "polite": "family/tuned", "brief": "family/base", "reference": "family/reference"}
    recipe = Combination.steer({"polite": 0.7, "brief": 0.3})
    hub.compose(places, tmp_path / "recipe", references=True, combination=recipe)
    model, _ = hub.load(tmp_path / "recipe", allow_references=True)
    assert list(model.members) == list(places)
    assert model.members["brief"] is model.members["base"]


def test_references_are_not_followed_unasked(online: FakeHub, members: dict[str, Path], tmp_path: Path) -> None:
    recipe_of(online, members, tmp_path / "recipe")
    asked = len(online.requests)
    for load in (hub.load, EFTForCausalLM.from_pretrained, AutoModelForCausalLM.from_pretrained):
        with pytest.raises(ValueError, match=r"(?s)other repositories loaded.*family/tuned.*allow_references=True"):
            load(tmp_path / "recipe")
    assert len(online.requests) == asked


def test_references_are_logged_before_anything_is_fetched(
    online: FakeHub, members: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    commits = recipe_of(online, members, tmp_path / "recipe")
    asked = len(online.requests)
    seen: list[int] = []

    class Watch(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "family/" in record.getMessage():
                seen.append(len(online.requests))

    watch = Watch()
    logging.getLogger("hf_eft.folders.recipe").addHandler(watch)
    hub.load(tmp_path / "recipe", allow_references=True)
    logging.getLogger("hf_eft.folders.recipe").removeHandler(watch)
    assert seen == [asked]
    assert all(f"{repo_id}@{commit}" in caplog.text for repo_id, commit in commits.items())


def test_a_token_goes_only_where_it_was_sent(online: FakeHub, members: dict[str, Path], tmp_path: Path) -> None:
    recipe_of(online, members, tmp_path / "recipe", token=MINE)
    online.add("me/recipe", tmp_path / "recipe")
    online.requests.clear()
    hub.load("me/recipe", allow_references=True, token=MINE)
    assert online.tokens("me/recipe") == {MINE}
    for name in NAMES:  # not even the stored one
        assert online.tokens(f"family/{name}") == {None}

    online.private["family/tuned"] = "hf_other"
    for path in list((tmp_path / "cache").glob("models--family*")):
        path.rename(tmp_path / path.name)
    with pytest.raises(ValueError, match="member 'tuned'"):
        hub.load("me/recipe", allow_references=True, token=MINE)
    online.requests.clear()
    hub.load("me/recipe", allow_references=True, token={"me/recipe": MINE, "family/tuned": "hf_other"})
    assert online.tokens("me/recipe") == {MINE}
    assert online.tokens("family/tuned") == {"hf_other"}
    assert online.tokens("family/reference") == {None}


def test_each_repository_its_own_commit(online: FakeHub, members: dict[str, Path], tmp_path: Path) -> None:
    commits = recipe_of(online, members, tmp_path / "recipe")
    at = online.add("me/recipe", tmp_path / "recipe")
    online.requests.clear()
    EFTForCausalLM.from_pretrained("me/recipe", revision=at, allow_references=True)
    for repo_id, commit in {**commits, "me/recipe": at}.items():
        asked = [request.path for request in online.requests if request.path.startswith(f"/{repo_id}/resolve/")]
        assert asked
        assert all(path.split("/")[4] == commit for path in asked)


def test_adapters_by_reference(online: FakeHub, members: dict[str, Path], tmp_path: Path) -> None:
    from families import lora

    lora(build("llama", 2)).save_pretrained(tmp_path / "adapter")
    online.add("family/adapter", tmp_path / "adapter")
    put(online, members)
    places = {"base": "family/base", "tuned": "family/adapter", "reference": "family/reference"}
    hub.compose(places, tmp_path / "recipe", references=True)
    model, _ = hub.load(tmp_path / "recipe", allow_references=True)
    local, _ = hub.load({**members, "tuned": tmp_path / "adapter"})
    assert torch.equal(logits(model), logits(local))
    assert model.sources["tuned"] == ("family/adapter", online.head("family/adapter"))


def test_what_cannot_be_referred_to(online: FakeHub, members: dict[str, Path], tmp_path: Path) -> None:
    put(online, members)
    places: dict[str, Any] = {name: f"family/{name}" for name in NAMES}
    hub.load(members)[0].save_pretrained(tmp_path / "saved")
    online.add("me/combined", tmp_path / "saved")
    for wrong, said in {
        str(members["tuned"]): "must be the id of a repository",
        "family/nothing": "cannot be found",
        "me/combined": "is another combination",
    }.items():
        with pytest.raises(ValueError, match=f"'tuned' .*{said}"):
            hub.compose({**places, "tuned": wrong}, tmp_path / "recipe", references=True)
    with pytest.raises(ValueError, match="'other'"):
        hub.compose(places, tmp_path / "recipe", references=True, combination=Combination({"other": 1.0}))
    assert not (tmp_path / "recipe").exists()
    with pytest.raises(ValueError, match="no saved combination"):
        hub.push(tmp_path, "me/new")


def test_a_pickle_on_the_hub_is_refused_by_name(online: FakeHub, members: dict[str, Path]) -> None:
    put(online, members)
    online.commit("family/tuned", {"config.json": (members["tuned"] / "config.json").read_bytes(), "pytorch_model.bin": b"x"})
    with pytest.raises(ValueError, match=r"(?s)member 'tuned' .*Pickled weights are not read"):
        hub.load({name: f"family/{name}" for name in NAMES})
    assert not any(request.path.endswith(".bin") and request.method == "GET" for request in online.requests)
