"""A combination whose member is a combination, which may refer further."""

from pathlib import Path

from common import edit, plain, refused, refused_every_way, run, saved

from hf_eft import hub


def attack(folder: Path) -> str:
    where, members = saved(folder), plain(folder)
    said = refused("member 'tuned' .*another combination", hub.load, {**members, "tuned": saved(folder, "inner")})
    nested = {"model_type": "eft", "member_names": ["base"], "text_config": {"model_type": "llama"}}
    edit(where / "config.json", lambda config: config.update(tuned_config=nested))
    refused_every_way("another combination", where)
    where = saved(folder, "deeper")
    edit(where / "config.json", lambda config: config["tuned_config"].update(deeper=nested))
    refused_every_way("another combination", where)
    loader = {"model_type": "timm_wrapper", "architecture": "hf-hub:someone/else"}
    edit(where / "config.json", lambda config: config["tuned_config"].update(deeper=loader))
    refused_every_way("loads what its configuration names", where)
    return said


if __name__ == "__main__":
    run(attack)
