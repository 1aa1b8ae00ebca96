"""`pipeline("text-generation")`: what `generate` gives, and not a line in the log."""

from __future__ import annotations

import copy
import logging
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GenerationConfig, TextIteratorStreamer, pipeline
from transformers.utils import logging as transformers_logging

from hf_eft import Combination, EFTForCausalLM, EFTLogitsProcessor, tiny
from hf_eft.prompts import member_inputs
from hf_eft.prompts.pipeline import MemberPromptPipeline

QUESTIONS = [tiny.questions()[i] for i in (0, 5, 2, 9, 7)]
TEXTS = [question.prompt for question in QUESTIONS]
CHATS = [[{"role": "user", "content": question.text}] for question in QUESTIONS]
NAMES = ("base", "tuned", "reference")
OTHER_TEMPLATE = (
    "{% for m in messages %}{{ 'Ask: ' + m['content'] }}{% endfor %}{% if add_generation_prompt %}{{ '\nReply:' }}{% endif %}"
)


@pytest.fixture(autouse=True)
def log() -> Iterator[list[str]]:
    """Whatever transformers logs from WARNING on (its loggers do not propagate, so that `caplog` never sees them); empty at the end."""
    lines: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    handler, logger = Keep(logging.WARNING), transformers_logging.get_logger("transformers")
    logger.addHandler(handler)
    transformers_logging.warning_once.cache_clear()
    yield lines
    logger.removeHandler(handler)
    assert not lines


