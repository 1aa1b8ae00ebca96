"""A member's configuration names the file of its weights, and its own folder describes another model than the combination does."""

from pathlib import Path

import torch
from common import GotThroughError, edit, run, saved
from safetensors.torch import load_file, save_file

from hf_eft import hub


def attack(folder: Path) -> str:
    where = saved(folder)
    expected = load_file(where / "members/tuned/model.safetensors")
    save_file({key: torch.zeros_like(value) for key, value in expected.items()}, where / "members/tuned/other.safetensors")
    edit(where / "config.json", lambda config: config["tuned_config"].update(transformers_weights="other.safetensors"))
    edit(where / "members/tuned/config.json", lambda config: config.update(transformers_weights="other.safetensors"))
    edit(where / "members/tuned/config.json", lambda config: config.update(hidden_act="relu", num_hidden_layers=1))
    model, _ = hub.load(where)
    if not all(torch.equal(value, expected[key]) for key, value in model.tuned.state_dict().items()):
        raise GotThroughError("the named file was read")
    if model.tuned.config.hidden_act != "silu":
        raise GotThroughError("the member's own description was read")
    return "`model.safetensors` and the combination's description are read, nothing else"


if __name__ == "__main__":
    run(attack)
