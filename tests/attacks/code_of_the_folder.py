"""A folder that brings Python files, and names them wherever transformers looks for such names."""

from pathlib import Path

from common import check_no_code_ran, edit, payload, refused_every_way, run, saved

from hf_eft import EFTForCausalLM, hub

MAP = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model", "AutoTokenizer": ["evil.Tokenizer", None]}


def attack(folder: Path) -> str:
    where = saved(folder)
    for place in (where, *(where / "members").iterdir()):
        (place / "evil.py").write_text(payload(folder))
        (place / "custom_generate").mkdir()
        (place / "custom_generate/generate.py").write_text(payload(folder))

    def name_it(config: dict) -> None:
        for key in ("text_config", "tuned_config"):
            config[key] |= {"auto_map": MAP, "trust_remote_code": True, "deeper": {"model_type": "llama", "auto_map": MAP}}

    edit(where / "config.json", name_it)
    for name in ("base", "tuned"):
        edit(where / "members" / name / "config.json", lambda config: config.update(auto_map=MAP, trust_remote_code=True))
    edit(where / "generation_config.json", lambda config: config.update(custom_generate="evil", trust_remote_code=True))
    for asked in ({}, {"trust_remote_code": True}):  # a saved folder has no code, whatever the caller trusts
        model, _ = hub.load(where, **asked)
        if "auto_map" in str(model.config) or "generate" in vars(model):
            raise AssertionError("names of code were kept")
        EFTForCausalLM.from_pretrained(where, **asked)
        check_no_code_ran(folder)

    edit(where / "config.json", lambda config: config.update(auto_map=MAP))
    said = refused_every_way("keys that are not read: 'auto_map'", where)
    check_no_code_ran(folder)
    return said


if __name__ == "__main__":
    run(attack)
