"""Commands that run the models for others: serve, by transformers or by vLLM, and playground."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ..recipe.phases import Phase
from .app import Failure, app, notes, said
from .models import Models
from .options import option, with_groups

_PICTURES = "Pictures in requests"
_VLLM = "With --engine vllm"

Host = Annotated[str, typer.Option(help="The address to listen at; the default is reached from this machine only.")]


@app.command(
    context_settings={"allow_extra_args": True},
    epilog="With --engine vllm, options of vLLM itself may follow --, as in: --engine vllm --model FOLDER -- --tensor-parallel-size 2",
)
@with_groups
def serve(
    context: typer.Context,
    models: Models,
    host: Host = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port to listen at.")] = 8000,
    model_name: Annotated[str, typer.Option(help="What clients call the model.")] = "eft",
    engine: Annotated[
        Literal["transformers", "vllm"],
        typer.Option(
            help="What runs the models: transformers in this process, or vLLM with the plugin vllm-eft in another one."
        ),
    ] = "transformers",
    python: Annotated[
        str | None,
        option(_VLLM, "The Python of the environment that has vLLM and vllm-eft; this one by default.", metavar="PATH"),
    ] = None,
    continuous_batching: Annotated[
        bool, typer.Option("--continuous-batching", help="Let requests that come in together run together. vLLM always does.")
    ] = False,
    speculative: Annotated[
        bool, typer.Option("--speculative", help="Let small members draft for greedy requests: the same tokens, sooner.")
    ] = False,
    generation_config: Annotated[
        str | None,
        typer.Option(
            help="Options of generate that hold where a request says nothing, as JSON: '{\"repetition_penalty\": 1.0}'; by default the "
            "tuned model's.",
            show_default=False,
        ),
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option(
            envvar="HF_EFT_API_KEY", help="What clients must show; better in the environment than here.", show_default=False
        ),
    ] = None,
    image_host: Annotated[
        list[str] | None,
        option(_PICTURES, "A host that pictures may be fetched from, for each; without, they are data: URLs.", metavar="HOST"),
    ] = None,
    max_image_bytes: Annotated[
        int | None, option(_PICTURES, "How many bytes the pictures of a request may have together; 20 MiB by default.")
    ] = None,
    max_image_pixels: Annotated[
        int | None, option(_PICTURES, "How many pixels the pictures of a request may have together; 2^25 by default.")
    ] = None,
) -> None:
    """Serve the combination to OpenAI clients. Whoever reaches it may choose coefficients, which can undo safety training."""
    from .. import serving
    from ..serving.images import Limits

    try:
        given = serving.read_options(generation_config)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--generation-config") from None
    try:
        Limits.of(max_image_bytes, max_image_pixels, image_host or ())
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--image-host, --max-image-...") from None
    if speculative and (continuous_batching or engine == "vllm"):
        raise typer.BadParameter(
            "drafts are for requests that transformers serves one by one; vLLM's are said behind --, as --speculative-config",
            param_hint="--speculative",
        )
    pictures = {"image_hosts": image_host or [], "max_image_bytes": max_image_bytes, "max_image_pixels": max_image_pixels}
    if engine == "vllm":
        if any(value not in (None, []) for value in pictures.values()):
            raise typer.BadParameter("vLLM's plugin serves text alone", param_hint="--image-host, --max-image-...")
        _by_vllm(models, host, port, model_name, python or sys.executable, given, api_key, context.args)
        return
    if context.args:
        raise typer.BadParameter(f"options of another server are for --engine vllm, got {' '.join(context.args)}")
    if python is not None:
        raise typer.BadParameter("another environment is for --engine vllm", param_hint="--python")
    options = {
        "model_name": model_name,
        "continuous_batching": continuous_batching,
        "speculative": speculative,
        "generation_config": given,
        "api_key": api_key,
        **pictures,
    }
    _run(models, host, port, serving.check_installed, serving.serve, options)


def _run(
    models: Models,
    host: str,
    port: int,
    check: Callable[[], None],
    run: Callable[..., Any],
    options: dict[str, Any] | None = None,
) -> None:
    """Run a server or a page at an address. What can be wrong without the models is found before they are loaded."""
    check()
    _free(host, port)
    model, tokenizer = models.load()
    run(model, tokenizer, host=host, port=port, **(options or {}), **_processors(models, model))


def _processors(models: Models, model: Any) -> dict[str, Any]:
    """The option that says them, if every member that there is can be shown pictures."""
    found = models.processors(model)
    return {"processors": found} if found.keys() == model.members.keys() else {}


def _free(host: str, port: int) -> int:
    """The port, if it can be listened at; it may be taken until the models are there. For 0, a free one."""
    try:
        with socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET) as listening:
            return int(listening.getsockname()[1])
    except OSError as error:
        raise Failure(f"Cannot listen on {host}:{port} ({error.strerror}). Choose another --port or --host.") from error


def _by_vllm(
    models: Models, host: str, port: int, name: str, python: str, given: dict[str, Any], api_key: str | None, more: list[str]
) -> None:
    """Have vLLM serve the combination, in a process of its own, until one of the two ends."""
    from .. import serving
    from ..programs.child import Child, answers
    from ..serving import vllm

    if models.device is not None:
        raise typer.BadParameter(
            "vLLM takes the devices that it sees: choose them with CUDA_VISIBLE_DEVICES", param_hint="--device"
        )
    if api_key == "":
        raise typer.BadParameter(
            "vLLM takes an empty key for none, and lets everyone in: give one, or leave it out", param_hint="--api-key"
        )
    if models.trust_remote_code:
        raise typer.BadParameter("vLLM's plugin runs vLLM's own models and no other code", param_hint="--trust-remote-code")
    with contextlib.ExitStack() as stack:
        try:
            vllm.check_more(more)
            python = vllm.check_python(python)
            port = _free(host, port)
            serving.warn_if_open(host, api_key or os.environ.get("VLLM_API_KEY"))
            folder = stack.enter_context(_folder(models))
            config = vllm.read_config(folder)
            served = vllm.Served(folder, config, models.dtype, _recipe(models, config), given, more)
            with notes.status("Looking at the combination in vLLM's environment"):
                versions = vllm.check_folder(python, folder)
        except (ValueError, OSError) as error:
            raise typer.BadParameter(said(error)) from error
        notes.print(
            f"Starting {versions}: that takes a minute or more. What follows is what it prints.", style="dim", soft_wrap=True
        )
        child = Child(served.command(python, host, port, name), served.environment(api_key))
        at = f"Serving {name!r} at {serving.url_of(host, port)}/v1"
        status = child.run(lambda: answers(host, port), lambda: typer.echo(at))
    if status and not child.told:
        failure = Failure(
            f"vLLM ended with status {status} {'while' if child.served else 'before'} it served: what it printed says why."
        )
        failure.exit_code = status
        raise failure
    raise typer.Exit(status)


def _recipe(models: Models, config: Any) -> Any:
    """The recipe that the command line gives in place of a folder's; that of members is in the folder that was made of them."""
    return (
        None
        if models.model is None
        else models.recipe_for(config.member_names, [Phase.from_dict(each) for each in config.combination.get("phases", [])])
    )


