"""Members whose tokenizers differ lie in a folder as they are, each with its own, and come back read in the same units or bytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from families import lora
from transformers import AutoTokenizer

from hf_eft import Combination, EFTForCausalLM, Phase, hub, tiny
from hf_eft.bytes import ByteLevelModel

VOCABULARIES = ("tokens", "bytes")
# What PEFT says while adapters are made.
PEFT_SAYS = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")


def cutters() -> dict[str, Any]:
    second = tiny.load_second()[2]
    return {"base": tiny.load()[3], "tuned": second, "reference": second}


def combined(vocabulary: str, **given: Any) -> EFTForCausalLM:
    tuned, reference, _ = tiny.load_second()
    members = {"base": tiny.load()[0], "tuned": tuned, "reference": reference, **given}
    return EFTForCausalLM.from_models(**members, tokenizers=cutters(), vocabulary=vocabulary)


def answers(model: Any) -> tuple[torch.Tensor, torch.Tensor]:
    asked = model.tokenizers["tuned"](tiny.questions()[90].prompt, return_tensors="pt")
    given = {name: asked[name] for name in ("input_ids", "attention_mask")}
    return model(**given, logits_to_keep=1).logits, model.generate(**given, max_new_tokens=8, do_sample=False)


def check_comes_back(model: EFTForCausalLM, folder: Path) -> EFTForCausalLM:
    model.save_pretrained(folder)
    loaded = EFTForCausalLM.from_pretrained(folder)
    assert loaded.vocabulary == model.vocabulary
    assert [torch.equal(*pair) for pair in zip(answers(loaded), answers(model), strict=True)] == [True, True]
    return loaded


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_it_comes_back_and_can_be_saved_again(vocabulary: str, tmp_path: Path) -> None:
    loaded = check_comes_back(combined(vocabulary), tmp_path / "saved")
    check_comes_back(loaded, tmp_path / "again")
    assert (tmp_path / "saved/config.json").read_text() == (tmp_path / "again/config.json").read_text()
    own = AutoTokenizer.from_pretrained(tmp_path / "saved/members/tuned")
    assert own.get_vocab() == cutters()["tuned"].get_vocab()
    assert hub.load(tmp_path / "saved")[1]["base"].get_vocab() == loaded.tokenizers["tuned"].get_vocab()


def test_the_folder_has_what_prompts_in_units_are_written_with(tmp_path: Path) -> None:
    model = combined("tokens")
    model.save_pretrained(tmp_path)
    speaker, prompt = AutoTokenizer.from_pretrained(tmp_path), tiny.questions()[90].prompt
    assert (
        speaker(prompt)["input_ids"] == model.tokenizers["tuned"](prompt)["input_ids"] == cutters()["base"](prompt)["input_ids"]
    )


@PEFT_SAYS
@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_adapters_and_shared_members_come_back(vocabulary: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    small = tiny.load_second()[1]
    model = combined(vocabulary, tuned=lora(small), reference=small)
    loaded = check_comes_back(model, tmp_path / "adapter")
    assert loaded._beneath is not None and loaded._beneath.models["tuned"] is not loaded._beneath.models["reference"]
    assert (tmp_path / "adapter/members/tuned/adapter_model.safetensors").is_file()
    assert not (tmp_path / "adapter/members/tuned/model.safetensors").exists()
    same = tiny.load_second()[0]
    loaded = check_comes_back(combined(vocabulary, tuned=same, reference=same), tmp_path / "shared")
    assert loaded.tuned is loaded.reference  # one view: it is read once


def test_views_with_options_of_their_own_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'base' is a ByteLevelModel with options of its own \(covers\)"):
        combined("bytes", base=ByteLevelModel(tiny.load()[0], cutters()["base"], covers=8)).save_pretrained(tmp_path)
    model = combined("tokens")
    with pytest.raises(ValueError, match="'tuned' is read by `vocabulary='tokens'` as a TokenLevelModel, got a Llama"):
        model.tuned = tiny.load_second()[0]
    with pytest.raises(ValueError, match="combine anew"):
        model.tokenizers = cutters()
    with pytest.raises(ValueError, match="`tokenizers` cannot be given"):
        model.save_pretrained(tmp_path, tokenizers=cutters())
    assert not list(tmp_path.iterdir())


def test_a_combination_of_bytes_leaves_no_tokenizer_of_another_one(tmp_path: Path) -> None:
    combined("tokens").save_pretrained(tmp_path)
    combined("bytes").save_pretrained(tmp_path)
    assert not (tmp_path / "tokenizer.json").exists()
    assert EFTForCausalLM.from_pretrained(tmp_path).vocabulary == "bytes"


def test_the_card_runs_what_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    combined("tokens").save_pretrained(tmp_path)
    [program] = [part.partition("```")[0] for part in (tmp_path / "README.md").read_text().split("```python\n")[1:]]
    exec(program.replace('where = "."', f"where = {str(tmp_path)!r}"), {})
    assert capsys.readouterr().out.strip()
    assert json.loads((tmp_path / "config.json").read_text())["vocabulary"] == "tokens"


def test_members_by_name_are_composed(tmp_path: Path) -> None:
    places = {"base": tiny.path("base"), "tuned": tiny.path("second_tuned"), "reference": tiny.path("second_reference")}
    hub.compose(places, tmp_path / "made", vocabulary="tokens")
    loaded, expected = EFTForCausalLM.from_pretrained(tmp_path / "made"), hub.load(places, vocabulary="tokens")[0]
    assert torch.equal(answers(loaded)[1], answers(expected)[1])
    with pytest.raises(ValueError, match="a folder says in what"):
        hub.load(tmp_path / "made", vocabulary="tokens")
    with pytest.raises(ValueError, match="A recipe folder says one"):
        hub.compose(places, tmp_path / "recipe", vocabulary="auto", references=True)


def test_markers_of_phases_are_the_bases_tokens(tmp_path: Path) -> None:
    strengths = {"think": 1, "answer": 0}
    recipe = Combination.emulate(alpha=strengths, phases=[Phase("think", [5], [6])])
    model = combined("tokens", combination=recipe)
    check_comes_back(model, tmp_path / "saved")
    [phase] = json.loads((tmp_path / "saved/config.json").read_text())["combination"]["phases"]
    assert phase["spelled"] == [cutters()["base"].convert_ids_to_tokens([i]) for i in (5, 6)]
