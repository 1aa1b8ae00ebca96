"""A configuration with keys that would be handed to a loading call, if keys were handed on."""

from pathlib import Path

from common import edit, refused_every_way, run, saved

KEYS = {
    "trust_remote_code": True,
    "auto_map": {"AutoModelForCausalLM": "evil.Model"},
    "use_safetensors": False,
    "quantization_config": {"quant_method": "gptq"},
    "_name_or_path": "someone/else",
    "other_config": {"model_type": "llama"},
    "attn_implementation": "someone/kernel",
}


def attack(folder: Path) -> str:
    for i, (key, value) in enumerate(KEYS.items()):
        where = saved(folder, f"saved{i}")
        edit(where / "config.json", lambda config, key=key, value=value: config.update({key: value}))
        said = refused_every_way(f"keys that are not read: '{key}'", where)
    return said


if __name__ == "__main__":
    run(attack)
