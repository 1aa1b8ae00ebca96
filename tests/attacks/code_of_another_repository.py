"""With `trust_remote_code=True` for one model, its configuration names the code of another repository."""

from pathlib import Path

from common import edit, plain, refused, run

from hf_eft import hub


def attack(folder: Path) -> str:
    members = plain(folder)
    edit(
        members["tuned"] / "config.json",
        lambda config: config.update(auto_map={"AutoModelForCausalLM": "someone/else--evil.Model"}),
    )
    return refused("code loaded from other repositories", hub.load, members, trust_remote_code=True)


if __name__ == "__main__":
    run(attack)
