"""`base.generate(custom_generate=folder, trust_remote_code=True, ...)` is the wrapper, option by option."""

from __future__ import annotations

import copy
import gc
import json
import re
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers.dynamic_module_utils
from families import build, prompts, shared
from huggingface_hub import ModelCard

from hf_eft import Combination, EFTForCausalLM, tiny
from hf_eft.hub import custom_generate as module
from hf_eft.hub.custom_generate import write_recipe

COMMIT = "c" * 40


@pytest.fixture(autouse=True)
def modules_of_the_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """transformers copies a recipe's code to a folder of its own and imports it from there."""
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith("transformers_modules"):
            del sys.modules[name]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("small")
    for name, family, seed in (("tuned", "gpt2", 1), ("reference", "gpt2", 2), ("other", "gpt2", 3)):
        shared(family, seed).save_pretrained(root / name)
    return {name: str(root / name) for name in ("tuned", "reference", "other")}


def run(model: Any, **options: Any) -> list[list[int]]:
    torch.manual_seed(5)
    out = model.generate(**{**prompts("left"), "max_new_tokens": 10, **options})
    return out.tolist() if isinstance(out, torch.Tensor) else out.sequences.tolist()


def recipe(path: Path, folders: dict[str, str], **options: Any) -> dict[str, Any]:
    folder = write_recipe(path / "recipe", folders["tuned"], folders["reference"], **options)
    return {"custom_generate": str(folder), "trust_remote_code": True}


WAYS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sample": {"do_sample": True, "top_p": 0.9},
    "beams": {"num_beams": 3, "num_return_sequences": 2},
    "penalty": {"repetition_penalty": 1.5},
    "match": {"do_sample": True, "coupling": "match", "seed": 3},
    "static": {"cache_implementation": "static"},
}


@pytest.mark.parametrize("way", WAYS)
def test_it_is_the_wrapper(way: str, folders: dict[str, str], tmp_path: Path) -> None:
    base, options = shared("llama", 0), WAYS[way]
    models = {"tuned": shared("gpt2", 1), "reference": shared("gpt2", 2)}
    wrapper = EFTForCausalLM.from_models(base, **models, alpha=0.7)
    expected = run(wrapper, **options)
    here = recipe(tmp_path, folders, alpha=0.7)
    assert (
        run(base, **here, **options)
        == expected
        != run(base, **{k: v for k, v in options.items() if k not in ("coupling", "seed")})
    )
    assert run(base, **here, **models, **options) == expected
    assert run(base, **here, tuned=Path(folders["tuned"]), reference=folders["reference"], **options) == expected


def test_strengths_and_other_models(folders: dict[str, str], tmp_path: Path) -> None:
    base, here = shared("llama", 0), recipe(tmp_path, folders, alpha=0.7)
    tuned, reference, other = (shared("gpt2", seed) for seed in (1, 2, 3))

    def expected(tuned: Any, **options: Any) -> list[list[int]]:
        return run(EFTForCausalLM.from_models(base, tuned=tuned, reference=reference, **options))

    assert run(base, **here, alpha=1.5) == expected(tuned, alpha=1.5)
    assert run(base, **here, beta=1.5) == expected(tuned, beta=1.5)
    combination = Combination({"base": 0.5, "tuned": 1.0})
    assert run(base, **here, combination=combination) == expected(tuned, combination=combination)
    assert run(base, **here, tuned=folders["other"]) == expected(other, alpha=0.7) != expected(tuned, alpha=0.7)
    with pytest.raises(ValueError, match="`alpha` or `beta`, not both"):
        run(base, **here, alpha=1.0, beta=1.5)


