"""A plan is of what is there: bytes of weights and states are those of the models, and what is said of time follows from them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import invoke
from families import FAMILIES, prompts, shared
from transformers import AutoConfig, DynamicCache, LlamaConfig, LlamaForCausalLM

from hf_eft import EFTForCausalLM, tiny
from hf_eft.decoding.speculative.schedule import expected_tokens
from hf_eft.members.releases import CACHE, cache_of
from hf_eft.planning import KNOWN, Machine, configurations, machine_of, plan, plan_of
from hf_eft.planning.shapes import Shape, _Live, _tensors_of

FAST = Machine("fast", 10**9, 10**12, 10**15)
TINY = {name: str(tiny.path(name)) for name in ("base", "tuned", "reference")}


def llama(layers: int = 2, width: int = 64, keys: int = 2) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=128, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=keys, dtype="float32",
    )  # fmt: skip


def three(**kwargs: Any) -> dict[str, LlamaConfig]:
    return {"base": llama(6, 128), "tuned": llama(**kwargs), "reference": llama(**kwargs)}


@pytest.mark.parametrize("family", FAMILIES)
def test_bytes_of_weights_and_states_are_those_of_the_model(family: str) -> None:
    model = shared(family, 1)
    shape = Shape.of("tuned", model.config)
    assert shape.architecture == type(model).__name__ and shape.parameters == model.num_parameters()
    assert shape.weights == sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    ids = prompts("even")["input_ids"]
    with torch.no_grad():
        cache = cache_of(model(ids, use_cache=True)) if hasattr(model(ids, use_cache=True), CACHE) else None
    if cache is None:
        return  # it calls its states otherwise; its weights were compared
    held = sum(t.numel() * t.element_size() for layer in cache.layers for t in _tensors_of(layer))
    assert shape.cache(*ids.shape) == held


@pytest.mark.parametrize("rows, length", [(1, 40), (4, 200)])
def test_what_reading_holds_at_its_peak(rows: int, length: int) -> None:
    """The same count, of a model with values, whose attention is a kernel."""
    model = shared("llama", 1)
    cache = DynamicCache(config=model.config)
    with torch.no_grad(), _Live() as live:
        out = model(torch.zeros(rows, length, dtype=torch.long), use_cache=True, logits_to_keep=1, **{CACHE: cache})
        del out
    states = [tensor for layer in cache.layers for tensor in _tensors_of(layer)]
    assert Shape.of("tuned", model.config).working(rows, length) == pytest.approx(live.peak - live.bytes_of(states), rel=0.1)


def test_what_is_freed_is_there_no_more_and_views_take_nothing() -> None:
    with _Live() as live:
        first = torch.empty(100, device="meta")
        view = first[:50]
        del first
        assert live.now == 400
        del view
        second = torch.empty(60, device="meta")
        assert (live.now, live.peak, live.bytes_of([second, second[1:]])) == (240, 400, 240)


def test_a_table_that_is_looked_up_is_not_read() -> None:
    apart, tied = (LlamaConfig(**{**llama().to_dict(), "tie_word_embeddings": tie}) for tie in (False, True))
    shape = Shape.of("base", apart)
    layers = 3 * len(shape.model.model.layers)  # their products of this size
    assert shape.matrices[128 * 64] == layers + 1  # the head, not the table
    assert Shape.of("base", tied).matrices[128 * 64] == layers + 1  # it is the head as well


def test_half_precision_and_quantised_weights() -> None:
    whole, half = (Shape.of("base", llama(), dtype) for dtype in (torch.float32, torch.bfloat16))
    assert whole.weights == 2 * half.weights and whole.cache(2, 9) == 2 * half.cache(2, 9)
    assert Shape.of("base", llama(), bits=4.5).weights == int(whole.parameters * 4.5 / 8)


def test_sums_and_the_states_of_small_members() -> None:
    found = plan(three(keys=4), machine=FAST, rows=3, prompt=20, new_tokens=11)
    assert found.weights == sum(Shape.of(name, config).weights for name, config in three(keys=4).items())
    assert found.caches == sum(Shape.of(name, config).cache(3, 30) for name, config in three(keys=4).items())
    assert found.peak == found.weights + found.caches + found.working and found.working > 0
    assert found.fits and found.nearest() == []
    assert found.alone < found.step


def test_an_adapter_has_no_weights_and_reads_in_the_same_pass() -> None:
    full = plan(three(), machine=FAST)
    configs = {name: config for name, config in three().items() if name != "tuned"}
    found = plan(configs, machine=FAST, adapters={"tuned": "reference"})
    assert found.weights == full.weights - full.members["tuned"].weights
    assert found.caches == full.caches and full.members["tuned"].step > found.members["tuned"].step > 0
    with pytest.raises(ValueError, match="'tuned' is an adapter on 'small', which is none of the models base, reference"):
        plan(configs, machine=FAST, adapters={"tuned": "small"})


@pytest.mark.parametrize("agreement", [0.2, 0.8, 0.95])
def test_the_best_block(agreement: float) -> None:
    """Told by trying: the time of a round over its tokens."""
    found = plan(three(), machine=replace(FAST, overhead=1e-4), prompt=8, new_tokens=8)
    base, tuned, reference = found.members.values()

    def seconds(block: int) -> float:
        if not block:
            return found.step
        drafts = (block + agreement**block) * tuned.step
        looks = base.block[block + 1] + reference.block[block + 1] + 2 * found.combining
        return (drafts + looks) / expected_tokens(agreement, block)

    best = min(range(17), key=seconds)
    assert found.drafting(agreement) == (best, pytest.approx(seconds(best)))
    assert (best > 2) == (agreement > 0.5)


def test_what_does_not_fit_and_what_would() -> None:
    small = Machine("small", 10_000_000, 10**9, 10**12)
    found = plan(three(), machine=small, rows=8, prompt=100, new_tokens=100)
    assert not found.fits
    rows, shorter, devices = (nearest for nearest in found.nearest() if "bits" not in nearest)
    fewer = plan(three(), machine=small, rows=int(rows.split()[0]), prompt=100, new_tokens=100)
    assert fewer.fits and fewer.rows >= 1
    count = int(devices.split()[0])
    assert plan(three(), machine=small, count=count, rows=8, prompt=100, new_tokens=100).fits
    assert not plan(three(), machine=small, count=count - 1, rows=8, prompt=100, new_tokens=100).fits
    assert shorter.startswith("8 rows of ")
    heavy = Machine("heavy", 4_000_000, 10**9, 10**12)
    assert "the base in 8 bits" in plan(three(), machine=heavy, prompt=8, new_tokens=8).nearest()


def test_members_go_where_there_is_room() -> None:
    tight = Machine("tight", 2_600_000, 10**9, 10**12)
    found = plan(three(), machine=tight, count=3, prompt=8, new_tokens=8)
    assert found.fits and found.members["tuned"].devices == found.members["reference"].devices == (0,)
    assert found.members["base"].devices == (0, 1)
    assert plan(three(), machine=FAST).members["base"].devices == (0,)
    shared = plan(three(), machine=replace(tight, memory=4_200_000), count=2, prompt=8, new_tokens=8)
    assert shared.members["base"].devices == (0, 1)  # it would fit on one, but for the small ones


def test_few_rows_take_what_was_measured() -> None:
    measured = replace(FAST, products=((1000, ((1, 1e-9), (4, 3e-9), (64, 4e-9))), (100_000, ((1, 2e-10), (64, 1e-9)))))
    assert measured.product(1000, 0, 1) == pytest.approx(1e-6)
    assert measured.product(1000, 0, 2) == pytest.approx(1000 * (1e-9 + 2e-9 / 3))
    assert measured.product(1000, 0, 64) == pytest.approx(4e-6) and measured.product(1000, 0, 128) == pytest.approx(8e-6)
    assert measured.product(10_000, 0, 1) == pytest.approx(10_000 * 6e-10)  # between two sizes, by their logarithms
    assert measured.product(10**7, 0, 1) == pytest.approx(10**7 * 2e-10) and measured.product(10, 0, 1) == pytest.approx(1e-8)
    assert FAST.product(1000, 4000, 1) == pytest.approx(4000 / 10**12)  # its weights are read
    assert FAST.product(1000, 4000, 10**6) == pytest.approx(2 * 1000 * 10**6 / 10**15)


def test_this_machine_and_known_ones() -> None:
    here = machine_of("here", torch.float32)
    assert here.memory > 2**30 and 10**9 < here.bandwidth < 10**13 and here.rate > 10**9 and 0 < here.overhead < 1
    times = [seconds for _, seconds in here.products[-1][1]]
    assert len(times) > 4 and times[-1] > times[0]
    assert machine_of("h200", torch.float32) is KNOWN["h200"]
    with pytest.raises(ValueError, match=r"Expected 'here' or one of .*h100.*, got 'tpu'"):
        machine_of("tpu", torch.float32)


def test_what_is_no_plan_is_refused() -> None:
    for name in ("rows", "prompt", "new_tokens", "count"):
        with pytest.raises(ValueError, match=f"`{name}` must be 1 or more, got 0"):
            plan(three(), machine=FAST, **{name: 0})
    with pytest.raises(ValueError, match="no member 'nobody' to be quantised among base, tuned, reference"):
        plan(three(), machine=FAST, bits={"nobody": 4})
    with pytest.raises(ValueError, match="'base' cannot be planned: no model can be made of its configuration"):
        plan({"base": AutoConfig.for_model("vit")}, machine=FAST)


# Places -----------------------------------------------------------------------------------------------------------------


def test_a_saved_combination_and_its_members_are_planned_alike(tmp_path: Path) -> None:
    base, tuned, reference, _ = tiny.load()
    EFTForCausalLM.from_models(base, tuned=tuned, reference=reference).save_pretrained(tmp_path / "saved")
    by_folder, by_member = (EFTForCausalLM.plan(each, "l4", rows=4) for each in (str(tmp_path / "saved"), TINY))
    configs = {name: AutoConfig.from_pretrained(place) for name, place in TINY.items()}
    assert by_folder.peak == by_member.peak == plan_of(configs, KNOWN["l4"], rows=4).peak
    assert list(by_folder.members) == ["base", "tuned", "reference"]


def test_a_folder_of_an_adapter_is_the_reference_with_it(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    configs, adapters = configurations({**TINY, "tuned": str(tmp_path)})
    assert list(configs) == ["base", "reference"] and adapters == {"tuned": "reference"}
    with pytest.raises(ValueError, match=r"'tuned' are adapters. Give the model under them as the reference"):
        configurations({"base": TINY["base"], "tuned": str(tmp_path)})


def test_places_that_hold_no_model_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'tuned' has no config.json"):
        configurations({**TINY, "tuned": str(tmp_path)})
    with pytest.raises(ValueError, match=r"is a model .llama., no combination"):
        configurations(TINY["base"])
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "eft"}))
    with pytest.raises(ValueError, match="'base' is a combination itself"):
        configurations({**TINY, "base": str(tmp_path)})
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "nobody"}))
    with pytest.raises(ValueError, match="The configuration of the member 'base' cannot be read"):
        configurations({**TINY, "base": str(tmp_path)})


# The command ------------------------------------------------------------------------------------------------------------


def test_the_command_says_what_fits() -> None:
    shown = invoke("plan", "--machine", "h100", "--rows", "64", "--agreement", "0.9")
    assert shown.exit_code == 0 and "large model alone" in shown.output and "drafts of" in shown.output, shown.output
    told = json.loads(invoke("plan", "--machine", "h100", "--rows", "64", "--json").stdout)
    assert (
        told["fits"] and set(told["members"]) == {"base", "tuned", "reference"} and told["machine"] == "1 x h100 (data sheet)"
    )


def test_the_command_exits_with_1_where_it_does_not_fit() -> None:
    shown = invoke("plan", "--machine", "l4", "--rows", "1000000", "--json")
    assert shown.exit_code == 1 and not (told := json.loads(shown.stdout))["fits"] and told["what would fit"]


@pytest.mark.parametrize(
    "options, message",
    [
        (["--machine", "abacus"], "Which machine?"),
        (["--dtype", "int3"], "expected one of float32"),
        (["--bits", "nobody=4"], "no member 'nobody'"),
        (["--base", "x", "--model", "y"], "not both"),
    ],
)
def test_the_command_refuses(options: list[str], message: str) -> None:
    shown = invoke("plan", *(["--machine", "h100"] if "--machine" not in options else []), *options)
    assert shown.exit_code != 0 and message in " ".join(shown.output.split())


# A base on disk ---------------------------------------------------------------------------------------------------------

_RUN = """
import json, resource, sys
from pathlib import Path
import torch
from accelerate import disk_offload
from transformers import AutoModelForCausalLM
from hf_eft import EFTForCausalLM
torch.set_num_threads(1)
folder, place = Path(sys.argv[1]), sys.argv[2]
def resident(): return int(Path('/proc/self/statm').read_text().split()[1]) * resource.getpagesize()
small = [AutoModelForCausalLM.from_pretrained(folder / name) for name in ('tuned', 'reference')]
before = resident() - sum(p.numel() * p.element_size() for model in small for p in model.parameters())
if place == 'disk':
    base = AutoModelForCausalLM.from_pretrained(folder / 'base', device_map={'': 'disk'}, offload_folder=folder / 'away')
