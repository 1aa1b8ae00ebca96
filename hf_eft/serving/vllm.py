"""The same server by vLLM, in a process and an environment of its own: what is handed on, and what is refused before it starts."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import GenerationConfig

from ..configuration_eft import EFTConfig
from ..folders.places import Place, description_of
from ..recipe import described
from ..recipe.combination import Combination
from .asked import options_of

MODULE = "vllm_eft.serve"
# What vLLM reads of a generation configuration for requests that say nothing, and what each is to those who say nothing either.
_HEEDED = {"temperature": 1.0, "top_k": 50, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}
# What changes no token there, as it is of the loop of `generate` or of what it returns; or is decided elsewhere.
_ELSEWHERE = frozenset(
    "do_sample max_length max_new_tokens use_cache return_dict_in_generate bos_token_id pad_token_id eos_token_id "
    "decoder_start_token_id transformers_version _from_model_config num_return_sequences output_attentions output_hidden_states "
    "output_scores output_logits".split()
)
_NOTHING: dict[str, tuple[Any, ...]] = {
    "num_beams": (1,), "min_length": (0,), "min_new_tokens": (0,), "no_repeat_ngram_size": (0,), "typical_p": (1.0,), "top_h": (1.0,),
    "epsilon_cutoff": (0.0,), "eta_cutoff": (0.0,), "encoder_repetition_penalty": (1.0,), "encoder_no_repeat_ngram_size": (0,),
    "diversity_penalty": (0.0,), "num_beam_groups": (1,), "guidance_scale": (1.0,),
}  # fmt: skip
_OF_BEAMS = ("length_penalty", "early_stopping")  # these say nothing without beams, which are refused
# Options of vLLM that are said here, and how.
_OURS = {
    "--model": "--model, or the members", "--host": "--host", "--port": "--port", "--served-model-name": "--model-name",
    "--api-key": "HF_EFT_API_KEY", "--generation-config": "--generation-config", "--override-generation-config": "--generation-config",
    "--dtype": "--dtype", "--hf-overrides": "--alpha, --beta, --weight or --truncation", "--trust-remote-code": "vLLM's own models",
    "--uds": "--host and --port", "--root-path": "a proxy that leaves paths as they are", "--config": "the options themselves",
}  # fmt: skip
# Whether the plugin and vLLM are there, without importing them, which takes seconds.
_LOOK = """
import importlib.util, sys

def has(name):
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False

