"""Names of files that lead out of the folder: an index of shards with `..`, absolute, drive and UNC paths, and symbolic links."""

import shutil
from pathlib import Path

from common import edit, plain, refused, refused_every_way, run, saved

from hf_eft import hub

OUTSIDE = (
    "../../../elsewhere.safetensors",
    "{folder}/elsewhere.safetensors",
    "C:\\elsewhere.safetensors",
    "\\\\server\\share\\elsewhere.safetensors",
    "..\\..\\elsewhere.safetensors",
)


def attack(folder: Path) -> str:
    where, members = saved(folder), plain(folder)
    shutil.copy(where / "members/tuned/model.safetensors", folder / "elsewhere.safetensors")
    for place, load in ((where / "members/tuned", None), (members["tuned"], members)):
        (place / "model.safetensors").unlink()
        for path in OUTSIDE:
            shard = path.replace("{folder}", str(folder))
            index = {"metadata": {}, "weight_map": {"lm_head.weight": shard}}
            edit(place / "model.safetensors.index.json", lambda config, index=index: config.update(index))
            if load is None:
                refused_every_way("leads out of the folder", where)
            else:
                refused("leads out of the folder", hub.load, load)

    for i, name in enumerate(("config.json", "members/tuned/model.safetensors", "members/tuned", "generation_config.json")):
        spoilt = saved(folder, f"linked{i}")
        (spoilt / name).rename(folder / f"moved{i}")
        (spoilt / name).symlink_to(folder / f"moved{i}")
        said = refused("leads out of the folder", hub.load, spoilt)
    return said


if __name__ == "__main__":
    run(attack)
