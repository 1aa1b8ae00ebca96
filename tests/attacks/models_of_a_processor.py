"""A processor's description that names another model, and one that names code."""

from pathlib import Path

from common import NAMES, GotThroughError, check_no_code_ran, edit, payload, refused, run
from lookers import processor
from seeing import seeing

from hf_eft import EFTForCausalLM, hub


def attack(folder: Path) -> str:
    models = [seeing("llava", seed) for seed in (1, 2, 3)]
    given = dict.fromkeys(NAMES, processor("llava"))
    where = folder / "saved"
    EFTForCausalLM.from_models(models[0], tuned=models[1], reference=models[2], tokenizers=given).save_pretrained(where)
    if not hub.load(where)[0].processors:
        raise GotThroughError("the processor is not read at all")
    (where / "evil.py").write_text(payload(folder))
    described = where / "processor_config.json"
    whole = described.read_text()
    code = {"auto_map": {"AutoProcessor": "evil.Processor", "AutoImageProcessor": "evil.Processor"}}
    for change in (
        lambda found: found.update(code, processor_class="Processor"),
        lambda found: found["image_processor"].update(code, image_processor_type="Processor"),
    ):
        edit(described, change)
        for asked in ({}, {"trust_remote_code": True}):
            if hub.load(where, **asked)[0].processors:
                raise GotThroughError("a processor with code of its own is taken")
            check_no_code_ran(folder)
        described.write_text(whole)
    named = {"audio_tokenizer_class": "DacModel", "audio_tokenizer_name_or_path": "other/model"}
    edit(described, lambda found: found.update(audio_tokenizer=named))
    return refused("processor .* another model", hub.load, where)


if __name__ == "__main__":
    run(attack)