@pytest.fixture(scope="module")
def folder(family: tiny.Family, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("saved")
    wrapper(family).save_pretrained(path)
    family.tokenizer.save_pretrained(path)
    return str(path)


def wrapper(family: tiny.Family, **options: Any) -> EFTForCausalLM:
    return EFTForCausalLM.from_models(family.base, tuned=family.tuned, reference=family.reference, **options)


@pytest.fixture(params=["wrapper", "folder", "add-on at init", "add-on at call"])
def run(request: pytest.FixtureRequest, family: tiny.Family, folder: str) -> Any:
    """A pipeline of each kind, called as a function."""
    tok, add_on = family.tokenizer, EFTLogitsProcessor(family.tuned, family.reference)
    if request.param == "wrapper":
        return pipeline("text-generation", model=wrapper(family), tokenizer=tok)
    if request.param == "folder":
        return pipeline("text-generation", model=folder)
    if request.param == "add-on at init":
        return pipeline(model=family.base, tokenizer=tok, task="text-generation", logits_processor=[add_on])
    pipe = pipeline("text-generation", model=family.base, tokenizer=tok)
    return lambda *args, **kwargs: pipe(*args, logits_processor=[add_on], **kwargs)


def expected(family: tiny.Family, text: str, **options: Any) -> list[str]:
    """What `generate` of the wrapper writes after a text, for each returned sequence."""
    inputs = family.tokenizer(text, return_tensors="pt", return_token_type_ids=False)
    ids = wrapper(family).generate(**inputs, **{"max_new_tokens": 12, **options})
    return family.tokenizer.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def test_strings(run: Any, family: tiny.Family) -> None:
    whole = [text + expected(family, text)[0] for text in TEXTS]
    assert run(TEXTS[0], max_new_tokens=12, do_sample=False) == [{"generated_text": whole[0]}]
    for batch_size in (1, 2, 5):
        got = run(TEXTS, max_new_tokens=12, do_sample=False, batch_size=batch_size)
        assert got == [[{"generated_text": text}] for text in whole]
    got = run(TEXTS, max_new_tokens=12, do_sample=False, batch_size=3, return_full_text=False)
    assert got == [[{"generated_text": text.removeprefix(prompt)}] for text, prompt in zip(whole, TEXTS, strict=True)]


def test_chats(run: Any, family: tiny.Family) -> None:
    replies = [expected(family, text)[0] for text in TEXTS]  # the template makes the same of a chat
    answered = [
        [{"generated_text": [*chat, {"role": "assistant", "content": reply}]}]
        for chat, reply in zip(CHATS, replies, strict=True)
    ]
    assert run(CHATS[0], max_new_tokens=12, do_sample=False) == answered[0]
    for batch_size in (1, 2, 5):
        assert run(CHATS, max_new_tokens=12, do_sample=False, batch_size=batch_size) == answered


def test_options_of_generate(run: Any, family: tiny.Family) -> None:
    beams = {"num_beams": 4, "num_return_sequences": 3, "do_sample": False}
    got = run(TEXTS[:2], return_full_text=False, max_new_tokens=9, **beams, batch_size=2)
    assert [[r["generated_text"] for r in row] for row in got] == [
        expected(family, text, max_new_tokens=9, **beams) for text in TEXTS[:2]
    ]
    config = GenerationConfig(max_new_tokens=5, num_beams=2, do_sample=False, eos_token_id=2, bos_token_id=1, pad_token_id=0)
    got = run(TEXTS[0], return_full_text=False, generation_config=config)
    assert [r["generated_text"] for r in got] == expected(family, TEXTS[0], max_new_tokens=5, num_beams=2)
    torch.manual_seed(3)
    got = run(TEXTS[0], return_full_text=False, num_return_sequences=3, max_new_tokens=8)  # the pipeline samples, at 0.7
    torch.manual_seed(3)
    sampled = {"do_sample": True, "temperature": 0.7, "num_return_sequences": 3, "max_new_tokens": 8}
    assert [r["generated_text"] for r in got] == expected(family, TEXTS[0], **sampled)
    assert len({r["generated_text"] for r in got}) > 1, "the seed gives no variety to compare"


def test_streaming(run: Any, family: tiny.Family) -> None:
    streamer = TextIteratorStreamer(family.tokenizer, skip_prompt=True, skip_special_tokens=True, timeout=60)
    run(CHATS[1], max_new_tokens=12, do_sample=False, streamer=streamer)
    assert "".join(streamer) == expected(family, TEXTS[1])[0]


def test_speculation_and_coefficients(family: tiny.Family) -> None:
    model = wrapper(family)
    pipe = pipeline("text-generation", model=model, tokenizer=family.tokenizer)
    got = pipe(TEXTS, max_new_tokens=12, do_sample=False, return_full_text=False, batch_size=5, assistant_model=model.tuned)
    assert [row[0]["generated_text"] for row in got] == [expected(family, text)[0] for text in TEXTS]
    assert model.speculation is not None and model.speculation.tokens_per_round > 1
    alone = torch.tensor([[1.0, 0.0, 0.0]])
    got = pipe(TEXTS[0], max_new_tokens=12, do_sample=False, return_full_text=False, coefficients=alone)
    only_base = pipeline("text-generation", model=family.base, tokenizer=family.tokenizer)
    assert got == only_base(TEXTS[0], max_new_tokens=12, do_sample=False, return_full_text=False)


def test_a_saved_folder_in_a_fresh_process(folder: str, family: tiny.Family) -> None:
    """`import hf_eft` is all that a folder needs: the classes are registered when its configuration is read."""
    script = (
        "import sys, hf_eft; from transformers import pipeline\n"
        "assert 'hf_eft.modeling_eft' not in sys.modules\n"
        f"pipe = pipeline('text-generation', model={folder!r})\n"
        f"print(pipe({TEXTS[1]!r}, max_new_tokens=12, do_sample=False, return_full_text=False)[0]['generated_text'])"
    )
    env = {
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "PATH": "",
        "PYTHONWARNINGS": "error",
    }
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=env, cwd=root)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == expected(family, TEXTS[1])[0].strip()
    noise = [line for line in done.stderr.splitlines() if line.strip() and "Loading weights" not in line]
    assert not noise


