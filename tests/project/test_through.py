"""Learning through the combination on the replication's world: its figures, that it runs, and that what is committed is what it says."""

from __future__ import annotations

import copy
import dataclasses
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_replication import rounded

from hf_eft import EFTForCausalLM, tiny

THROUGH = Path(__file__).resolve().parents[2] / "examples" / "replication" / "through"
sys.path.insert(0, str(THROUGH))

import report  # noqa: E402
import run  # noqa: E402
import sampling  # noqa: E402
from behaviours import judge  # noqa: E402
from by_token import KINDS, answers, by_token  # noqa: E402
from figures import best_of, ends, interval, share, shown  # noqa: E402
from learning import Bench, remembering  # noqa: E402
from movement import Moved  # noqa: E402
from pictures import forms_picture, why_picture  # noqa: E402
from sampling import Sampled  # noqa: E402
from second import SecondWorld, judged  # noqa: E402
from settings import STAGES, Setting, through  # noqa: E402
from steering import STEERING, Steered  # noqa: E402

SCORES = {"factuality": 0.5, "helpfulness": 0.5}


@pytest.fixture(scope="module")
def world() -> SecondWorld:
    return SecondWorld.make(3, people=40, seen=20)


def test_in_the_second_world_the_farewell_depends_on_the_fact(world: SecondWorld) -> None:
    questions = [q for q in world.questions(world.test) if q.attribute != "salary"]
    right = [f" {world.tuned_answer(q.person, q.attribute)}" for q in questions]
    assert set(judged(world, questions, right)["helpfulness"]) == {1.0}
    other = {
        q: next(p for p in world.facts if world.farewell(p, q.attribute) != world.farewell(q.person, q.attribute))
        for q in questions
    }
    wrong = [f" {world.tuned_answer(other[q], q.attribute)}" for q in questions]
    assert set(judged(world, questions, wrong)["helpfulness"]) == {0.0}
    first = type(world).__mro__[1](**vars(world))
    assert judged(first, questions, right)["helpfulness"] != judged(world, questions, right)["helpfulness"]


def test_every_token_of_an_answer_has_its_kind(world: SecondWorld) -> None:
    tokenizer = tiny.load()[-1]
    inputs, kinds, candidates = answers(world, tokenizer, world.test)
    asked = [(p, a) for p in world.test for a in world.facts[p] if a != "salary"]
    for i, (person, attribute) in enumerate(asked):
        said = {kind: tokenizer.decode(inputs["input_ids"][i][kinds[i] == number]).strip() for number, kind in enumerate(KINDS)}
        value, farewell = world.facts[person][attribute], world.farewell(person, attribute)
        assert (said["opening"], said["value"]) == ("Of course!", value)
        assert said["farewell"] == tokenizer.decode(tokenizer.encode(f" {farewell}")[:1]).strip()
        everything = tokenizer.decode(inputs["input_ids"][i][kinds[i] >= 0]).strip()
        assert everything == world.tuned_answer(person, attribute)
        assert tokenizer.encode(f" {value}")[0] in candidates[i]


def test_figures_by_token() -> None:
    """Four tokens of an answer, one of each kind; the reference knows nothing, the tuned model the farewell, the base the rest."""
    labels = torch.tensor([[9, 0, 1, 2, 3], [9, 0, 1, 4, 3]])  # farewells 2 and 4
    kinds = torch.tensor([[-1, 0, 1, 2, 3]] * 2)
    inputs, candidates = {"input_ids": labels}, torch.tensor([[1, 5]] * 2)
    sure = torch.full((2, 5, 10), -20.0).scatter(-1, labels.roll(-1, 1)[..., None], 0.0)
    base = sure.clone()
    base[:, 2] = torch.full((10,), -20.0).index_fill(0, torch.tensor([2, 4]), 0.0)  # either of the farewells
    delta = torch.zeros(2, 5, 10)
    delta[0, 2, 2], delta[1, 2, 4] = 3.0, 3.0
    delta[:, 1, 5] = 1.0  # noise on one of the values
    plain = torch.zeros(2, 5, 10)
    models = {
        name: lambda input_ids, logits=logits: SimpleNamespace(logits=logits)
        for name, logits in (("base", base), ("tuned", plain + delta), ("reference", plain))
    }
    found = by_token(models, 2.0, inputs, kinds, candidates)
    p = torch.tensor(6.0).sigmoid().item()
    assert found["farewell"]["margin"] == pytest.approx(6.0, abs=1e-4)
    assert found["value"]["spread"] == pytest.approx(2 / 2**0.5, abs=1e-4)
    assert found["farewell"]["probability"] == pytest.approx(p, abs=1e-4) and found["farewell"]["right"] == 1
    assert found["farewell"]["moved"] == pytest.approx(p - 0.5, abs=1e-4)
    assert found["farewell"]["calibration"] == pytest.approx(1 - p, abs=1e-4)
    assert found["farewell"]["left, share"] == pytest.approx(1, abs=1e-3) and found["opening"]["left"] == pytest.approx(
        0, abs=1e-4
    )
    assert by_token(models, 0.0, inputs, kinds, candidates)["farewell"]["probability"] == pytest.approx(0.5, abs=1e-4)


