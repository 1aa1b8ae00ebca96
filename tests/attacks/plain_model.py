"""A plain model given as a combination: filled up with default members, it would be three 7B models of random numbers."""

from pathlib import Path

from common import edit, plain, refused, refused_every_way, run, saved

from hf_eft import EFTConfig, EFTForCausalLM, hub


def attack(folder: Path) -> str:
    where = plain(folder)["base"]
    for load in (hub.load, EFTForCausalLM.from_pretrained, EFTConfig.from_pretrained):
        said = refused("type 'llama', expected 'eft'", load, where)
    edit(where / "config.json", lambda config: config.pop("model_type"))
    refused("type None, expected 'eft'", hub.load, where)
    empty = saved(folder, "empty")
    (empty / "config.json").write_text('{"model_type": "eft"}')
    refused_every_way("has no members", empty)
    for missing in ("text_config", "tuned_config"):
        spoilt = saved(folder, missing)
        edit(spoilt / "config.json", lambda config, missing=missing: config.pop(missing))
        refused_every_way("has no members|must have a configuration", spoilt)
    more = saved(folder, "more")
    edit(more / "config.json", lambda config: config["tuned_config"].update(num_hidden_layers=3, intermediate_size=8))
    refused_every_way("member 'tuned' ", more)
    large = {
        "model_type": "llama",
        "num_hidden_layers": 2,
        "hidden_size": 512,
        "num_attention_heads": 8,
        "intermediate_size": 64,
    }
    filled = saved(folder, "filled")
    edit(filled / "config.json", lambda config: config.update(tuned_config=large))
    refused_every_way("describes [0-9,]+ weights, but [0-9,]+ bytes .*incomplete", filled)
    return said


if __name__ == "__main__":
    run(attack)
