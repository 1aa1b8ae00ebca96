"""`hf-eft`: emulated fine-tuning from the command line."""

from __future__ import annotations

import difflib
import json
import sys
from typing import Annotated, Any

try:
    import typer
    from rich.console import Console
except ImportError as error:  # the extra is not installed
    raise SystemExit(f"The command line needs the extra `cli` ({error.name} is missing): pip install 'hf-eft[cli]'") from None

app = typer.Typer(
    help="Emulated fine-tuning: a large base model behaves as if it had been tuned as a small one was.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console()
notes = Console(stderr=True)

Folder = Annotated[str | None, typer.Option(metavar="FOLDER_OR_ID", show_default=False)]


@app.callback()
def _root() -> None:
    """Emulated fine-tuning: a large base model behaves as if it had been tuned as a small one was."""


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    epilog="Any other option of `generate` may follow, as in: --num-beams 4 --top-p 0.9 --do-sample true --repetition-penalty 1.1",
)
def generate(
    context: typer.Context,
    prompt: Annotated[str | None, typer.Argument(help="What to continue. Read from the standard input if left out.")] = None,
    base: Folder = None,
    tuned: Folder = None,
    reference: Folder = None,
    alpha: Annotated[float | None, typer.Option(help="Strength of what fine-tuning changed (1 if nothing is given).")] = None,
    beta: Annotated[float | None, typer.Option(help="Amplification of what scale changed, instead of alpha.")] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Wrap the prompt in the tuned model's chat template.")] = False,
    system: Annotated[str | None, typer.Option(help="A system message for --chat.")] = None,
    stream: Annotated[bool, typer.Option(help="Print tokens as they come (not with beams).")] = True,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 64,
    seed: Annotated[int | None, typer.Option(help="Seed for sampling.")] = None,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    device: Annotated[
        str | None, typer.Option(help="Where the models run, as in cuda:0. The fastest there is by default.")
    ] = None,
) -> None:
    """Continue a prompt with three models. Without models, the embedded tiny family answers."""
    # An unknown option before the prompt arrives as the prompt, with the rest behind it.
    options, positional = generation_options([*([] if prompt is None else [prompt]), *context.args])
    if len(positional) > 1:
        raise typer.BadParameter(f"expected one prompt, got {positional}; quote it, and give every option a value")
    prompt = positional[0] if positional else sys.stdin.read().rstrip("\n")
    if not prompt.strip():
        raise typer.BadParameter("the prompt is empty: give one as an argument or on the standard input", param_hint="PROMPT")
    given = {"base": base, "tuned": tuned, "reference": reference}
    model, tokenizer = load(given, alpha, beta, dtype, device)
    run(
        model,
        tokenizer,
        prompt_ids(tokenizer, prompt, chat, system),
        stream,
        seed,
        {"max_new_tokens": max_new_tokens, **options},
    )


@app.command()
def demo(
    questions: Annotated[int, typer.Option(min=1, help="How many held-out questions are shown.")] = 5,
    asked: Annotated[int, typer.Option(min=1, max=1200, help="How many are asked in all.")] = 120,
) -> None:
    """Ask the embedded family what fine-tuning never showed it: the small tuned model, the large base and the combination."""
    from .demo import run_demo

    run_demo(console, questions, max(questions, asked))