@contextlib.contextmanager
def _folder(models: Models) -> Iterator[Path]:
    """A saved combination: the one that is named, or one that is made of members or of a recipe and removed afterwards."""
    from .. import hub
    from ..serving import vllm

    where = models.places()
    if isinstance(where, str):
        place, refers = vllm.find(where)
        if not refers:
            yield place.folder()
            return
    with tempfile.TemporaryDirectory(prefix="hf-eft-serve-") as made:
        folder = Path(made, "combination")
        notes.print(
            f"vLLM reads one folder: the members are written to {folder}, which is removed at the end. To keep one: `hf-eft compose`.",
            style="dim",
            soft_wrap=True,
        )
        with notes.status("Writing") as status:
            if isinstance(where, str):
                model, tokenizers = hub.load(where, allow_references=models.allow_references, progress=status.update)
                model.save_pretrained(folder, tokenizers=tokenizers)
            else:
                hub.compose(where, folder, combination=models.recipe_for(where), progress=status.update)
        yield folder


@app.command()
@with_groups
def playground(
    models: Models,
    host: Host = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port to listen at.")] = 7860,
) -> None:
    """Open a page with sliders for the recipe, and base, tuned and combined side by side."""
    from .. import playground as page

    _run(models, host, port, page.check_installed, page.launch)
