"""Numbers and files that would fill the machine before anything else is noticed."""

from pathlib import Path

from common import edit, plain, refused, refused_every_way, run, saved

from hf_eft import hub
from hf_eft.files import trust

NUMBERS = {
    "max_position_embeddings": 10**15,  # first: were it let through, nothing would be filled
    "num_hidden_layers": 10**7,
    "num_attention_heads": 10**6,
    "num_local_experts": 10**6,
    "vocab_size": 10**12,
}


def attack(folder: Path) -> str:
    where = saved(folder)
    config = (where / "config.json").read_text()
    for key, number in NUMBERS.items():
        edit(where / "config.json", lambda config, key=key, number=number: config["tuned_config"].update({key: number}))
        said = refused_every_way(f"`{key}` = {number}, expected at most", where)
        (where / "config.json").write_text(config)

    for place in ("text_config", "tuned_config", None):  # a dtype that is any function of torch
        edit(where / "config.json", lambda config, place=place: (config[place] if place else config).update(dtype="load"))
        refused_every_way("`dtype` = 'load', expected", where)
        (where / "config.json").write_text(config)

    names = ["base", *(f"tuned_{i}" for i in range(trust.MAX_MEMBERS))]
    edit(where / "config.json", lambda config: config.update(member_names=names))
    refused_every_way("a list of at most", where)
    (where / "config.json").write_text('{"model_type": "eft", "bos_token_id": ' + "[" * 10_000 + "]" * 10_000 + "}")
    refused("cannot be read as JSON|maximum recursion", hub.load, where)
    (where / "config.json").write_text(config + " " * trust.MAX_JSON)
    refused("expected at most", hub.load, where)
    (where / "config.json").write_text("[]")
    refused("must hold a JSON object", hub.load, where)

    members = plain(folder)
    edit(members["tuned"] / "config.json", lambda config: config.update(num_hidden_layers=10**7))
    refused("`num_hidden_layers` = ", hub.load, members)
    (where / "config.json").write_text(config)
    limit, trust.MAX_FILES = trust.MAX_FILES, 20  # as many as it takes, without the wait
    for i in range(trust.MAX_FILES + 1):
        (where / f"{i}").touch()
    refused("more than 20 files", hub.load, where)
    trust.MAX_FILES = limit
    return said


if __name__ == "__main__":
    run(attack)