@app.command()
def check(
    base: Annotated[str, typer.Argument(metavar="BASE", help="Folder or Hub id.")],
    tuned: Annotated[str, typer.Argument(metavar="TUNED", help="Folder or Hub id.")],
    reference: Annotated[str, typer.Argument(metavar="REFERENCE", help="Folder or Hub id.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Do these models go together? Looks at configurations and tokenizers; loads no weights. Exits with 1 if something is refused."""
    from dataclasses import asdict

    from .compatibility import check_members
    from .report import findings_table

    with notes.status("Reading configurations and tokenizers"):
        findings = check_members({"base": base, "tuned": tuned, "reference": reference})
    if as_json:
        typer.echo(json.dumps([asdict(finding) for finding in findings], indent=1))
    else:
        console.print(findings_table(findings))
    if any(finding.level == "refused" for finding in findings):
        raise typer.Exit(1)


def generation_options(arguments: list[str]) -> tuple[dict[str, Any], list[str]]:
    """`--num-beams 4 --do-sample true` as options of `generate`, and what is no option. Values are read as JSON where they are."""
    from transformers import GenerationConfig

    known = {name for name in GenerationConfig().to_dict() if not name.startswith("_")}
    options: dict[str, Any] = {}
    positional: list[str] = []
    rest = list(arguments)
    while rest:
        flag = rest.pop(0)
        if not flag.startswith("--"):
            positional.append(flag)
            continue
        name, separator, value = flag.removeprefix("--").partition("=")
        name = name.replace("-", "_")
        if name not in known:
            close = difflib.get_close_matches(name, sorted(known), n=1)
            hint = f"; did you mean --{close[0].replace('_', '-')}?" if close else ""
            raise typer.BadParameter(f"--{name.replace('_', '-')} is no option of this command or of `generate`{hint}")
        if not separator:
            if not rest or rest[0].startswith("--"):
                raise typer.BadParameter(f"{flag} needs a value, as in {flag} true")
            value = rest.pop(0)
        try:
            options[name] = json.loads(value)
        except json.JSONDecodeError:
            options[name] = value
    return options, positional


def load(
    given: dict[str, str | None], alpha: float | None, beta: float | None, dtype: str, device: str | None
) -> tuple[Any, Any]:
    """The combination and the tokenizer that its prompts are written with (the tuned member's)."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from . import tiny
    from .modeling_eft import EFTForCausalLM

    if not any(given.values()):
        given = {name: str(tiny.path(name)) for name in given}
        notes.print("No models given: the embedded tiny family answers (it knows one invented world).", style="dim")
    if missing := [f"--{name}" for name, where in given.items() if where is None]:
        raise typer.BadParameter(f"three models are needed, or none for the embedded family; missing: {', '.join(missing)}")
    if device is None:
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        device = accelerator.type if accelerator else "cpu"
    models, tokenizers = {}, {}
    with notes.status("Loading") as status:
        for name, where in given.items():
            status.update(f"Loading the {name} model: {where}")
            try:
                tokenizers[name] = AutoTokenizer.from_pretrained(where)
                models[name] = AutoModelForCausalLM.from_pretrained(where, dtype=dtype, use_safetensors=True).to(device)
            except (OSError, ValueError) as error:
                raise typer.BadParameter(
                    f"the {name} model cannot be loaded from {where}: {error}", param_hint=f"--{name}"
                ) from error
    try:
        model = EFTForCausalLM.from_models(**models, alpha=alpha, beta=beta, tokenizers=tokenizers)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    return model, tokenizers["tuned"]


def prompt_ids(tokenizer: Any, prompt: str, chat: bool, system: str | None) -> Any:
    """The tokens of the prompt, as `generate` takes them."""
    if not chat:
        return tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
    if tokenizer.chat_template is None:
        raise typer.BadParameter("the tuned model's tokenizer has no chat template; leave --chat out", param_hint="--chat")
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": prompt})
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)


def run(model: Any, tokenizer: Any, inputs: Any, stream: bool, seed: int | None, options: dict[str, Any]) -> None:
    """Generate and print."""
    import torch
    from transformers import TextStreamer, set_seed

    if seed is not None:
        set_seed(seed)
    one_by_one = stream and options.get("num_beams", 1) == 1 and options.get("num_return_sequences", 1) == 1
    streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True) if one_by_one else None
    inputs = {name: value.to(model.device) for name, value in inputs.items() if isinstance(value, torch.Tensor)}
    if "stop_strings" in options:
        options["tokenizer"] = tokenizer
    try:
        ids = model.generate(**inputs, **options, streamer=streamer)
    except (ValueError, NotImplementedError) as error:
        raise typer.BadParameter(str(error)) from error
    if streamer is None:
        for reply in tokenizer.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True):
            console.print(reply.strip(), markup=False, highlight=False)


def main() -> None:
    """The entry point of `hf-eft`."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    app()


if __name__ == "__main__":
    main()