sys.exit(2 if not has("vllm_eft.serve") else 3 if not has("vllm") else 0)
"""
_SAFE_PATH = {"PYTHONSAFEPATH": "1"}  # a folder of the same name where one stands is not the plugin
_JSON_AS_HERE = {"backend": "xgrammar", "disable_any_whitespace": True}


@dataclass(frozen=True)
class Served:
    r"""
    What vLLM is to serve.

    Args:
        folder (`Path`): A saved combination, weights included.
        config ([`EFTConfig`]): Its configuration.
        dtype (`str`, *optional*, defaults to `"auto"`): Of all members; `"auto"` is the one that all are saved in.
        combination ([`Combination`], *optional*): The recipe, in place of the folder's.
        generation_config (`str` or `Mapping[str, Any]`, *optional*): Options of `generate` that hold where a request says nothing.
        more (`Sequence[str]`, *optional*): vLLM's own options.

    Raises:
        `ValueError`: If vLLM cannot heed one of them, naming it.
    """

    folder: Path
    config: EFTConfig
    dtype: str = "auto"
    combination: Combination | None = None
    generation_config: str | Mapping[str, Any] | None = None
    more: Sequence[str] = ()
    options: list[str] = field(init=False)
    temperature: float | None = field(init=False)

    def __post_init__(self) -> None:
        check_more(self.more)
        defaults, temperature = _defaults(self.folder, self.generation_config)
        if ruled := described.ruled(self.config.combination) if self.combination is None else self.combination.ruled:
            raise ValueError(
                f"vLLM's plugin knows no rules, and the recipe has some for {', '.join(map(repr, ruled))}. Serve it with "
                "`--engine transformers`, or give numbers."
            )
        recipe = Combination.from_dict(self.config.combination) if self.combination is None else self.combination
        if recipe.phased:
            raise ValueError(
                f"vLLM's plugin knows no phases, and the recipe has some: {recipe}. Serve it with `--engine transformers`, or give numbers."
            )
        overrides = {} if self.combination is None else {"combination": self.combination.to_dict()}
        options = [
            "--generation-config", "auto", "--override-generation-config", json.dumps(defaults), "--middleware",
            "vllm_eft.http.Parameters", "--middleware", "vllm_eft.http.Key", "--disable-uvicorn-access-log",
        ]  # fmt: skip
        if (dtype := _dtype(self.config, self.dtype)) is not None:
            options += ["--dtype", dtype]
        if overrides:
            options += ["--hf-overrides", json.dumps(overrides)]
        if (length := _length(self.config)) is not None and not _says(self.more, "--max-model-len"):
            options += ["--max-model-len", str(length)]
        if not _says(self.more, "--structured-outputs-config"):
            options += ["--structured-outputs-config", json.dumps(_JSON_AS_HERE)]
        object.__setattr__(self, "options", [*options, *self.more])
        object.__setattr__(self, "temperature", temperature)

    def command(self, python: str, host: str, port: int, name: str) -> list[str]:
        """The command line of the server. The key is not on it: everyone on the machine reads command lines."""
        where = ["--model", str(self.folder), "--served-model-name", name, "--host", host, "--port", str(port)]
        return [python, "-m", MODULE, "run", *where, *self.options]

    def environment(self, api_key: str | None, given: Mapping[str, str] = os.environ) -> dict[str, str]:
        """The environment of the server, with the key in it."""
        own = {
            name: value for name, value in given.items() if name not in ("HF_EFT_API_KEY", "VLLM_EFT_TEMPERATURE")
        } | _SAFE_PATH
        if api_key is not None:
            own["VLLM_API_KEY"] = api_key
        if self.temperature is not None:
            own["VLLM_EFT_TEMPERATURE"] = str(self.temperature)
        return own


def find(where: str) -> tuple[Place, bool]:
    """Where a combination lies, and whether it is a recipe that refers to its members."""
    place = Place.of(where)
    found = description_of(place)
    return place, bool(found.get("references"))


def read_config(folder: Path) -> EFTConfig:
    """The configuration of a saved combination, checked."""
    return EFTConfig.from_dict(description_of(Place.of(folder)))


def check_python(python: str) -> str:
    r"""
    The Python of the environment that has vLLM, as it is started.

    Raises:
        `ValueError`: If there is none, or it does not know the plugin.
    """
    if os.name != "posix":
        raise ValueError("vLLM runs on Linux: leave out `--engine vllm` here.")
    found = shutil.which(str(Path(python).expanduser()))
    if found is None:
        raise ValueError(
            f"`--python` {python!r} is no program that can be run: name the Python of the environment that has vLLM."
        )
    status = subprocess.run([found, "-c", _LOOK], **_quiet()).returncode
    if status:
        missing = {2: "vllm-eft", 3: "vLLM"}.get(status, "a Python that runs")
        raise ValueError(
            f"There is no {missing} in the environment of {found!r}: install vllm-eft into the environment that has vLLM, and name its "
            "Python with `--python`."
        )
    return found


def check_folder(python: str, folder: Path) -> str:
    r"""
    Have the plugin look at a folder, in its own environment and before an engine is there.

    Returns:
        `str`: Which versions will serve it.

    Raises:
        `ValueError`: If the plugin refuses it, or does not answer.
    """
    done = subprocess.run([python, "-m", MODULE, "check", str(folder)], **_quiet(), text=True)
    try:
        told = json.loads(done.stdout.splitlines()[-1])
        versions, refused = f"vLLM {told['vllm']}, vllm-eft {told['vllm_eft']}", told["refused"]
    except (LookupError, ValueError, TypeError):
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise ValueError(f"vllm-eft in {python!r} cannot look at {str(folder)!r}: {last}") from None
    if refused is not None:
        raise ValueError(f"vLLM cannot serve this combination: {refused}")
    return versions


def _quiet() -> dict[str, Any]:
    return {"stdin": subprocess.DEVNULL, "capture_output": True, "env": {**os.environ, **_SAFE_PATH}}


def check_more(more: Sequence[str]) -> None:
    """Raise a `ValueError` if options of vLLM's own say what is said here."""
    if more and not more[0].startswith("-"):
        raise ValueError(f"What follows `--` are options of vLLM, got {more[0]!r}.")
    for name in _names(more):
        if meant := next((ours for ours in _OURS if ours == name or (len(name) > 4 and ours.startswith(name))), None):
            raise ValueError(f"{name} is not for vLLM itself: {meant} is said by {_OURS[meant]} here.")


