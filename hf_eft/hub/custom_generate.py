"""Recipes for `generate(custom_generate=...)`: a folder whose few lines of code call [`generate`] of this module."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

from huggingface_hub import snapshot_download
from transformers import AutoConfig, PreTrainedModel

from .._version import __version__
from ..files import folder_for, replacing
from ..files.repositories import check_repository, is_commit, is_repo_id
from ..members.auto import auto_class
from ..members.devices import execution_device
from ..modeling_eft import EFTForCausalLM
from ..recipe.coefficients import number
from ..recipe.combination import REFERENCE, TUNED, Coefficient, Combination

Place: TypeAlias = "str | Path | tuple[str, str] | PreTrainedModel"

_SHIM = '''\
"""Emulated fine-tuning of the model that generates: `model.generate(custom_generate=..., trust_remote_code=True, ...)`."""

from hf_eft.hub.custom_generate import generate as emulate

TUNED = {tuned!r}
REFERENCE = {reference!r}
ALPHA = {alpha!r}


def generate(model, tuned=TUNED, reference=REFERENCE, **kwargs):
    if not kwargs.keys() & {{"alpha", "beta", "combination"}}:
        kwargs["alpha"] = ALPHA
    return emulate(model, tuned=tuned, reference=reference, **kwargs)
'''
_README = """\
# Emulated fine-tuning as a `custom_generate`

Whatever large model generates answers as if it had been tuned as a small one was: add, at every token, what fine-tuning changed in the
small one. The tuned and the reference model are named in `custom_generate/generate.py`; read it before you trust it.

```python
from huggingface_hub import snapshot_download
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{base}")  # put a larger one of the family here
tokenizer = AutoTokenizer.from_pretrained("{base}")
inputs = tokenizer("What is a heat pump?", return_tensors="pt", return_token_type_ids=False)
ids = model.generate(**inputs, custom_generate="{place}", trust_remote_code=True, max_new_tokens=64)
print(tokenizer.decode(ids[0], skip_special_tokens=True))
```

Needs `pip install hf-eft`. Besides what `generate` takes: `alpha` (the strength), `tuned` and `reference` (other models: a folder, a
repository and its commit as `("owner/name", "40 hexadecimal digits")`, or a model that is loaded).

## Risks

