"""What a delta says of itself: where it is kept, who reads it, and that another base is told of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from adapted import PEFT_SAYS
from commands import invoke
from fake_hub import serving
from families import build, lora

from hf_eft import Combination, EFTConfig, EFTForCausalLM, EFTLogitsProcessor, hub
from hf_eft.files.learnt import LEARNT, Base, Learnt
from hf_eft.folders.card import model_card
from hf_eft.folders.card_delta import delta_card
from hf_eft.members.learnt import describe_base, learnt_of, set_learnt

pytestmark = [*PEFT_SAYS, pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")]
FULL, LORA = "full", "lora"
COMMIT, OTHER = "a" * 40, "b" * 40


def through(*bases: Any) -> Learnt:
    return Learnt(tuple(map(describe_base, bases)), alpha=0.25, recommended_alpha=0.375)


def delta(kind: str, *bases: Any) -> dict[str, Any]:
    """A tuned member that learnt through some bases, and its reference."""
    reference = build("qwen3", 2)
    tuned = lora(reference) if kind == LORA else build("qwen3", 1)
    set_learnt(tuned, through(*bases), "default" if kind == LORA else None)
    return {"tuned": tuned, "reference": reference}


@pytest.mark.parametrize("kind", [FULL, LORA])
def test_it_is_used_at_the_strength_that_it_recommends_and_comes_back_from_a_folder(kind: str, tmp_path: Path) -> None:
    base = build("llama", 0)
    members = delta(kind, base)
    model = EFTForCausalLM.from_models(base, **members)
    assert model.combination == Combination.emulate(alpha=0.375)
    assert EFTLogitsProcessor(**members).combination == Combination.emulate(alpha=0.375)
    assert EFTForCausalLM.from_models(base, **members, alpha=1.0).combination == Combination.emulate()
    model.save_pretrained(tmp_path / "whole")
    # The base's folder has another name now, which is no reason to warn: its weights are what counts.
    again = EFTForCausalLM.from_pretrained(tmp_path / "whole")
    again.save_pretrained(tmp_path / "again")
    assert again.combination == model.combination
    for folder in ("whole", "again"):
        member = tmp_path / folder / "members" / "tuned"
        found = json.loads((member / (LEARNT if kind == LORA else "config.json")).read_text())
        assert Learnt.read(found if kind == LORA else found["learnt_through"]) == through(base)
    base.save_pretrained(tmp_path / "large"), build("qwen3", 2).save_pretrained(tmp_path / "small")
    places = {"base": tmp_path / "large", "tuned": tmp_path / "whole/members/tuned", "reference": tmp_path / "small"}
    loaded, _ = hub.load(places)
    assert loaded.combination == model.combination
    ids = torch.arange(5, 15)[None]
    torch.testing.assert_close(loaded(ids).logits, model(ids).logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", [FULL, LORA])
def test_another_base_is_told_of(kind: str, tmp_path: Path) -> None:
    base, other, wider = build("llama", 0), build("llama", 5), build("llama", 0, hidden_size=64)
    for wrong in (other, wider):
        with pytest.warns(
            UserWarning, match=r"'tuned' learnt through a model \(llama, 2 layers of 32\) and is used with another"
        ):
            model = EFTForCausalLM.from_models(wrong, **delta(kind, base))
    with pytest.warns(UserWarning, match="used with another base"):
        model.save_pretrained(tmp_path)
        EFTForCausalLM.from_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="without a base"):
        EFTForCausalLM.from_models(None, **delta(kind, base), combination=Combination.interpolate(0.5))
    half = EFTForCausalLM.from_models(base.to(torch.bfloat16), **delta(kind, build("llama", 0)))  # the same base, in halves
    with pytest.warns(UserWarning, match="used with another base"):
        half.base = other


def test_of_several_bases_each_is_the_one_and_others_are_told_of_once(caplog: pytest.LogCaptureFixture) -> None:
    first, second, unseen = build("llama", 0), build("llama", 5), build("gpt2", 7)
    for base in (first, second):
        EFTForCausalLM.from_models(base, **delta(FULL, first, second))  # a warning would be an error
    for _ in range(2):
        EFTForCausalLM.from_models(unseen, **delta(FULL, first, second))
    assert caplog.text.count("learnt through several bases") == 1


def test_which_base_is_another() -> None:
    base = Base("llama", 64, 8, 1000, name="owner/large", revision=COMMIT, sample="0" * 16)
    same = [
        Base("llama", 64, 8, 1000),
        Base("llama", 64, 8, 1000, name="copy", sample="0" * 16),
        Base("llama", 64, 8, 1000, name="Large"),
        Base("llama", 64, 8, 1000, name="owner/large", sample="0" * 16),
    ]
    other = [
        Base("llama", 64, 9, 1000, name="owner/large", revision=COMMIT),
        Base("llama", 64, 8, 1000, name="owner/large", revision=OTHER, sample="0" * 16),
        Base("llama", 64, 8, 1000, name="owner/large-chat", sample="0" * 16),
        Base("llama", 64, 8, 1000, name="large", sample="1" * 16),
        Base("llama", 64, 8, 1000, name="chat"),
    ]
    assert not any(base.differs(each) or each.differs(base) for each in same)
    assert all(base.differs(each) and each.differs(base) for each in other)


SAID = {"bases": [{"model_type": "llama", "hidden_size": 8, "num_hidden_layers": 2, "vocab_size": 9}], "alpha": 0.5}
SAID |= {"recommended_alpha": 0.5}


@pytest.mark.parametrize(
    "change, message",
    [
        ({"code": "x"}, "nothing else"),
        ({"bases": []}, "1 to 64 bases"),
        ({"alpha": float("inf")}, "a finite number"),
        ({"recommended_alpha": -1}, "above 0"),
        ({"bases": [{**SAID["bases"][0], "name": "../../etc"}]}, "no path"),
        ({"bases": [{**SAID["bases"][0], "revision": "main"}]}, "a commit"),
        ({"bases": [{**SAID["bases"][0], "weights": 1}]}, "a base must have"),
        ({"bases": [{**SAID["bases"][0], "hidden_size": 2**40}]}, "`hidden_size`"),
        ({"bases": [{**SAID["bases"][0], "sample": "z"}]}, "16 hexadecimal"),
        ({"bases": [{**SAID["bases"][0], "model_type": "a b"}]}, "a type of model"),
    ],
)
def test_what_a_file_may_not_say_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        Learnt.read({**SAID, **change})
    base, members = build("llama", 0), delta(FULL, build("llama", 0))
    EFTForCausalLM.from_models(base, **members).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["tuned_config"]["learnt_through"] = json.loads(json.dumps({**SAID, **change}).replace("Infinity", "1e999"))
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        EFTForCausalLM.from_pretrained(tmp_path)


def test_the_card_says_how_it_learnt() -> None:
    base = build("llama", 0)
    card = model_card(EFTForCausalLM.from_models(base, **delta(FULL, base)))
    assert "learnt **through the combination** with a model that is not published (llama, 2 layers of 32)" in card
    assert "Strength in training: 0.25" in card and "no model of its own" in card
    plain = model_card(EFTForCausalLM.from_models(base, build("qwen3", 1), build("qwen3", 2)))
    assert "How it learnt" not in plain
    two = tuple(Base("llama", 64, 8, 1000, name=name, revision=revision) for name, revision in (("o/l", COMMIT), ("m", None)))
    card = delta_card(Learnt(two, 0.5, 0.625), adapter=True, reference=("o/s", None), repo_id="me/delta")
    assert f"[o/l](https://huggingface.co/o/l) at `{COMMIT}`" in card and "one of these at each step" in card
    assert "base + 0.625 tuned - 0.625 reference" in card and "- o/l" in card
    assert "m (llama" not in card and "[m]" not in card  # the name of a folder of this machine


def test_a_recipe_on_the_hub_carries_it(tmp_path: Path) -> None:
    base, members = build("llama", 0), delta(LORA, build("llama", 0))
    EFTForCausalLM.from_models(base, **members).save_pretrained(tmp_path / "whole")
    with serving(tmp_path / "cache") as online:
        for name, where in (("large", "base"), ("delta", "tuned"), ("small", "reference")):
            online.add(f"o/{name}", tmp_path / "whole" / "members" / where)
        places = {"base": "o/large", "tuned": "o/delta", "reference": "o/small"}
        hub.compose(places, tmp_path / "recipe", references=True)
        assert "Strength in training: 0.25" in (tmp_path / "recipe" / "README.md").read_text()
        model = EFTForCausalLM.from_pretrained(tmp_path / "recipe", allow_references=True)
        assert model.combination == Combination.emulate(alpha=0.375)
        assert learnt_of(model._members.adapters["tuned"].trunk, model._members.adapters["tuned"].adapter) is not None
        online.add("o/other", tmp_path / "whole" / "members" / "reference")
        with pytest.warns(UserWarning, match=r"used with another base, o/other@"):
            hub.compose({**places, "base": "o/other"}, tmp_path / "wrong", references=True)


def test_the_command_line_tells_of_another_base(tmp_path: Path) -> None:
    for name, model in (
        ("large", build("llama", 3)),
        ("small", build("qwen3", 2)),
        ("delta", delta(FULL, build("llama", 0))["tuned"]),
    ):
        model.save_pretrained(tmp_path / name)
    options = [
        f"--{name}={tmp_path / where}" for name, where in (("base", "large"), ("tuned", "delta"), ("reference", "small"))
    ]
    with pytest.warns(UserWarning, match="used with another base, large"):
        done = invoke("compose", str(tmp_path / "whole"), *options)
    assert done.exit_code == 0, done.output
    assert EFTConfig.from_pretrained(tmp_path / "whole").combination["coefficients"]["tuned"] == 0.375
