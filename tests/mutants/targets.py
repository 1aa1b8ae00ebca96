"""The rooms: what of the package is mutated, how many mutants are drawn there, and the tests that are to see them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "hf_eft"


@dataclass(frozen=True)
class Room:
    sources: str  # files and folders of the package
    tests: str  # files `test_*.py`, in whatever folder of `tests`, by what stands for the star
    drawn: int


ROOMS: dict[str, Room] = {
    "recipe": Room(
        "recipe",
        "combination shorthands errors recipes rules oracle phase_markers thinking",
        80,
    ),
    "members": Room(
        "members",
        "errors oracle caches padding recurrent roll_back unusual_members modalities vocabulary members_replaced"
        " members_by_name adapters adapters_given adapters_refused"
        " architectures features logits_process checks trial adapter_references members_cast parts recurrent_states"
        " learnt tune_learnt one_pass joint_static static_drafts quantised_refused devices_at_once sight sight_refused replaced_forwards"
        " sight_kinds_refused sight_widths sight_dtypes padding_of_own_prompts unread devices",
        140,
    ),
    "decoding": Room(
        "decoding",
        "generate generation_options prefix watchers speculative coupling schedule threads threads_add_on"
        " roll_back padding caches prompts paged paged_options"
        " paged_refused paged_answers paged_limits"
        " automatic lookup noise given_to_members tokens_left speculative_request recipes vocabulary"
        " small_combination drafts static_drafts sharded devices_at_once pictures sight thinking thinking_drafts ruled"
        " skipping skipping_refused films thinking_compiled replayed speculative_ends",
        140,
    ),
    "spelled": Room(
        "spelling units",
        "bytes bytes_generate bytes_together bytes_tokens units_enumerated units_generate units_prompts units_recipes units_speaker lane"
        " units_refused choice common_units digits shared_merges tokenizer_kinds states",
        80,
    ),
    "leaves": Room(
        "modeling_eft.py logits_process.py",
        "errors oracle generate logits_process features prompts members_replaced members_by_name"
        " threads threads_add_on saving saving_over pipeline member_pipeline templates recipes padding leaves modalities"
        " vocabulary sight pictures dropped_processors",
        60,
    ),
}


def sources(room: str) -> list[Path]:
    """The files of a room, in order."""
    found: list[Path] = []
    for name in ROOMS[room].sources.split():
        path = PACKAGE / name
        files = [path] if path.suffix else sorted(path.rglob("*.py"))
        if not files or not all(each.is_file() for each in files):
            raise FileNotFoundError(f"The room {room!r} names {name!r}, which is not in {PACKAGE}. Change it in {__file__}.")
        found += files
    return found


def tests(room: str) -> list[str]:
    """The names of a room's test files, from the root of the checkout."""
    there = {path.stem: path for path in (ROOT / "tests").rglob("test_*.py")}
    wanted = [f"test_{name}" for name in ROOMS[room].tests.split()]
    if lost := [name for name in wanted if name not in there]:
        raise FileNotFoundError(f"The room {room!r} names {', '.join(lost)}, which is not there. Change it in {__file__}.")
    return [there[name].relative_to(ROOT).as_posix() for name in wanted]


def name_of(source: Path) -> str:
    return source.relative_to(PACKAGE).as_posix()