def test_the_log_is_watched(family: tiny.Family, log: list[str]) -> None:
    """A class that transformers does not know has an error line, which this fixture sees."""

    class Unknown(EFTForCausalLM):
        pass

    model = wrapper(family)
    model.__class__ = Unknown
    pipeline("text-generation", model=model, tokenizer=family.tokenizer)
    assert len(log) == 1 and "'Unknown' is not supported" in log.pop()


# A prompt for each member --------------------------------------------------------------------------------------------


def three(family: tiny.Family, **templates: str | None) -> dict[str, Any]:
    """The tokenizer of each member, with other templates where that is said."""
    tokenizers = {name: copy.deepcopy(family.tokenizer) for name in NAMES}
    for name, template in templates.items():
        tokenizers[name].chat_template = template
    return tokenizers


def with_prompts(family: tiny.Family, tokenizers: dict[str, Any], **options: Any) -> Any:
    model = wrapper(family, tokenizers=tokenizers, **options)
    return model, pipeline("text-generation", model=model, tokenizer=tokenizers["base"], pipeline_class=MemberPromptPipeline)


def by_hand(model: Any, chat: list[dict[str, str]], plain: Any = None, **options: Any) -> str:
    built = member_inputs([chat], model.tokenizers, **({"plain": plain} if plain else {}))
    inputs = built.pop("base")
    ids = model.generate(**inputs, member_inputs=built, max_new_tokens=12, **options)
    return model.tokenizers["base"].decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


@pytest.mark.parametrize(
    "templates", [{"base": None, "reference": None}, {"reference": OTHER_TEMPLATE}, {"tuned": OTHER_TEMPLATE}]
)
def test_each_member_reads_its_own_prompt(family: tiny.Family, templates: dict[str, str | None]) -> None:
    model, pipe = with_prompts(family, three(family, **templates))
    replies = [by_hand(model, chat) for chat in CHATS]
    common = [expected(family, text)[0] for text in TEXTS]
    assert replies != common, "the templates make no difference that could be tested"
    for batch_size in (1, 2, 5):
        got = pipe(CHATS, max_new_tokens=12, do_sample=False, batch_size=batch_size)
        assert [row[0]["generated_text"] for row in got] == [
            [*chat, {"role": "assistant", "content": reply}] for chat, reply in zip(CHATS, replies, strict=True)
        ]
    beams = pipe(CHATS[:2], max_new_tokens=12, num_beams=3, do_sample=False, batch_size=2, return_full_text=False)
    assert [row[0]["generated_text"] for row in beams] == [by_hand(model, chat, num_beams=3) for chat in CHATS[:2]]


def test_strings_are_the_same_prompt_for_all(family: tiny.Family) -> None:
    _, pipe = with_prompts(family, three(family))
    got = pipe(TEXTS, max_new_tokens=12, do_sample=False, batch_size=2, return_full_text=False)
    assert [row[0]["generated_text"] for row in got] == [expected(family, text)[0] for text in TEXTS]


def test_the_plain_form_may_be_chosen(family: tiny.Family) -> None:
    tokenizers = three(family, base=None, reference=None)
    model, pipe = with_prompts(family, tokenizers)

    def as_question(chat: Any) -> str:
        return tiny.PROMPT.format(chat[-1]["content"])

    got = pipe(CHATS, max_new_tokens=12, do_sample=False, plain=as_question, return_full_text=False)
    assert [row[0]["generated_text"] for row in got] == [by_hand(model, chat, as_question) for chat in CHATS]
    fixed = pipeline(
        "text-generation", model=model, tokenizer=tokenizers["base"], pipeline_class=MemberPromptPipeline, plain=as_question
    )
    assert fixed(CHATS, max_new_tokens=12, do_sample=False, return_full_text=False) == got
    assert pipe(CHATS, max_new_tokens=12, do_sample=False, return_full_text=False) != got


