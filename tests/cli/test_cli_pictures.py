"""Commands that show pictures to members that see: each with the processor that lies beside it, or in a saved folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from commands import invoke
from lookers import own_inputs, picture, processor
from seeing import seeing

from hf_eft import EFTForCausalLM, hub
from hf_eft.programs.conversation import ChatSession
from hf_eft.programs.pictures import Processors

NAMES = ("base", "tuned", "reference")
OPTIONS = ("--chat", "--max-new-tokens", "6", "--json")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("members")
    for seed, name in enumerate(NAMES, start=1):
        seeing("llava", seed).save_pretrained(root / name)
        made = processor("llava")
        if name == "base":
            made.image_processor.image_mean = [0.9, 0.1, 0.4]
        made.save_pretrained(root / name)
    picture(1).save(root / "first.png")
    picture(2, (8, 24)).save(root / "second.png")
    hub.load({name: root / name for name in NAMES})[0].save_pretrained(root / "saved")
    return {"saved": root / "saved", **{name: root / name for name in NAMES}}


def members(folders: dict[str, Path]) -> list[str]:
    return [part for name in NAMES for part in (f"--{name}", str(folders[name]))]


def images(folders: dict[str, Path]) -> list[str]:
    return [str(folders["saved"].parent / name) for name in ("first.png", "second.png")]


@pytest.fixture(scope="module")
def expected(folders: dict[str, Path]) -> tuple[EFTForCausalLM, list[int], int, str]:
    """The combination; what follows two pictures and a text, ids and text; and how long the prompt is."""
    model, tokenizers = hub.load(folders["saved"])
    inputs = own_inputs(model.processors, *[picture(1), picture(2, (8, 24))], "w20 w21")
    ids = model.generate(**inputs, max_new_tokens=6, do_sample=False)[0].tolist()
    length = inputs["input_ids"].shape[1]
    return model, ids[length:], length, tokenizers["tuned"].decode(ids[length:], skip_special_tokens=True)


@pytest.mark.parametrize("given", ["members", "saved"])
def test_a_prompt_shows_pictures(given: str, folders: dict[str, Path], expected: Any) -> None:
    where = members(folders) if given == "members" else ["--model", str(folders["saved"])]
    shown = [part for path in images(folders) for part in ("--image", path)]
    done = invoke("generate", *where, *shown, *OPTIONS, "w20 w21")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["text"] == expected[3]
    assert json.loads(invoke("generate", *where, *shown[:2], *OPTIONS, "w20 w21").stdout)["text"] != expected[3]


def test_lines_of_a_batch_show_their_own(folders: dict[str, Path], expected: Any, tmp_path: Path) -> None:
    def line(*paths: str) -> str:
        parts = [{"type": "image", "image": path} for path in paths]
        return json.dumps({"messages": [{"role": "user", "content": [*parts, {"type": "text", "text": "w20 w21"}]}]})

    lines = [line(*images(folders)), line(), line(images(folders)[0]), line("no such file.png"), line(*images(folders))]
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    model = ("--model", str(folders["saved"]))
    done = invoke("generate", *model, "--max-new-tokens", "6", "-i", str(tmp_path / "in.jsonl"))
    found = [json.loads(each) for each in done.stdout.splitlines()]
    assert done.exit_code == 3 and "path of a file that is there" in found.pop(3)["error"]
    assert found[0]["text"] == found[3]["text"] == expected[3]
    assert len({each["text"] for each in found}) == 3
    alone = invoke("generate", *model, *OPTIONS, "--member-prompts", "w20 w21")
    assert json.loads(alone.stdout)["text"] == found[1]["text"]
    assert "lines of a batch run show their own" in " ".join(
        invoke("generate", *model, "--chat", "--image", images(folders)[0], "-i", str(tmp_path / "in.jsonl")).stderr.split()
    )


def test_what_the_delta_did_to_a_text_about_pictures(folders: dict[str, Path], expected: Any, tmp_path: Path) -> None:
    shown = [part for path in images(folders) for part in ("--image", path)]
    done = invoke(
        "inspect", "--model", str(folders["saved"]), *shown, *OPTIONS, "--html", str(tmp_path / "page.html"), "w20 w21"
    )
    assert done.exit_code == 0, done.output
    assert [each["token_id"] for each in json.loads(done.stdout)["records"]] == expected[1]
    assert (tmp_path / "page.html").read_text().count("data:image/") == 2


def test_a_conversation_shows_pictures_and_goes_on(folders: dict[str, Path], expected: Any) -> None:
    model = expected[0]
    chat = ChatSession(model, model.processors["tuned"], options={"max_new_tokens": 6})
    for path in images(folders):
        assert "is shown with what you say next" in chat.command(f"/image {path}")
    replies = [chat.ask("w20 w21"), chat.ask("w30")]
    assert replies[0] == expected[3].strip() and chat.compare()["combined"] == replies[1]
    parts = [{"type": "image", "image": each} for each in (picture(1), picture(2, (8, 24)))]
    messages = [
        {"role": "user", "content": [*parts, {"type": "text", "text": "w20 w21"}]},
        {"role": "assistant", "content": chat.messages[1]["content"]},
        {"role": "user", "content": "w30"},
    ]
    _, seen = Processors(model, model.processors["tuned"]).read(messages)
    given = {name: seen.inputs[name] for name in ("input_ids", "attention_mask")}
    out = model.generate(**given, **seen.pictures, max_new_tokens=6, do_sample=False)[0, len(seen.prompt) :]
    assert replies[1] == chat.tokenizer.decode(out, skip_special_tokens=True).strip()
    chat.command("/reset")
    assert chat.ask("w20 w21") != replies[0]
    chat.command(f"/image {images(folders)[0]}")
    fresh = ChatSession(model, model.processors["tuned"], options={"max_new_tokens": 6})
    fresh.messages, fresh._images = list(chat.messages), list(chat._images)
    assert chat.ask("w31") == fresh.ask("w31")
    with pytest.raises(ValueError, match=r"there is no file 'cat\.png'"):
        chat.command("/image cat.png")
    blind = ChatSession(EFTForCausalLM.from_models(*model.members.values()), processor("llava"))
    blind._readers = Processors(blind.model, chat.tokenizer)  # a template that reads texts alone is another's
    with pytest.raises(ValueError, match="which has no processor"):
        blind.command(f"/image {images(folders)[0]}")


@pytest.mark.parametrize(
    "command, module, function", [("serve", "hf_eft.serving", "serve"), ("playground", "hf_eft.playground", "launch")]
)
@pytest.mark.parametrize("given", ["members", "saved"])
def test_processors_beside_members_are_handed_on(
    given: str, command: str, module: str, function: str, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[Any] = []
    monkeypatch.setattr(f"{module}.{function}", lambda model, tokenizer, **options: called.append((model, tokenizer)))
    monkeypatch.setattr(f"{module}.check_installed", lambda: None)
    where = members(folders) if given == "members" else ["--model", str(folders["saved"])]
    done = invoke(command, "--port", "0", *where)
    assert done.exit_code == 0 and "no processor" not in done.stderr, done.output
    [(model, reader)] = called
    assert list(model.processors) == list(model.members) == list(NAMES) and reader is model.processors["tuned"]
    assert all(type(each).__name__ == "LlavaProcessor" for each in model.processors.values())
    means = {name: each.image_processor.image_mean[0] for name, each in model.processors.items()}
    assert means["base"] == 0.9 != means["tuned"] == means["reference"]


def test_a_member_without_a_processor_is_told(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blind = tmp_path / "reference"
    seeing("llava", 3).save_pretrained(blind)
    processor("llava").tokenizer.save_pretrained(blind)
    called: list[Any] = []
    monkeypatch.setattr("hf_eft.serving.serve", lambda model, tokenizer, **options: called.append((model, tokenizer)))
    where = members({**folders, "reference": blind})
    done = invoke("serve", "--port", "0", *where)
    assert done.exit_code == 0, done.output
    assert "'reference' has no processor, so that pictures are refused" in " ".join(done.stderr.split())
    [(model, reader)] = called
    assert list(model.processors) == ["base", "tuned"] and not hasattr(reader, "image_processor")
    for command in (["generate"], ["inspect"]):
        done = invoke(*command, *where, "--chat", "--image", images(folders)[0], "w20")
        assert done.exit_code != 0 and "cannot be shown to the member 'reference'" in " ".join(done.stderr.split())


@pytest.mark.parametrize(
    "options, expected",
    [(["--image", "none.png"], "add --chat"), (["--chat", "--image", "none.png"], "there is no file 'none.png'")],
)
def test_pictures_are_looked_at_before_models_are_loaded(options: list[str], expected: str) -> None:
    done = invoke("generate", "--model", "nowhere", *options, "w20")
    assert done.exit_code == 2 and expected in " ".join(done.stderr.split())


@pytest.mark.parametrize(
    "options, expected",
    [
        (["--image-host", "http://a.example/"], "are names of hosts"),
        (["--max-image-pixels", "0"], "must be 1 or more"),
        (["--max-image-bytes", "-1"], "must be 1 or more"),
        (["--engine", "vllm", "--image-host", "a.example"], "serves text alone"),
    ],
)
def test_limits_of_pictures_are_looked_at_before_models_are_loaded(options: list[str], expected: str) -> None:
    done = invoke("serve", *options)
    assert done.exit_code == 2 and expected in " ".join(done.stderr.replace("\u2502", " ").split())