def _names(more: Sequence[str]) -> list[str]:
    return [each.partition("=")[0].replace("_", "-") for each in more if each.startswith("--")]


def _says(more: Sequence[str], option: str) -> bool:
    """Whether options of vLLM's own have this one, or a part of it."""
    return any(name == option or name.startswith(f"{option}.") for name in _names(more))


def _defaults(folder: Path, given: str | Mapping[str, Any] | None) -> tuple[dict[str, Any], float | None]:
    """What holds where a request says nothing; and, if that is greedy, at which temperature requests draw that do not say it."""
    own = options_of(given)
    if unheeded := sorted(
        own.keys() - _HEEDED.keys() - {"do_sample"} - {name for name, nothing in _NOTHING.items() if own.get(name) in nothing}
    ):
        why = (
            "would be a limit for all requests there: let them say `max_tokens`"
            if unheeded[0] == "max_new_tokens"
            else "is not heeded by vLLM"
        )
        raise ValueError(f"`--generation-config`: `{unheeded[0]}` {why}. Leave it out, or use `--engine transformers`.")
    config = GenerationConfig.from_pretrained(folder) if (folder / "generation_config.json").is_file() else GenerationConfig()
    config.update(**own)
    for name, value in config.to_dict().items():
        if value is None or name in _HEEDED or name in _ELSEWHERE or name in _OF_BEAMS or value in _NOTHING.get(name, ()):
            continue
        if value is False or value in ([], {}):
            continue
        raise ValueError(
            f"The combination's generation configuration has `{name}` = {value!r:.80}, which vLLM does not heed: remove it from "
            f"generation_config.json, or use `--engine transformers`."
        )
    defaults = {name: usual if (value := getattr(config, name, None)) is None else value for name, usual in _HEEDED.items()}
    if config.do_sample:
        return defaults, None
    return {**defaults, "temperature": 0.0}, float(defaults["temperature"])


def _dtype(config: EFTConfig, dtype: str) -> str | None:
    """vLLM has one for all members, and by its own `auto` would take fewer bits than are saved."""
    if dtype != "auto":
        return dtype
    found = {
        str(member.dtype).removeprefix("torch."): name
        for name, member in config.member_configs.items()
        if member.dtype is not None
    }
    if len(found) > 1:
        said = ", ".join(f"{kind} ({name})" for kind, name in found.items())
        raise ValueError(f"The members are saved in {said}, and vLLM has one dtype for all of them: choose it with `--dtype`.")
    return next(iter(found), None)


def _length(config: EFTConfig) -> int | None:
    """How many positions all members have."""
    texts = [member.get_text_config(decoder=True) for member in config.member_configs.values()]
    found = [int(most) for text in texts if (most := getattr(text, "max_position_embeddings", None)) is not None]
    return min(found, default=None)