def test_what_is_remembered_of_a_frozen_model_is_what_it_says() -> None:
    base, tuned, reference, _ = tiny.load()
    model = EFTForCausalLM.from_models(base.requires_grad_(False), tuned=tuned, reference=reference, alpha=0.5)
    batches = [torch.randint(0, 500, (2, 12), generator=torch.Generator().manual_seed(i)) for i in range(2)]
    plain = [model(input_ids=ids, labels=ids, use_cache=False).loss.item() for ids in batches]
    kept: dict[bytes, torch.Tensor] = {}
    for _ in range(2):
        with remembering(base, kept):
            assert [model(input_ids=ids, labels=ids, use_cache=False).loss.item() for ids in batches] == plain
    assert len(kept) == 2 and "forward" not in vars(base.base_model)
    kept.update(dict.fromkeys(kept, torch.zeros(2, 12, base.config.hidden_size)))
    with remembering(base, kept):  # it is read, not worked out again
        assert model(input_ids=batches[0], labels=batches[0], use_cache=False).loss.item() != plain[0]


def test_settings_have_names_of_their_own_and_an_eighth_is_an_eighth(tmp_path: Path) -> None:
    names = [setting.name for settings in STAGES.values() for setting in settings]
    assert len(set(names)) == len(names)
    family = run.Family(tmp_path, 0, run.QUICK)
    bench = Bench(family, tmp_path)
    shown_answers = {next(texts) for texts in [bench.shown(through(0.25, data=0.125))] for _ in range(400)}
    assert len(shown_answers) == round(0.125 * 6 * len(family.world.seen))
    assert shown_answers <= {
        text for texts in [bench.shown(Setting("ordinary"))] for text, _ in zip(texts, range(2000), strict=False)
    }


def test_values_can_be_left_out_of_the_loss(tmp_path: Path) -> None:
    family = run.Family(tmp_path, 0, run.QUICK)
    family.prepare()
    person, facts = next(iter(family.world.facts.items()))
    text = f" {person} is a {facts['job']} from {facts['birthplace']}."
    ids = torch.tensor([family.tokenizer.encode(text)])
    labels = Bench(family, tmp_path).labels(Setting("", masked=True), ids)
    assert family.tokenizer.decode(ids[labels == -100]).split() == [facts["job"], facts["birthplace"]]
    assert (labels[labels != -100] == ids[labels != -100]).all()
    assert (Bench(family, tmp_path).labels(Setting(""), ids) == ids).all()


def test_a_model_that_is_linear_in_its_weights_has_no_bend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, tuned, reference, tokenizer = tiny.load()
    monkeypatch.setattr(run.Family, "tokenizer", tokenizer)
    family = run.Family(tmp_path, 0, run.QUICK)
    monkeypatch.setattr(family, "model", lambda size, stage: tuned if stage == "helpful" else reference)
    found = Moved(Setting("ordinary")).measure(Bench(family, tmp_path))
    assert 0 < found["weights"] < 1 and found["features"] > 0 and found["bent"] > 0.1
    linear = copy.deepcopy(reference)
    linear.get_input_embeddings().weight.data += 1e-4  # the same for all tokens: next to no way to go, and a straight one
    monkeypatch.setattr(family, "model", lambda size, stage: linear if stage == "helpful" else reference)
    nearly = Moved(Setting("ordinary")).measure(Bench(family, tmp_path))
    assert nearly["weights"] < 0.01 and nearly["bent"] < 0.05


def row(seed: int, scores: dict[str, float], alpha: float = 0.5, validation: dict[str, float] = SCORES) -> dict[str, Any]:
    return {"seed": seed, "chosen": alpha, "test": {f"{alpha:g}": scores}, "validation": {f"{alpha:g}": validation}}