def test_an_answer_is_continued_by_all_members(family: tiny.Family) -> None:
    """The last message is the assistant's: no prompt may put anything behind it."""
    begun = [*CHATS[0], {"role": "assistant", "content": " Of course! Oscar"}]
    model, pipe = with_prompts(family, three(family, base=None, reference=None))
    reply = pipe(begun, max_new_tokens=8, do_sample=False)[0]["generated_text"]
    tok = family.tokenizer
    plain = tok(f"{CHATS[0][0]['content']}\n\n Of course! Oscar", return_tensors="pt", return_token_type_ids=False)
    own = tok.apply_chat_template(begun, continue_final_message=True, return_dict=True, return_tensors="pt")
    ids = model.generate(
        **plain, max_new_tokens=8,
        member_inputs={"tuned": {k: own[k] for k in ("input_ids", "attention_mask")}, "reference": dict(plain)},
    )  # fmt: skip
    more = tok.decode(ids[0, plain["input_ids"].shape[1] :], skip_special_tokens=True)
    assert reply == [CHATS[0][0], {"role": "assistant", "content": " Of course! Oscar" + more}]
    assert pipe(begun, max_new_tokens=8, do_sample=False, return_tensors=True)[0]["generated_token_ids"] == ids[0].tolist()
    with pytest.raises(ValueError, match="`plain` did not write it"):
        pipe(begun, plain=lambda chat: chat[0]["content"])


def test_a_member_without_a_tokenizer_reads_the_first_one_s_prompt(family: tiny.Family) -> None:
    tokenizers = three(family, tuned=OTHER_TEMPLATE)
    model, pipe = with_prompts(family, {name: tokenizers[name] for name in ("base", "tuned")})
    got = pipe(CHATS[2], max_new_tokens=12, do_sample=False, return_full_text=False)[0]["generated_text"]
    built = member_inputs([CHATS[2]], tokenizers)
    inputs = built.pop("base")
    ids = model.generate(**inputs, member_inputs={"tuned": built["tuned"]}, max_new_tokens=12)
    assert got == family.tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def test_the_first_members_own_tokenizer_writes_its_prompt(family: tiny.Family) -> None:
    model = wrapper(family, tokenizers=three(family, base=None))
    pipe = pipeline("text-generation", model=model, tokenizer=family.tokenizer, pipeline_class=MemberPromptPipeline)
    got = pipe(CHATS[1], max_new_tokens=12, do_sample=False, return_full_text=False)[0]["generated_text"]
    assert got == by_hand(model, CHATS[1]) != expected(family, TEXTS[1])[0]


def test_what_the_pipeline_of_prompts_refuses(family: tiny.Family) -> None:
    with pytest.raises(ValueError, match=r"knows none. Set `model.tokenizers = "):
        pipeline("text-generation", model=wrapper(family), tokenizer=family.tokenizer, pipeline_class=MemberPromptPipeline)
    with pytest.raises(ValueError, match="this LlamaForCausalLM knows none"):
        pipeline("text-generation", model=family.base, tokenizer=family.tokenizer, pipeline_class=MemberPromptPipeline)
    _, pipe = with_prompts(family, three(family))
    with pytest.raises(ValueError, match=r"not cut or padded here: leave out \['truncation'\]"):
        pipe(CHATS[0], truncation=True, max_length=20)


# Templates that differ ------------------------------------------------------------------------------------------------


