"""
A combination as a folder:

    config.json               the recipe, and every member's configuration
    generation_config.json    the combination's
    rules.safetensors         the weights of the recipe's gates, if it has any
    README.md                 its card
    tokenizer.json, ...       the tokenizer that prompts are written with, in a processor if it is of a member that sees
    members/<name>/           a member: a folder that transformers (or, for an adapter, PEFT) loads alone;
                              and its tokenizer or processor, where it differs from the one above; always, where members are combined
                              in units or bytes, which are computed anew from these
"""

from __future__ import annotations

import contextlib
import copy
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from transformers import GenerationConfig, PreTrainedModel
from transformers.utils import logging

from ..configuration_eft import EFTConfig
from ..files import folder_for
from ..files.trust import CONFIG, MODEL_TYPE, check_tree, check_weights, read_json
from ..members.adapters import Adapted, own_weights
from ..members.adapters.checks import checked_folder
from ..members.auto import classes_of, sees
from ..members.checks import check_model
from ..members.combined import Combined
from ..members.learnt import learnt_of
from ..members.members import Members
from ..members.membership import describe, describe_anew
from ..members.parts import Parts
from ..members.quantised import plain_conversions
from ..prompts.pictures import tokenizer_of, tokenizers_of
from ..recipe.combination import Combination
from ..units.members import check_of_one_model, in_vocabulary, spoken
from .gates import GATES, write_gates
from .loading import announced, check_comes_back, load_model
from .processing import (
    OF_PROCESSING,
    TOKENIZER_CONFIG,
    check_processing,
    read_processing,
    write_own_processing,
    write_processing,
)

logger = logging.get_logger(__name__)

MEMBERS = "members"


def write(
    model: Combined,
    folder: Path,
    tokenizers: Mapping[str, Any],
    card: str | None = None,
    state_dict: Mapping[str, Any] | None = None,
    **options: Any,
) -> None:
    r"""
    Write a combination as a folder. Nothing in the folder is touched before all is written beside it.

    Args:
        model ([`EFTForCausalLM`]): The combination. It and its members are left as they are.
        folder (`Path`): Where to. An earlier combination there is replaced; a `README.md` there is kept.
        tokenizers (`Mapping[str, PreTrainedTokenizerBase or ProcessorMixin]`): The members' tokenizers, by name; may be empty.
        card (`str`, *optional*): The text of `README.md`.
        state_dict (`Mapping[str, torch.Tensor]`, *optional*): The combination's weights, in place of those that it has.
        **options: Passed on to each member's `save_pretrained` (`max_shard_size`, `save_original_format`).

    Raises:
        `ValueError`: If the folder holds another model, or a member could not be loaded from a folder.
    """
    parts, models, adapters = parts_of(model)
    check_target(folder)
    for name, part in parts.models.items():
        check_model(name, part)
        _check_class(name, part)
    for name, part in parts.own.items():
        _check_unchanged(name, part)
    if unknown := set(tokenizers) - set(model._members.names):
        raise ValueError(f"`tokenizers` has {sorted(unknown)}, but the members are {list(model._members.names)}.")
    check_processing(tokenizers)
    if state_dict is not None and parts.adapters:
        raise ValueError("`state_dict` cannot be given where members are adapters: their weights are views of another's.")
    with staged(folder) as staging:
        new = staging / "new"
        for name, part in parts.own.items():
            write_member(name, part, new / MEMBERS / name, _part_of(state_dict, name), options)
        for name, trunk in parts.trunks.items():
            adapted = next(member for member in adapters.values() if member.trunk is trunk and member.adapter)
            write_member(name, own_weights(name, adapted), new / MEMBERS / name, None, options)
        for name in parts.adapters:
            write_adapter(models[name], adapters[name], new / MEMBERS / name)
        if model.vocabulary is None:
            write_processing(tokenizers, model._members.names, new, new / MEMBERS, staging / "tokenizers")
        else:
            write_own_processing(tokenizers, model.tokenizers if model.vocabulary == "tokens" else {}, new, new / MEMBERS)
        config = copy.deepcopy(model.config)
        for key in config.keys_of_members() if model.vocabulary is not None else ():
            delattr(config, key)  # of views, which are made anew
        config.architectures, config.dtype = [type(model).__name__], model.dtype
        # Who the members are is the model's to say, whatever was set on its configuration.
        config.member_names, config.shared_members, config.adapters = list(model._members.names), parts.shared, parts.adapters
        known = (
            tokenizers_of(tokenizers) if model.vocabulary is None else model._spellers
        )  # of the ids that markers of phases are
        config.references, config.combination = {}, model.combination.spelled(known).to_dict()
        config.vocabulary = model.vocabulary
        config.tokenizer_members = list(model._members.vocabulary.tokenizers)
        for key, name in config.keys_of_members().items():
            if getattr(config, key, None) is None:
                setattr(config, key, copy.deepcopy(parts.models[name].config))
            member_config = getattr(config, key)
            member_config.architectures, member_config.dtype = [type(parts.models[name]).__name__], parts.models[name].dtype
            # Some weights are written in another form than they were loaded in, which the member's own file says.
            if (written := read_json(new / MEMBERS / name / CONFIG).get("quantization_config")) is not None:
                member_config.quantization_config = written
        config.save_pretrained(new)
        write_gates(model.combination, new)
        model.generation_config.save_pretrained(new)
        if card is not None and not (folder / "README.md").exists():
            (new / "README.md").write_text(card, encoding="utf-8")
        install(new, folder, staging / "old")