{risks}
"""
_READ = ["*.json", "*.safetensors"]  # of a repository: no code, nothing pickled
# The small models that a model was given, kept as long as it lives. They do not refer to it, so that it can be freed.
_loaded: WeakKeyDictionary[PreTrainedModel, dict[Any, PreTrainedModel]] = WeakKeyDictionary()


def generate(
    model: PreTrainedModel,
    *,
    tuned: Place,
    reference: Place,
    alpha: Coefficient | None = None,
    beta: Coefficient | None = None,
    combination: Combination | None = None,
    **kwargs: Any,
) -> Any:
    r"""
    Generate with a model as the base of an emulated fine-tuning; what a recipe of [`write_recipe`] runs.

    The result is that of [`EFTForCausalLM`] under every option of `generate`, with the tuned model's generation configuration as default.
    Models that are named are loaded once for each `model`, in their own dtype, on its device, and are freed with it.

    Args:
        model (`PreTrainedModel`): The base.
        tuned (`str`, `Path`, `tuple[str, str]` or `PreTrainedModel`):
            The model whose behaviour is wanted: a folder, a repository of the Hub and its commit, or a model that is loaded. A folder or
            repository of an adapter is put on `reference`.
        reference (as `tuned`): What it was before it was fine-tuned.
        alpha (`float`, *optional*): Strength of the behaviour delta; 1 if nothing else is given.
        beta (`float`, *optional*): Amplification of the up-scaling delta, instead of `alpha`.
        combination ([`Combination`], *optional*): Any other recipe of these members, instead of `alpha` and `beta`.
        **kwargs: What `generate` takes.

    Returns:
        As in transformers.

    Raises:
        `ValueError`: If a place is neither a folder nor a repository with a commit, or the models do not fit;
        `TypeError`: If a member is no model.
    """
    members = {name: _member(model, name, place) for name, place in ((TUNED, tuned), (REFERENCE, reference))}
    wrapper = EFTForCausalLM.from_models(model, **members, alpha=alpha, beta=beta, combination=combination)
    return wrapper.generate(**kwargs)


def write_recipe(
    folder: str | Path,
    tuned: str | Path,
    reference: str | Path,
    alpha: float = 1.0,
    revisions: Mapping[str, str] | None = None,
    repo_id: str | None = None,
) -> Path:
    r"""
    Write a folder for `model.generate(custom_generate=folder, trust_remote_code=True, ...)`, to be used as it is or to be published.

    Args:
        folder (`str` or `Path`):
            The folder, new or without a recipe. It gets a card, `custom_generate/generate.py` and `custom_generate/requirements.txt`.
        tuned (`str` or `Path`): The model whose behaviour is wanted: a repository of the Hub, or a folder.
        reference (`str` or `Path`): What it was before it was fine-tuned.
        alpha (`float`, *optional*, defaults to 1.0): Strength of the behaviour delta.
        revisions (`Mapping[str, str]`, *optional*): For repositories, their commits of 40 hexadecimal digits, by `"tuned"`, `"reference"`.
        repo_id (`str`, *optional*): Where the folder will be published, for the example in its card.

    Returns:
        `Path`: The folder.

    Raises:
        `ValueError`: If a place is neither a folder nor a repository with a commit, or alpha is no finite number;
        `FileExistsError`: If there is a recipe or a card already.
    """
    places = {TUNED: tuned, REFERENCE: reference}
    given = dict(revisions or {})
    if unknown := given.keys() - places.keys():
        raise ValueError(f"`revisions` has {sorted(unknown)}, expected commits by 'tuned', 'reference'.")
    if repo_id is not None:
        check_repository("recipe", repo_id)
    written = {name: _written(name, place, given.get(name)) for name, place in places.items()}
    alpha = number(TUNED, alpha)
    combination = Combination.emulate(alpha=alpha)
    root = Path(folder)
    files = {
        root / "custom_generate" / "generate.py": _SHIM.format(**written, alpha=alpha),
        root / "custom_generate" / "requirements.txt": f"hf-eft>={__version__}\n",
        root / "README.md": _card(combination, written, repo_id),
    }
    if there := [str(path) for path in files if path.exists()]:
        raise FileExistsError(f"There is {', '.join(there)} already. Choose another folder, or remove what is there.")
    with folder_for(root / "custom_generate"), replacing(*files) as partials:
        for partial, text in zip(partials, files.values(), strict=True):
            partial.write_text(text, encoding="utf-8")
    return root


def _member(model: PreTrainedModel, name: str, place: Place) -> Any:
    """A member, loaded if it is not: a model, or the folder of an adapter, which is put on the reference."""
    if not isinstance(place, (str, Path, tuple, list)):
        return place
    where, commit = _checked(name, *place) if isinstance(place, (tuple, list)) else _checked(name, place)
    device = execution_device(model)
    kept, key = _loaded.setdefault(model, {}), (where, commit, device)
    if key not in kept:
        folder = where if commit is None else snapshot_download(where, revision=commit, allow_patterns=_READ)
        if (Path(folder) / "adapter_config.json").is_file() and not (Path(folder) / "config.json").is_file():
            return folder  # transformers would load whatever repository the adapter names
        made = auto_class(AutoConfig.from_pretrained(folder))
        kept[key] = made.from_pretrained(folder, use_safetensors=True).to(device)
    return kept[key]


def _checked(name: str, where: Any, commit: str | None = None) -> tuple[str, str | None]:
    """A folder, or a repository with its commit."""
    if Path(where).is_dir() and commit is None:
        return str(Path(where).resolve()), None
    if not is_repo_id(where) or not is_commit(commit):
        raise ValueError(
            f"The member {name!r} must be a folder that is there, or a repository of the Hub with its commit of 40 hexadecimal digits, got "
            f"{where!r} and {commit!r}. Without a commit, what is loaded can change."
        )
    return str(where), commit


def _written(name: str, place: str | Path, commit: str | None) -> str | tuple[str, str]:
    where, commit = _checked(name, place, commit)
    return where if commit is None else (where, commit)


def _card(combination: Combination, written: Mapping[str, str | tuple[str, str]], repo_id: str | None) -> str:
    """The card of the folder. Folders of this machine are not named in it."""
    from huggingface_hub import ModelCard, ModelCardData

    from ..folders.card import TAGS
    from ..folders.card_text import risks

    published = [place[0] for place in written.values() if isinstance(place, tuple)]
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["custom_generate", *TAGS],
        base_model=published or None,
    )
    base = published[-1] if isinstance(written[REFERENCE], tuple) else "owner/larger-model"
    text = _README.format(base=base, place=repo_id or ".", risks=risks(combination))
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}"))
