"""References that say something else tomorrow, or anything else than a repository and a commit."""

from pathlib import Path

from common import NAMES, edit, refused_every_way, run, saved

COMMIT = "0123456789abcdef0123456789abcdef01234567"
MOVING = ("main", "v1.0", "refs/pr/1", COMMIT[:12], COMMIT.upper(), None, 7)
PLACES = ("../elsewhere", "/etc", "https://example.com/model", "C:\\models", "\\\\server\\share", "a/b/c", "", None, "./x")
EXTRA = {"subfolder": "..", "trust_remote_code": True, "token": "hf_x", "use_safetensors": False}


def attack(folder: Path) -> str:
    where = saved(folder)
    good = {"repo_id": "someone/model", "revision": COMMIT}

    def spoil(reference: object, reason: str) -> str:
        references = {**dict.fromkeys(NAMES, good), "tuned": reference}
        edit(where / "config.json", lambda config: config.update(references=references))
        return refused_every_way(f"member 'tuned' .*{reason}", where, allow_references=True)

    for place in PLACES:
        spoil({**good, "repo_id": place}, "must name a repository of the Hub")
    for key, value in EXTRA.items():
        spoil({**good, key: value}, "nothing else")
    spoil("someone/model", "nothing else")
    for revision in MOVING:
        said = spoil({**good, "revision": revision}, "can move")
    return said


if __name__ == "__main__":
    run(attack)
