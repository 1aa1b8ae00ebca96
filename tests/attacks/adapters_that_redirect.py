"""Descriptions of adapters, which transformers follows to the model that they name: beside a combination, in a member, and as a member."""

from pathlib import Path

from common import check_no_code_ran, edit, payload, plain, refused, refused_every_way, run, saved

from hf_eft import EFTForCausalLM, hub

ELSEWHERE = {"base_model_name_or_path": "someone/else", "peft_type": "LORA", "auto_mapping": {"parent_library": "evil"}}


def attack(folder: Path) -> str:
    where = saved(folder)
    edit(where / "adapter_config.json", lambda config: config.update(ELSEWHERE))
    for load in (hub.load, EFTForCausalLM.from_pretrained):
        load(where)  # nobody looks at it

    edit(where / "members/tuned/adapter_config.json", lambda config: config.update(ELSEWHERE))
    said = refused("member 'tuned' .*adapter_config.json beside", hub.load, where)

    pretended = saved(folder, "pretended")
    edit(pretended / "config.json", lambda config: (config.update(adapters={"tuned": "reference"}), config.pop("tuned_config")))
    refused_every_way("no `adapter_config.json`", pretended)
    edit(
        pretended / "members/tuned/adapter_config.json",
        lambda config: config.update(ELSEWHERE, megatron_config={"a": 1}, megatron_core="evil"),
    )
    (folder / "evil.py").write_text(payload(folder))
    refused_every_way("`megatron_config`", pretended)

    members = plain(folder)
    (members["tuned"] / "config.json").unlink()
    edit(members["tuned"] / "adapter_config.json", lambda config: config.update(ELSEWHERE))
    (members["tuned"] / "model.safetensors").rename(members["tuned"] / "adapter_model.safetensors")
    refused("holds the model's own weights", hub.load, members)
    check_no_code_ran(folder)
    return said


if __name__ == "__main__":
    run(attack)
