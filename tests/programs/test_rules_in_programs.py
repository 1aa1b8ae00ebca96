"""Rules in what stands above decoding: the command line, chats, the server, cards and analysis. And where they are refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import ruling
import thinking
import torch
import typer
from commands import EMBEDDED, WHO, invoke
from families import build
from saveable import three
from served import BOTH, connect, family

from hf_eft import Combination, Confidence, Divergence, EFTForCausalLM, Entropy, Gate, KLConstrained, Phase, Rule, tiny
from hf_eft.analysis import analyse, rewards
from hf_eft.analysis.heatmap import page
from hf_eft.cli.options import by_phase
from hf_eft.evaluation.resume import _digest, _recipe
from hf_eft.folders.card import recipe_card
from hf_eft.folders.card_text import blocks_of_members, formula, risks
from hf_eft.hub.custom_generate import write_recipe
from hf_eft.playground.dials import dials_of
from hf_eft.programs.conversation import ChatSession
from hf_eft.recipe.shorthands import recipe
from hf_eft.serving import EFTServer, vllm
from hf_eft.training.learner import name_of_learner
from hf_eft.training.teacher import EFTTeacher

PROMPT = "Question: What does Oscar Palmer enjoy?\nAnswer:"
RULE = KLConstrained(bound=0.25)
NAMES = ("base", "tuned", "reference")


def said(model: EFTForCausalLM, tokenizer: Any, **options: Any) -> str:
    inputs = tokenizer(PROMPT, return_tensors="pt", return_token_type_ids=False)
    out = model.generate(**inputs, max_new_tokens=16, do_sample=False, **options)
    return str(tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))


def test_a_rule_in_one_word() -> None:
    assert by_phase(["kl"], "--alpha") == KLConstrained() and by_phase(["0.5"], "--alpha") == 0.5
    assert by_phase(["kl:bound=0.25,most=3,tuned=a"], "--alpha") == KLConstrained(bound=0.25, most=3, tuned="a")
    assert by_phase(["think=confidence:threshold=0.5", "answer=1"], "--alpha") == {
        "think": Confidence(threshold=0.5),
        "answer": 1,
    }
    for wrong, message in (
        ("kl:edge=1", "has no option 'edge'"), ("kl:bound", "written as in kl:most=2"), ("kl:most=1,most=2", "each once"),
        ("kl:bound=x", "must be a number from 0 up, got 'x'"), ("gate", "A gate is its weights"), ("sharp:most=1", "expected a number"),
    ):  # fmt: skip
        with pytest.raises(typer.BadParameter, match=message):
            by_phase([wrong], "--alpha")


def test_the_command_line(tmp_path: Path) -> None:
    expected, tokenizer = said(*family(alpha=RULE)), tiny.load()[-1]
    options = ["--alpha", "kl:bound=0.25", "--max-new-tokens", "16", "--do-sample", "false"]
    assert json.loads(invoke("generate", "--json", PROMPT, *EMBEDDED, *options).stdout)["text"] == expected
    assert invoke("compose", str(tmp_path / "made"), *EMBEDDED, "--alpha", "kl:bound=0.25").exit_code == 0
    kept = EFTForCausalLM.from_pretrained(tmp_path / "made")
    assert kept.combination == Combination.emulate(alpha=RULE) and said(kept, tokenizer) == expected
    refused = invoke("generate", WHO, *EMBEDDED, "--weight", "tuned=kl:tuned=brief")
    assert "names 'brief', but the members are" in " ".join(refused.stderr.replace("│", " ").split())


def test_recipes_of_whatever_members() -> None:
    rule = Entropy(tuned="a")
    assert recipe(["base", "a", "reference"], weights={"a": rule}) == Combination.steer({"a": rule})
    assert (
        str(recipe(["a", "reference"], weights={"a": Divergence("a")}))
        == "js(a, reference) a + (1 - js(a, reference)) reference"
    )


def test_a_chat_puts_a_number_in_the_place_of_a_rule() -> None:
    model, tokenizer = family(alpha=RULE)
    chat = ChatSession(model, tokenizer, options={"max_new_tokens": 4})
    with pytest.raises(ValueError, match=r"is what the rule .* says of a token, no number"):
        chat.command("/weight tuned 0.5")
    chat.command("/alpha 0.5")
    assert model.combination == Combination.emulate(alpha=0.5)


@BOTH
def test_a_request_without_a_strength_has_the_rule(options: dict[str, Any]) -> None:
    model, tokenizer = family(alpha=RULE)
    expected, plain = said(model, tokenizer), said(*family(alpha=0.0))
    assert expected != plain
    with EFTServer(model, tokenizer, port=0, **options) as server, connect(server) as client:
        asked: dict[str, Any] = {"model": "eft", "prompt": PROMPT, "max_tokens": 16, "temperature": 0}
        assert client.completions.create(**asked).choices[0].text == expected
        assert client.completions.create(**asked, extra_body={"alpha": 0.0}).choices[0].text == plain


def test_a_batch_run_has_rules_and_numbers_line_by_line(tmp_path: Path) -> None:
    lines, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    lines.write_text("\n".join(json.dumps({"prompt": PROMPT, **more}) for more in ({}, {"alpha": 0.0}, {})))
    how = ["--alpha", "kl:bound=0.25", "--max-new-tokens", "16", "--do-sample", "false"]
    done = invoke("generate", "--input", str(lines), "--output", str(out), *EMBEDDED, *how)
    assert done.exit_code == 0, done.output
    texts = [json.loads(line)["text"] for line in out.read_text().splitlines()]
    expected = said(*family(alpha=RULE))
    assert texts == [expected, said(*family(alpha=0.0)), expected]


def test_cards_show_rules_and_write_them_as_code() -> None:
    made = Combination.emulate(alpha=0.1 + 2 * RULE)
    assert formula(made) == (
        "log p = base + (0.1 + 2 kl(0.25, to 2)) tuned - (0.1 + 2 kl(0.25, to 2)) reference - log Z"
    )  # fmt: skip
    assert "`tuned`, `reference` enters with a negative weight" in risks(made)  # what it will say is not known
    places = {name: (f"owner/{name}", "a" * 40) for name in NAMES}
    for each in (made, Combination.emulate(alpha={"think": RULE, "answer": 0.5})):
        code = next(iter(blocks_of_members(places, each).values()))
        head, _, written = code.partition("combination=")
        end = next(n for n in range(len(written)) if written[:n].count("(") == written[:n].count(")") > 0)
        known = {"Combination": Combination, "KLConstrained": KLConstrained, "Phase": Phase}
        assert eval(written[:end], known) == each and "KLConstrained" in head
    gated = recipe_card(places, Combination.emulate(alpha=ruling.GATE), licences=dict.fromkeys(NAMES, "apache-2.0"))
    assert "EFTForCausalLM.from_pretrained(where, allow_references=True)" in gated and "Gate(" not in gated
    with pytest.raises(ValueError, match=r"The rules \['doubt\(base\)'\] are a user's, which cannot be written into a card"):
        recipe_card(places, Combination.emulate(alpha=ruling.RULES["written"][0]), licences=dict.fromkeys(NAMES, "mit"))


@torch.no_grad()
def test_analysis_tells_the_coefficient_of_every_token() -> None:
    model, tokenizer = family(alpha=RULE)
    inputs = tokenizer(PROMPT, return_tensors="pt", return_token_type_ids=False)
    out = model.generate(**inputs, max_new_tokens=8, do_sample=False, output_logits=True, return_dict_in_generate=True)
    new = out.sequences[0, inputs["input_ids"].shape[1] :]
    found = analyse(model, tokenizer, inputs["input_ids"][0], new)
    given = analyse(model, tokenizer, inputs["input_ids"][0], new, coefficients=torch.tensor([[1.0, math.nan, math.nan]]))
    assert found.recipe == given.recipe == str(model.combination) and found.to_dicts() == given.to_dicts()
    for i, (record, logits) in enumerate(zip(found.records, out.logits, strict=True)):
        assert record.log_prob == pytest.approx(float(logits[0].log_softmax(-1)[new[i]]), abs=1e-3)
        whole = out.sequences[:, : inputs["input_ids"].shape[1] + i]
        alone = {name: member(whole).logits[:, -1:].log_softmax(-1) for name, member in model.members.items()}
        alpha = float(RULE(alone))
        assert [*record.coefficients.values()] == pytest.approx([1, alpha, -alpha], abs=1e-3)
        assert record.to_dict()["coefficient_tuned"] == record.coefficients["tuned"]
    assert "coefficient_tuned" in page([found]) and "coefficient_tuned" not in page(
        [analyse(family()[0], tokenizer, new[:4], new[:2])]
    )
    with pytest.raises(ValueError, match="nan for the member 'base'"):
        analyse(model, tokenizer, PROMPT, new, coefficients=torch.tensor([[math.nan, 1.0, -1.0]]))


def test_what_was_measured_is_known_by_its_rule() -> None:
    def other(log_probs: Any) -> torch.Tensor:
        return log_probs["base"].amax(-1)

    def closed(number: float) -> Rule:
        return Rule.of(lambda log_probs: log_probs["base"].amax(-1) * number, reads=["base"])

    rules = [
        RULE,
        KLConstrained(),
        Entropy(),
        ruling.GATE,
        ruling.trained(seed=9),
        Rule.of(other, ["base"]),
        closed(1.0),
        closed(2.0),
    ]
    keys = {_digest(_recipe(Combination.emulate(alpha=rule))) for rule in rules}
    assert len(keys) == len(rules)
    assert _digest(_recipe(Combination.emulate(alpha=closed(1.0)))) in keys


def test_who_knows_no_rules_says_so(tmp_path: Path) -> None:
    made = Combination.emulate(alpha=RULE)
    with pytest.raises(ValueError, match=r"The sliders turn numbers, and base .* has a rule for tuned, reference"):
        dials_of(NAMES, made)
    with pytest.raises(ValueError, match=r"has a rule for 'tuned', 'reference', and what it says of a token would change"):
        name_of_learner(thinking.member("qwen3", 1), made, None)
    with pytest.raises(ValueError, match="schedules, rules and phases out"):
        EFTTeacher.of(three(combination=made))
    with pytest.raises(ValueError, match="coefficient of the member 'tuned' must be a finite number, got KLConstrained"):
        write_recipe(
            tmp_path / "shim", "owner/tuned", "owner/reference", alpha=RULE, revisions=dict.fromkeys(NAMES[1:], "a" * 40)
        )
    for each in (made, Combination.emulate(alpha=Gate.start())):
        model = three(combination=each)
        model.save_pretrained(tmp_path / "saved")
        with pytest.raises(ValueError, match="vLLM's plugin knows no rules, and the recipe has some for 'tuned', 'reference'"):
            vllm.Served(tmp_path / "saved", model.config)
    several = {"a": build("qwen3", 1), "b": build("qwen3", 3)}
    steered = EFTForCausalLM.from_models(
        build("llama", 0),
        tuned=several,
        reference=build("qwen3", 2),
        combination=Combination.steer({"a": Entropy(tuned="a"), "b": 1}),
    )
    with pytest.raises(
        ValueError, match=r"The rewards of \['a', 'b'\] are weighted as in the recipe, whose rules are asked of all"
    ):
        rewards(steered, tiny.load()[-1], torch.tensor([5, 6]), [torch.tensor([7])])
