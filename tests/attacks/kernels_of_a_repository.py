"""A member's configuration chooses an attention or experts implementation that is a repository, fetched and run."""

from pathlib import Path

from common import edit, plain, run, saved

from hf_eft import hub

KERNEL = "someone/kernel"
KEYS = (
    "attn_implementation",
    "_attn_implementation",
    "_attn_implementation_internal",
    "experts_implementation",
    "kernel_config",
)


def attack(folder: Path) -> str:
    where, members = saved(folder), plain(folder)
    edit(where / "config.json", lambda config: config["tuned_config"].update(dict.fromkeys(KEYS, KERNEL)))
    edit(where / "config.json", lambda config: config["text_config"].update(deeper=dict.fromkeys(KEYS, KERNEL)))
    edit(members["tuned"] / "config.json", lambda config: config.update(dict.fromkeys(KEYS, KERNEL)))
    for place in (where, members):
        model, _ = hub.load(place)
        if KERNEL in f"{model.config} {model.tuned.config} {model.tuned.config._attn_implementation}":
            raise AssertionError("the choice of a kernel was kept")
    return "the choice is not read"


if __name__ == "__main__":
    run(attack)