def test_small_models_are_loaded_once_and_freed_with_the_base(
    folders: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []
    load = transformers.AutoModelForCausalLM.from_pretrained
    watched = lambda where, **options: loaded.append(where) or load(where, **options)  # noqa: E731
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", watched)
    base, here = build("llama", 0), recipe(tmp_path, folders)
    first = run(base, **here)
    assert run(base, **here) == first == run(base, **here, tuned=folders["tuned"])
    assert loaded == [folders["tuned"], folders["reference"]]
    small = weakref.ref(next(iter(module._loaded[base].values())))
    assert [name for name, _ in base.named_children()] == [name for name, _ in shared("llama", 0).named_children()]
    del base
    gc.collect()
    assert small() is None


def test_places_are_folders_or_pinned(folders: dict[str, str], tmp_path: Path) -> None:
    base, here = shared("llama", 0), recipe(tmp_path, folders)
    for place in ("owner/name", ("owner/name", "main"), ("owner/name", None), ("../x", COMMIT), str(tmp_path / "nowhere")):
        with pytest.raises(
            ValueError, match=r"'tuned' must be a folder that is there, or a repository of the Hub with its commit"
        ):
            run(base, **here, tuned=place)
        where, commit = place if isinstance(place, tuple) else (place, None)
        with pytest.raises(ValueError, match="'tuned' must be a folder"):
            write_recipe(tmp_path / "no", where, folders["reference"], revisions={"tuned": commit} if commit else None)
    with pytest.raises(TypeError, match=r"member 'tuned' must be a model"):
        run(base, **here, tuned=3)
    assert not (tmp_path / "no").exists()


def test_a_pinned_repository_is_asked_for_at_its_commit(
    folders: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def fetched(where: str, **options: Any) -> str:
        asked.append((where, options))
        return folders["tuned" if "chat" in where else "reference"]

    monkeypatch.setattr(module, "snapshot_download", fetched)
    revisions = {"tuned": COMMIT, "reference": "d" * 40}
    folder = write_recipe(tmp_path / "pinned", "owner/chat", "owner/small", revisions=revisions, repo_id="owner/recipe")
    base = build("llama", 0)
    here: dict[str, Any] = {"custom_generate": str(folder), "trust_remote_code": True}
    got = run(base, **here)
    assert (
        got == run(base, **here) == run(EFTForCausalLM.from_models(base, tuned=shared("gpt2", 1), reference=shared("gpt2", 2)))
    )
    assert asked == [
        (where, {"revision": commit, "allow_patterns": ["*.json", "*.safetensors"]})
        for where, commit in (("owner/chat", COMMIT), ("owner/small", "d" * 40))
    ]
    data = ModelCard.load(folder / "README.md").data
    assert data["base_model"] == ["owner/chat", "owner/small"] and "custom_generate" in data["tags"]


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT asks for it
def test_an_adapter_is_put_on_the_reference(folders: dict[str, str], tmp_path: Path) -> None:
    """Whatever repository the adapter's own file names."""
    peft = pytest.importorskip("peft")
    small = build("llama", 1)
    small.save_pretrained(tmp_path / "small")
    adapter = peft.get_peft_model(
        copy.deepcopy(small), peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    ).eval()
    adapter.save_pretrained(tmp_path / "adapter")
    settings = tmp_path / "adapter" / "adapter_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "base_model_name_or_path": "somebody/else"}))
    base = shared("llama", 0)
    here = recipe(tmp_path, {"tuned": str(tmp_path / "adapter"), "reference": str(tmp_path / "small")})
    expected = run(EFTForCausalLM.from_models(base, tuned=adapter, reference=small))
    assert run(base, **here) == expected == run(base, **here)
    assert expected != run(base)


def test_code_runs_only_if_it_is_trusted(folders: dict[str, str], tmp_path: Path) -> None:
    here = recipe(tmp_path, folders)
    with pytest.raises(ValueError, match="trust_remote_code"):
        run(shared("llama", 0), custom_generate=here["custom_generate"], trust_remote_code=False)


def test_what_is_written(folders: dict[str, str], tmp_path: Path) -> None:
    odd = tmp_path / 'it\'s "odd" {x}'
    shared("gpt2", 1).save_pretrained(odd)
    base = shared("llama", 0)
    here = recipe(tmp_path, {**folders, "tuned": str(odd)})
    assert run(base, **here) == run(EFTForCausalLM.from_models(base, tuned=shared("gpt2", 1), reference=shared("gpt2", 2)))
    written = Path(here["custom_generate"])
    assert sorted(str(path.relative_to(written)) for path in written.rglob("*") if path.is_file()) == [
        "README.md", "custom_generate/generate.py", "custom_generate/requirements.txt",
    ]  # fmt: skip
    card = (written / "README.md").read_text()
    assert str(tmp_path) not in card and "undo its safety training" in card
    before = (written / "custom_generate" / "generate.py").read_text()
    with pytest.raises(FileExistsError, match="Choose another folder"):
        write_recipe(written, folders["other"], folders["reference"])
    assert (written / "custom_generate" / "generate.py").read_text() == before
    for alpha in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="finite"):
            write_recipe(tmp_path / "no", folders["tuned"], folders["reference"], alpha=alpha)
    with pytest.raises(ValueError, match=r"`revisions` has \['base'\]"):
        write_recipe(tmp_path / "no", folders["tuned"], folders["reference"], revisions={"base": COMMIT})


def test_the_example_of_its_card_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_recipe(tmp_path / "recipe", tiny.path("tuned"), tiny.path("reference"))
    (block,) = re.findall(r"^```python\n(.*?)^```", (folder / "README.md").read_text(), flags=re.M | re.S)
    monkeypatch.chdir(folder)
    exec(block.replace('"owner/larger-model"', repr(str(tiny.path("base")))), {})
    base, tuned, reference, tok = tiny.load()
    model = EFTForCausalLM.from_models(base, tuned=tuned, reference=reference)
    inputs = tok("What is a heat pump?", return_tensors="pt", return_token_type_ids=False)
    expected = tok.decode(model.generate(**inputs, max_new_tokens=64)[0], skip_special_tokens=True)
    assert expected.strip() in capsys.readouterr().out


def test_a_model_that_is_published_with_a_recipe_generates_by_it(folders: dict[str, str], tmp_path: Path) -> None:
    """A recipe beside a base's weights: transformers puts it in the place of the loaded model's `generate`."""
    base = shared("llama", 0)
    base.save_pretrained(tmp_path / "recipe")
    recipe(tmp_path, folders)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "recipe", trust_remote_code=True)
    assert run(loaded) == run(EFTForCausalLM.from_models(base, tuned=shared("gpt2", 1), reference=shared("gpt2", 2)))