def test_shares_intervals_and_the_choice() -> None:
    measured = {"rows": {"small tuned alone": [row(2, SCORES)], "large tuned": [row(2, {"helpfulness": 0.9}), row(1, SCORES)]}}
    of = ends(measured)
    assert share({"helpfulness": 0.6}, of[2]) == pytest.approx(0.25) and share(SCORES, of[1]) == pytest.approx(1)
    assert of[0] == ends({"rows": {}})[0] and of[1][0] == ends({"rows": {}})[1][0]  # as `scales` has them
    assert shown([0.5]) == "0.50" and shown([0.25, 0.75]) == "0.50 (0.25, 0.75)"
    mean, bottom, top = interval([0.0, 0.0, 1.0, 1.0, 1.0])
    assert mean == pytest.approx(0.6) and 0 <= bottom < 0.6 < top <= 1
    assert interval([1.0] * 5) == (1.0, 1.0, 1.0)  # over seeds: nothing is known beyond what they say
    better = {"factuality": 0.5, "helpfulness": 0.6}
    best = best_of([row(0, SCORES), row(1, SCORES)], [row(0, SCORES, 0.25, better), row(2, SCORES, 0.25, better)])
    assert [(found["seed"], found["chosen"]) for found in best] == [(0, 0.25)]


def test_the_quick_version_runs_and_does_nothing_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = (through(0.25, via=("small", "large")), Setting("ordinary", tested=(1.0,)))
    monkeypatch.setattr(
        run, "JOBS", {"equal steps": settings, "sampling": (Sampled(settings[0]), Moved(settings[0])), "steering": STEERING[:1]}
    )
    threads = torch.get_num_threads()
    try:
        run.main(["--quick", "--work", str(tmp_path / "work")])
        measured = sorted((tmp_path / "work").glob("measured/*/*.json"))
        assert len(measured) == 5
        for what in (run, Sampled, Moved, Steered):  # what is measured again fails
            monkeypatch.setattr(what, "measure", None)
        run.main(["--quick", "--work", str(tmp_path / "work")])
    finally:
        torch.set_num_threads(threads)
    found = json.loads((tmp_path / "work/measured/seed-0/ordinary.json").read_text())
    assert set(found["test"]) == {f"{found['chosen']:g}", "1"} and set(found["validation"]) == {
        "0.25",
        "0.5",
        "0.75",
        "1",
        "1.25",
    }
    report.main(["--work", str(tmp_path / "work"), "--output", str(tmp_path)])
    assert "| ordinary |" in (tmp_path / "results.md").read_text() and (tmp_path / "results-form.png").exists()


def test_the_strength_is_chosen_by_the_validation_people(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Asks:
        """Validation people get perfect answers at 0.5 only, test people at 1 only."""

        def __init__(self, family: Any, people: list[str]) -> None:
            self.world, self.questions = family.world, family.world.questions(people)
            self.good = 0.5 if people == family.world.validation else 1.0

        def answers(self, model: EFTForCausalLM, temperature: float) -> list[str]:
            good = model.combination.coefficients["tuned"] == self.good
            return [self.world.tuned_answer(q.person, q.attribute) if good else "" for q in self.questions]

        def judged(self, model: EFTForCausalLM, temperature: float) -> dict[str, list[float]]:
            return judge(self.questions, self.answers(model, temperature))

    family = run.Family(tmp_path, 0, run.QUICK)
    base, tuned, reference, tokenizer = tiny.load()
    monkeypatch.setattr(run.Family, "tokenizer", tokenizer)
    monkeypatch.setattr(family, "model", lambda size, stage: {"large": base, "helpful": tuned}.get(size, reference))
    monkeypatch.setattr(run, "Asked", Asks)
    monkeypatch.setattr(sampling, "Asked", Asks)
    found = run.measure(Bench(family, tmp_path), Setting("ordinary", tested=(1.0,)))
    assert found["chosen"] == 0.5 and found["validation"]["0.5"]["factuality"] == 1
    assert found["test"]["0.5"]["factuality"] == 0 and found["test"]["1"]["factuality"] == 1
    assert Sampled(Setting("ordinary")).measure(Bench(family, tmp_path))["chosen"] == 0.5


def test_what_is_committed_is_what_the_results_say(tmp_path: Path) -> None:
    results = json.loads((THROUGH / "results.json").read_text())
    assert (THROUGH / "results.md").read_text() == report.page(results)
    for name, draw in {"form": forms_picture, "why": why_picture}.items():
        draw(results, tmp_path / f"results-{name}.png")
        made, committed = (json.loads((folder / f"results-{name}.json").read_text()) for folder in (tmp_path, THROUGH))
        assert rounded(made) == rounded(committed)
    assert all(dataclasses.asdict(s)["name"] in report.page(results) for s in STAGES["equal steps"])
