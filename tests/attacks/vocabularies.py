"""Folders that say another vocabulary than there is, or hold a tokenizer that is not its member's."""

import shutil
from pathlib import Path

from common import edit, refused, refused_every_way, run

from hf_eft import EFTForCausalLM, hub, tiny

PLACES = {"base": "base", "tuned": "second_tuned", "reference": "second_reference"}


def attack(folder: Path) -> str:
    where = folder / "saved"
    hub.load({name: tiny.path(place) for name, place in PLACES.items()}, vocabulary="tokens")[0].save_pretrained(where)
    description = (where / "config.json").read_text()
    for odd in ("auto", "os.system", ["tokens"], {"units": [1]}, True, 1):
        edit(where / "config.json", lambda config, odd=odd: config.update(vocabulary=odd))
        refused_every_way("`vocabulary` must be null or one of", where)
    edit(where / "config.json", lambda config: config.pop("vocabulary"))
    refused("differ by more than padding|differ in content", EFTForCausalLM.from_pretrained, where)
    (where / "config.json").write_text(description)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny.path("base") / name, where / "members/tuned" / name)
    refused_every_way(
        "member 'tuned' returns .* logits, but its tokenizer has tokens up to", where
    )  # of a larger vocabulary than the model has
    (where / "members/tuned/tokenizer_config.json").unlink()
    return refused_every_way(r"\['tuned'\] have no tokenizer_config.json", where)


if __name__ == "__main__":
    run(attack)
