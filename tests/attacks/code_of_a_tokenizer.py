"""A tokenizer's description that names code, and one that names files elsewhere."""

from pathlib import Path

from common import check_no_code_ran, edit, payload, refused, run, saved

from hf_eft import hub, tiny


def attack(folder: Path) -> str:
    where = saved(folder)
    tiny.load().tokenizer.save_pretrained(where)
    (where / "evil.py").write_text(payload(folder))
    (folder / "elsewhere.json").write_text("{}")
    edit(where / "tokenizer_config.json", lambda config: config.update(tokenizer_file=str(folder / "elsewhere.json")))
    hub.load(where)  # the folder's own file is read
    edit(
        where / "tokenizer_config.json",
        lambda config: config.update(auto_map={"AutoTokenizer": ["evil.Tokenizer", None]}, tokenizer_class="Tokenizer"),
    )
    for asked in ({}, {"trust_remote_code": True}):
        said = refused("tokenizer .*custom code", hub.load, where, **asked)
        check_no_code_ran(folder)
    return said


if __name__ == "__main__":
    run(attack)