else:
    base = AutoModelForCausalLM.from_pretrained(folder / 'base')
model = EFTForCausalLM.from_models(base, tuned=small[0], reference=small[1])
ids = torch.arange(5, 69)[None]
Path('/proc/self/clear_refs').write_text('5')
tokens = model.generate(ids, max_new_tokens=5, pad_token_id=0).tolist()
drafted = model.generate(ids, max_new_tokens=5, pad_token_id=0, assistant_model=model.tuned, num_assistant_tokens=3).tolist()
peak = next(int(line.split()[1]) * 1024 for line in Path('/proc/self/status').read_text().splitlines() if line.startswith('VmHWM'))
print(json.dumps({'tokens': tokens, 'drafted': drafted, 'peak': peak - before}))
"""


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="the peak of a process is asked of Linux")
def test_a_base_on_disk_takes_less_than_planned(tmp_path: Path) -> None:
    """The same tokens as in memory, drafts included, at a fraction of its weights."""
    configs = {
        "base": LlamaConfig(**{**llama(10, 512).to_dict(), "vocab_size": 4000, "eos_token_id": None}),
        **{
            name: LlamaConfig(**{**llama(2, 64).to_dict(), "vocab_size": 4000, "eos_token_id": None})
            for name in ("tuned", "reference")
        },
    }
    for seed, (name, config) in enumerate(configs.items()):
        torch.manual_seed(seed)
        LlamaForCausalLM(config).save_pretrained(tmp_path / name)
    found = {}
    path = {"PYTHONPATH": str(Path(__file__).parents[2]), "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    for place in ("disk", "memory"):
        done = subprocess.run(
            [sys.executable, "-c", _RUN, str(tmp_path), place], capture_output=True, text=True, timeout=300, check=False,
            env={**os.environ, **path},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        found[place] = json.loads(done.stdout.splitlines()[-1])
    assert found["disk"]["tokens"] == found["memory"]["tokens"] == found["disk"]["drafted"]
    options: dict[str, Any] = {"machine": FAST, "prompt": 64, "new_tokens": 5}
    planned = {"disk": plan(configs, on_disk=["base"], **options).peak, "memory": plan(configs, **options).peak}
    beside = found["memory"]["peak"] - planned["memory"]  # what a process takes besides, at this size no little part
    assert planned["disk"] < planned["memory"] / 3 and abs(beside) < 40_000_000
    assert found["disk"]["peak"] - beside < planned["disk"]
    with pytest.raises(ValueError, match="no member 'nobody' to be on disk"):
        plan(configs, on_disk=["nobody"], **options)
