"""The disk is full, at every write in turn: what was there is whole, nothing else is, and with space again all goes on."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from families import build, prompts
from full_disk import contents, disk
from matplotlib.figure import Figure

from hf_eft import Combination, EFTConfig, EFTForCausalLM, tiny
from hf_eft.cli import app
from hf_eft.evaluation import plots
from hf_eft.evaluation.resume import Store
from hf_eft.evaluation.scores import Evaluation
from hf_eft.files import write
from hf_eft.folders.folder import install_recipe
from hf_eft.hub import custom_generate
from hf_eft.programs.batch import Results, read_items, run_batches
from hf_eft.programs.conversation import ChatSession

Write = Callable[[Path, float], Any]


@functools.cache
def combination(alpha: float) -> EFTForCausalLM:
    one_layer = {"num_hidden_layers": 1}
    made = {seed: build("llama", seed, **one_layer) for seed in range(3)}
    model = EFTForCausalLM.from_models(made[0], tuned=made[1], reference=made[2], alpha=alpha)
    model.tokenizers = dict.fromkeys(("base", "tuned", "reference"), tiny.load().tokenizer)
    return model


def logits(model: EFTForCausalLM) -> torch.Tensor:
    with torch.no_grad():
        return model(**prompts("one")).logits


def recipe(folder: Path, alpha: float) -> None:
    references = {name: {"repo_id": f"owner/{name}", "revision": "0" * 40} for name in ("base", "tuned", "reference")}
    chosen = Combination.emulate(alpha=alpha)
    config = EFTConfig(member_names=list(references), references=references, combination=chosen.to_dict())
    install_recipe(config, chosen, folder / "recipe", "card")


def picture(folder: Path, alpha: float) -> None:
    figure = Figure(figsize=(1, 1))
    figure.subplots().plot([0, alpha])
    plots.save(figure, folder / "new/picture.png", [0, alpha])


def shim(folder: Path, alpha: float) -> None:
    root = folder / "shim"
    if root.exists():
        shutil.rmtree(root)
    custom_generate.write_recipe(root, "owner/tuned", "owner/reference", alpha, dict.fromkeys(("tuned", "reference"), "0" * 40))


def conversation(folder: Path, alpha: float) -> None:
    session = ChatSession.__new__(ChatSession)
    session.system, session.messages, session.options = None, [{"role": "user", "content": "x" * 100}], {}
    session.model = combination(alpha)
    (folder / "talk.json").unlink(missing_ok=True)
    session.command(f"/save {folder / 'talk.json'}")


def stored(folder: Path, alpha: float) -> None:
    Store(folder / "results", restart=False).keep("task", "system", {"fingerprint": {}, "scores": {"a": alpha}})


# What writes files, and whether half of an old state may be gone afterwards (what must be new is removed by the test itself).
WRITERS: dict[str, Write] = {
    "a combination": lambda folder, alpha: combination(alpha).save_pretrained(folder / "new/saved"),
    "a recipe": recipe,
    "a configuration": lambda folder, alpha: combination(alpha).config.save_pretrained(folder / "alone"),
    "a picture": picture,
    "a result of an evaluation": stored,
    "an evaluation": lambda folder, alpha: Evaluation({}, {}, {"a": alpha}).to_json(folder / "evaluation.json"),
    "a text": lambda folder, alpha: write(folder / "text", f"{alpha}" * 100),
    "a conversation": conversation,
    "a custom_generate": shim,
}
NEW = ("a conversation", "a custom_generate")
LEAVES_FOLDERS = ("a configuration", "a result of an evaluation")  # empty ones, which nobody takes for anything


def without_folders(found: dict[str, Any], what: str) -> dict[str, Any]:
    return {name: data for name, data in found.items() if data is not None or what not in LEAVES_FOLDERS}


def writes(what: str, folder: Path, alpha: float) -> int:
    """How many there are."""
    with disk(folder) as found:
        WRITERS[what](folder, alpha)
    return found.done


@pytest.mark.parametrize("what", WRITERS)
def test_what_is_written_is_there_whole_or_not_at_all(what: str, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    whole.mkdir()
    count = writes(what, whole, 0.5)
    assert count >= 2
    for before in (None,) if what in NEW else (1.0,) if what in LEAVES_FOLDERS else (None, 1.0):
        place = tmp_path / f"before-{before}"
        place.mkdir()
        if before is not None:
            WRITERS[what](place, before)
            count = writes(what, shutil.copytree(place, tmp_path / "counted"), 0.5)
        found = without_folders(contents(place), what)
        for n in range(1, count + 1):
            with disk(place, n), pytest.raises((OSError, ValueError), match="No space left"):
                WRITERS[what](place, 0.5)
            assert without_folders(contents(place), what) == found, f"write {n} of {count}"
        WRITERS[what](place, 0.5)
        assert set(contents(place)) == set(contents(whole))
        assert all(
            contents(place)[name] == data for name, data in contents(whole).items() if not name.endswith((".png", "README.md"))
        )


def test_a_folder_that_was_cut_off_for_good_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process was killed between two of the renames that put a combination in its place: nothing was taken back."""
    combination(1.0).save_pretrained(tmp_path / "whole")
    expected = {alpha: logits(combination(alpha)) for alpha in (0.5, 1.0)}
    moved, plain = [0], Path.replace

    class Killed(BaseException):
        """Nothing runs afterwards."""

    def replace(self: Path, target: Path) -> Path:
        moved[0] += (".saving-" in str(self)) != (".saving-" in str(target))
        if moved[0] >= at:
            raise Killed
        return plain(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    monkeypatch.setattr(shutil, "rmtree", lambda *args, **kwargs: None)
    monkeypatch.setattr("tempfile._shutil.rmtree", lambda *args, **kwargs: None)
    outcomes = []
    for at in range(1, 100):
        place, moved[0] = tmp_path / f"at-{at}", 0
        shutil.copytree(tmp_path / "whole", place)
        try:
            combination(0.5).save_pretrained(place)
        except Killed:
            pass
        else:
            break
        if (place / "config.json").exists():
            with_config = EFTForCausalLM.from_pretrained(place)
            assert torch.equal(logits(with_config), expected[1.0]) and with_config.combination == Combination.emulate(alpha=1.0)
            outcomes.append("old")
        else:
            with pytest.raises((OSError, ValueError), match=r"config\.json"):
                EFTForCausalLM.from_pretrained(place)
            outcomes.append("refused")
    assert torch.equal(logits(EFTForCausalLM.from_pretrained(place)), expected[0.5])
    assert outcomes[0] == "old" and set(outcomes[1:]) == {"refused"} and len(outcomes) > 5


# Batch runs -----------------------------------------------------------------------------------------------------------------

ITEMS = read_items(b"a\nb\nc\nd\ne\nf\ng\n")
IDENTITY = {"the input": "x" * 50}


def answered(items: Any) -> list[dict[str, Any]]:
    return [{"text": f"{item.prompt} é" * 20} for item in items]


def run(path: Path, restart: bool = False) -> None:
    with Results(path, IDENTITY, restart) as results:
        assert list(run_batches(ITEMS, results, answered, 3))[-1:] in ([len(ITEMS)], [])


def test_a_batch_run_on_a_full_disk_carries_on_rightly(tmp_path: Path) -> None:
    with disk(tmp_path) as found:
        run(tmp_path / "whole.jsonl")
    expected = (tmp_path / "whole.jsonl").read_bytes()
    for n in range(1, found.done + 1):
        path = tmp_path / f"{n}.jsonl"
        with disk(tmp_path, n), pytest.raises(OSError, match="No space left"):
            run(path)
        done = path.read_bytes() if path.exists() else b""
        assert expected.startswith(done) and done.count(b"\n") in (0, 3, 6) and done[-1:] in (b"", b"\n"), n
        assert not list(tmp_path.glob("*.partial")) and (not done or path.with_name(f"{n}.jsonl.meta.json").exists())
        run(path)
        assert path.read_bytes() == expected


def test_results_that_did_not_fit_are_not_written_later(tmp_path: Path) -> None:
    """Whoever makes space and goes on with the object that failed has every line once."""
    with Results(tmp_path / "out.jsonl", IDENTITY) as results:
        with disk(tmp_path) as found:
            pass
        steps = run_batches(ITEMS, results, answered, 3)
        assert next(steps) == 3
        plain, results._file = results._file, Small(results._file)
        with pytest.raises(OSError, match="No space left"):
            next(steps)
        results._file = plain
        assert results.kept == 3
        assert list(run_batches(ITEMS, results, answered, 3)) == [6, 7]
    assert found.done == 0
    run(tmp_path / "whole.jsonl")
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


class Small:
    """A file on a disk that takes seven bytes more."""

    def __init__(self, file: Any) -> None:
        self._file, self._room = file, 7

    def write(self, data: Any) -> int:
        if self._room == 0:
            raise OSError(28, "No space left on device")
        count, self._room = min(self._room, len(data)), 0
        return self._file.write(data[:count])

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


# Commands -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["card", "inspect"])
def test_a_command_that_writes_a_file(command: str, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    arguments = {
        "card": ["card", "--output", str(tmp_path / "out")],
        "inspect": ["inspect", "Tell me", "--continuation", " more", "--html", str(tmp_path / "out")],
    }[command]
    with disk(tmp_path) as found:
        assert CliRunner().invoke(app, arguments).exit_code == 0
    whole = (tmp_path / "out").read_bytes()
    (tmp_path / "out").unlink()
    for n in range(1, found.done + 1):
        with disk(tmp_path, n):
            assert CliRunner().invoke(app, arguments).exit_code != 0
        assert contents(tmp_path) == {}
    assert CliRunner().invoke(app, arguments).exit_code == 0
    assert (tmp_path / "out").read_bytes() == whole


def test_a_file_keeps_its_mode_and_a_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("before")
    (tmp_path / "text").chmod(0o640)
    (tmp_path / "link").symlink_to(tmp_path / "text")
    write(tmp_path / "link", "after")
    assert (tmp_path / "text").read_text() == "after" and (tmp_path / "text").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "link").is_symlink()
    write(Path("/dev/null"), "nothing")
    assert not Path("/dev/null").is_file()
    with pytest.raises(FileExistsError):
        write(tmp_path / "text", "again", new=True)
    assert json.dumps((tmp_path / "text").read_text()) == '"after"'