def test_templates_that_differ_are_told_of_once(family: tiny.Family) -> None:
    model = wrapper(family, tokenizers=three(family, base=None, reference=None))
    pipe = pipeline("text-generation", model=model, tokenizer=model.tokenizers["tuned"])
    with pytest.warns(UserWarning) as warned:
        got = pipe(CHATS[0], max_new_tokens=12, do_sample=False, return_full_text=False)
    assert len(warned) == 1
    message = str(warned[0].message)
    assert "in that of 'tuned', and ['base', 'reference'] were trained on another or none" in message
    assert "member_inputs={}" in message and "MemberPromptPipeline" in message and "hf_eft.prompts.member_inputs" in message
    assert Path(warned[0].filename).name == "text_generation.py", "the line that called `generate`"
    assert got[0]["generated_text"] == expected(family, TEXTS[0])[0]
    assert (
        pipe(CHATS[0], max_new_tokens=12, do_sample=False, return_full_text=False) == got
    )  # warnings are errors here: not again
    inputs = family.tokenizer(TEXTS[0], return_tensors="pt", return_token_type_ids=False)
    other = wrapper(family, tokenizers=three(family, tuned=OTHER_TEMPLATE))
    with pytest.warns(UserWarning, match=r"in that of 'base', and \['tuned'\]"):
        other.generate(**inputs, max_new_tokens=1)


def test_the_add_on_tells_of_templates_too(family: tiny.Family) -> None:
    inputs = family.tokenizer(TEXTS[0], return_tensors="pt", return_token_type_ids=False)
    tokenizers = three(family, base=None, reference=None)

    def run(prompt: Any, **options: Any) -> EFTLogitsProcessor:
        add_on = EFTLogitsProcessor(family.tuned, family.reference, **options)
        family.base.generate(**prompt, max_new_tokens=2, logits_processor=[add_on])
        return add_on

    with pytest.warns(UserWarning, match="in that of 'tuned'") as warned:
        add_on = run(inputs, tokenizers=tokenizers)
    assert len(warned) == 1
    family.base.generate(**inputs, max_new_tokens=2, logits_processor=[add_on])  # warnings are errors here: not again
    run(inputs, tokenizers=tokenizers, member_inputs={})
    run(inputs, tokenizers=tokenizers, member_inputs={"tuned": inputs}, attention_mask=inputs["attention_mask"])
    run(inputs, tokenizers=three(family))
    run(inputs)
    run(family.tokenizer("Oscar Palmer", return_tensors="pt", return_token_type_ids=False), tokenizers=tokenizers)


def test_nobody_who_said_what_they_want_is_warned(family: tiny.Family) -> None:
    """Warnings are errors in these tests."""
    inputs = family.tokenizer(TEXTS[:2], return_tensors="pt", padding=True, return_token_type_ids=False)
    one = {"max_new_tokens": 1}
    tokenizers = three(family, base=None, reference=None)
    wrapper(family, tokenizers=tokenizers).generate(**inputs, **one, member_inputs={})
    model, pipe = with_prompts(family, tokenizers)
    pipe(CHATS, **one)
    model.generate(**inputs, **one, member_inputs={"tuned": inputs})
    text = family.tokenizer(["Oscar Palmer was born"], return_tensors="pt", return_token_type_ids=False)
    model.generate(**text, **one)  # no chat
    model.generate(max_new_tokens=1, do_sample=False)  # nothing was read
    wrapper(family, tokenizers=three(family)).generate(**inputs, **one)  # one template
    wrapper(family).generate(**inputs, **one)  # no tokenizers
    broken = three(family, base=None, tuned="{{ raise_exception('never') }}")
    broken["reference"].chat_template = None
    wrapper(family, tokenizers=broken).generate(**inputs, **one)  # a template that refuses is no reason to fail


def test_tokenizers_may_be_given_later(family: tiny.Family) -> None:
    model = wrapper(family)
    assert model.tokenizers == {}
    model.tokenizers = three(family, base=None)
    assert list(model.tokenizers) == list(NAMES)
    more, words = copy.deepcopy(family.tokenizer), copy.deepcopy(family.tokenizer)
    more.add_tokens(["<new>"])
    words.add_tokens(["<newer>"])
    with pytest.raises(ValueError, match="differ in content"):
        model.tokenizers = {"base": more, "tuned": words}
    assert model.tokenizers["base"].chat_template is None, "what was refused is not kept"
    guided = EFTForCausalLM.from_models(family.base, reference=family.base, combination=Combination.guide(1.5))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert guided.tokenizers == {}