def read(
    cls: Any,
    folder: Path,
    config: EFTConfig,
    recipe: Combination,
    each: Mapping[str, Mapping[str, Any]],
    progress: Callable[[str], None] | None,
) -> tuple[Combined, dict[str, dict[str, Any]]]:
    r"""
    Read a saved combination.

    Args:
        cls (`type`): What to make of it.
        folder (`Path`): The folder.
        config ([`EFTConfig`]): Its configuration. That of a member in its own folder is for those who load it alone.
        recipe ([`Combination`]): Its recipe, or one in its place.
        each (`Mapping[str, Mapping[str, Any]]`): By member, what its loading call is told (`dtype`, `device_map`, ...).
        progress (`Callable`, *optional*): Told which member comes next.

    Returns:
        `tuple`: The combination, and what the loading calls reported, by member.
    """
    check_tree(folder)
    places = {name: folder / MEMBERS / name for name in config.member_configs}
    for name, place in places.items():
        check_weights(name, place)
    on_others = {name: checked_folder(name, folder / MEMBERS / name) for name in config.adapters}
    models: dict[str, Any] = {}
    reports: dict[str, dict[str, Any]] = {}
    for name in announced({name: str(place) for name, place in places.items()}, progress):
        options = {"local_files_only": True, **each.get(name, {})}
        models[name], reports[name] = load_model(name, places[name], config.member_configs[name], **options)
    on = {name: Adapted(models[trunk], on_others[name]) for name, trunk in config.adapters.items()}
    owners = {name: config.shared_members.get(name, name) for name in config.member_names}
    given = {name: {**models, **on}[owner] for name, owner in owners.items()}
    seeing = {name: sees(models[config.adapters.get(owner, owner)].config) for name, owner in owners.items()}
    tokenizers = read_processing(folder, folder / MEMBERS, seeing, own=config.vocabulary is not None)
    known = {name: tokenizers[name] for name in config.tokenizer_members if name in tokenizers}
    for name, each_model in models.items() if config.vocabulary is not None else ():
        if name in tokenizers:
            check_of_one_model(name, each_model, tokenizer_of(tokenizers[name]))
    views, beneath = in_vocabulary(config.vocabulary, given, recipe.coefficients, tokenizers)
    members = Members(views, recipe.coefficients, known if beneath is None else None)
    if beneath is None:
        for key, name in config.keys_of_members().items():
            setattr(
                config, key, copy.deepcopy(models[name].config)
            )  # as loaded: with its dtype, its attention, its quantization
    else:
        describe_anew(config, describe(members, recipe))
    config.dtype = config.text_config.dtype
    model = cls(config, members, recipe)
    model._held_tokenizers, model._beneath = spoken(config.vocabulary, tokenizers), beneath
    if (folder / "generation_config.json").is_file():
        try:
            model.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
        except Exception as error:  # what is in a file decides what is raised
            raise ValueError(f"The generation_config.json in {str(folder)!r} cannot be read: {error}") from error
    return model.eval(), reports


def parts_of(model: Combined) -> tuple[Parts, Mapping[str, PreTrainedModel], Mapping[str, Adapted]]:
    """What there is to save of a combination, each member's own model, and which of them are adapters."""
    if model._beneath is None:
        return Parts.of(model._members), model.members, model._members.adapters
    parts, models = model._beneath.parts(model.members)
    return parts, models, model._beneath.adapters


# What is written ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """A place to write in before anything is replaced: in the folder, whose file system it shares. What fails leaves nothing behind."""
    with folder_for(folder), tempfile.TemporaryDirectory(prefix=".saving-", dir=folder) as staging:
        yield Path(staging)


