"""A folder with pickles only: unpickling runs what they say."""

import os
import pickle
from pathlib import Path

from common import check_no_code_ran, plain, refused, refused_every_way, run, saved

from hf_eft import hub


class Payload:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.folder / "the_code_ran"),)


def attack(folder: Path) -> str:
    where, members = saved(folder), plain(folder)
    for place in (where / "members/tuned", members["tuned"]):
        (place / "model.safetensors").unlink()
        (place / "pytorch_model.bin").write_bytes(pickle.dumps(Payload(folder)))
    reason = "member 'tuned' has no safetensors .*only pytorch_model.bin, which can run code"
    refused_every_way(reason, where)
    said = refused(reason, hub.load, members)
    refused("`use_safetensors` cannot be False", hub.load, members, member_kwargs={"base": {"use_safetensors": False}})
    check_no_code_ran(folder)
    return said


if __name__ == "__main__":
    run(attack)