def write_member(
    name: str,
    model: PreTrainedModel,
    folder: Path,
    state_dict: dict[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
) -> None:
    """Write a member with weights of its own into a new folder; it is left as it is."""
    check_comes_back(name, model)
    # `save_pretrained` writes its dtype and class into the configuration: into a copy, then.
    shell = copy.copy(model)
    shell.config = copy.deepcopy(model.config)
    for key in ("auto_map", "transformers_weights"):
        shell.config.__dict__.pop(key, None)
    if (conversions := plain_conversions(model)) is not None:
        shell._weight_conversions = conversions
    folder.mkdir(parents=True)
    shell.save_pretrained(folder, state_dict=state_dict, **(options or {}))


def write_adapter(view: Any, member: Adapted, folder: Path) -> None:
    """Write an adapter that is a member into a new folder, with what it says of how it learnt."""
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    adapter = member.adapter if isinstance(member.adapter, str) else next(iter(view.peft_config))
    config = copy.deepcopy(view.peft_config[adapter])
    config.inference_mode = True
    # No file says what an adapter is put on, or where code comes from.
    config.base_model_name_or_path = config.revision = config.auto_mapping = None
    weights = get_peft_model_state_dict(view, adapter_name=adapter, save_embedding_layers=False)
    folder.mkdir(parents=True)
    config.save_pretrained(str(folder))
    # The names that PEFT gives what is in a `PeftModel`; copies, as safetensors keeps no tensor twice.
    save_file(
        {f"base_model.model.{key}": value.detach().clone().contiguous() for key, value in weights.items()},
        folder / "adapter_model.safetensors",
        metadata={"format": "pt"},
    )
    if (learnt := learnt_of(member.trunk, member.adapter)) is not None:
        learnt.write(folder)


def _part_of(state_dict: Mapping[str, Any] | None, name: str) -> dict[str, Any] | None:
    if state_dict is None:
        return None
    return {key.removeprefix(f"{name}."): value for key, value in state_dict.items() if key.startswith(f"{name}.")}


def install_recipe(config: EFTConfig, recipe: Combination, folder: Path, card: str) -> None:
    """Write a recipe folder: a configuration, weights of gates and a card; a `README.md` that is there is kept."""
    check_target(folder)
    if (folder / MEMBERS).exists():
        raise ValueError(
            f"The folder {str(folder)!r} holds saved members, which a recipe would leave behind. Write it into another one."
        )
    with staged(folder) as staging:
        new = staging / "new"
        new.mkdir()
        config.save_pretrained(new)
        write_gates(recipe, new)
        if not (folder / "README.md").exists():
            (new / "README.md").write_text(card, encoding="utf-8")
        install(new, folder, staging / "old")


def install(new: Path, folder: Path, old: Path, gone: Iterable[str] = (MEMBERS, GATES)) -> None:
    """
    Put what was written in its place, by renaming: files that are mapped into memory stay what they are. Of `gone`, what is not new is
    taken away. What fails half way is taken back. The configuration goes first and comes last: wherever it is cut off for good, a folder
    without one is no combination.
    """
    stale = {*gone, *(path.name for path in new.iterdir())}
    if (new / TOKENIZER_CONFIG).is_file() or any(new.glob(f"{MEMBERS}/*/{TOKENIZER_CONFIG}")):
        stale |= {path.name for pattern in OF_PROCESSING for path in folder.glob(pattern)}
    moves = [(folder / name, old / name) for name in sorted(stale, key=_not_config) if (folder / name).exists()]
    moves += [(path, folder / path.name) for path in sorted(new.iterdir(), key=_not_config, reverse=True)]
    old.mkdir()
    try:
        for path, target in moves:
            path.replace(target)
    except BaseException:
        for path, target in reversed(moves):
            if not path.exists() and target.exists():
                target.replace(path)
        raise


def _not_config(path: Path | str) -> bool:
    return Path(path).name != CONFIG


# What is refused ------------------------------------------------------------------------------------------------------


def check_target(folder: Path) -> None:
    """Raise a `ValueError` if saving into this folder would lose another model."""
    if folder.is_file():
        raise ValueError(f"{str(folder)!r} is a file, expected a folder to save into.")
    if not (folder / CONFIG).is_file():
        if (folder / MEMBERS).exists():
            raise ValueError(
                f"The folder {str(folder)!r} has a folder {MEMBERS!r} of something else, which would be lost. Save into another one."
            )
        return
    found = read_json(folder / CONFIG).get("model_type")
    if found != MODEL_TYPE:
        raise ValueError(
            f"The folder {str(folder)!r} holds a model of type {found!r}, which would be lost. Save into another one."
        )


def _check_class(name: str, model: PreTrainedModel) -> None:
    expected = classes_of(model.config)
    if model.is_remote_code() or type(model).__name__ not in expected:
        raise ValueError(
            f"The member {name!r} is a {type(model).__name__}, and `AutoModelForCausalLM` makes "
            f"{' or '.join(f'a {each}' for each in expected) or 'nothing'} of its configuration: a folder could not bring it back. A "
            "recipe folder refers to it where it is: `hf_eft.hub.compose(..., references=True)`."
        )


def _check_unchanged(name: str, model: PreTrainedModel) -> None:
    if hasattr(model, "peft_config"):
        raise ValueError(
            f"PEFT put the adapters {list(model.peft_config)} into the model of the member {name!r} after it was combined, so that its "
            "weights have other names. Combine anew, with the adapter as a member."
        )
