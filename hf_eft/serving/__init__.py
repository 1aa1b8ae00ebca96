"""An OpenAI-compatible server for a live model."""

from __future__ import annotations

import contextlib
import copy
import ipaddress
import socket
import threading
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from transformers.utils.import_utils import is_serve_available

if TYPE_CHECKING:
    from transformers import ContinuousBatchingConfig

    from ..modeling_eft import EFTForCausalLM


class EFTServer:
    r"""
    Serves a live model over the OpenAI API: `/v1/chat/completions`, `/v1/completions`, `/v1/responses`, `/v1/models` and `/health`.

    A request may carry `alpha`, `beta` or `weights` of the tuned members (λ), which hold for it alone; without them it is served with
    the model's combination. Negative weights on a safety-tuned delta undo its safety training, and clients choose the weights: keep the
    server on this machine, or give it an `api_key`.

    Contract:

    - **Exact**: a request's tokens are those of `generate` with the same parameters.
    - **Requests at once**: any number may be open. They are served one after the other, or, with `continuous_batching`, as one batch
      that requests join and leave; see [`EFTForCausalLM.generate_batch`] for what that takes.
    - **Clients that go away**: a stream is given up at its next token; an answer that is no stream is computed to its end.
    - **Errors**: every request is answered, in JSON of OpenAI's form, whatever happens. What is asked for is heeded exactly or refused.
    - **The model**: is not copied, loaded or unloaded. Do not call it while the server runs.

    Args:
        model ([`EFTForCausalLM`]): The model.
        tokenizer (`PreTrainedTokenizerBase` or `ProcessorMixin`):
            The tokenizer of its members, with the chat template to use. With a processor, chats may have pictures, which it prepares for
            all members that have none in `processors`.
        host (`str`, *optional*, defaults to `"127.0.0.1"`): The address to listen on.
        port (`int`, *optional*, defaults to 8000): The port; 0 for a free one, which `url` then names.
        model_name (`str`, *optional*, defaults to `"eft"`): What clients call the model.
        continuous_batching (`bool`, *optional*, defaults to `False`): Whether requests are batched continuously.
        max_batch (`int`, *optional*): How many requests a batch has at most; transformers' default, 1024.
        continuous_batching_config (`ContinuousBatchingConfig`, *optional*):
            The cache's size and whatever else transformers lets choose. By default the cache takes most of the free memory.
        speculative (`bool`, *optional*, defaults to `False`):
            Whether the tuned member or the small combination, whichever pays, drafts for greedy requests served one by one: the same
            tokens, sooner.
        generation_config (`Mapping[str, Any]`, *optional*):
            Options of `generate` that hold where a request says nothing, before those of `model.generation_config`.
        api_key (`str`, *optional*): What clients must send as a bearer token, except to `/health`.
        processors (`Mapping[str, ProcessorMixin]`, *optional*):
            By member, the processor that makes its inputs of a chat with pictures, where it is another than `tokenizer`.
        image_hosts (`Sequence[str]`, *optional*):
            Hosts that pictures may be fetched from, as in `"pictures.example.com"`. Without any, pictures are `data:` URLs.
        max_image_bytes (`int`, *optional*, defaults to 20 MiB): How many bytes the pictures of a request may have together.
        max_image_pixels (`int`, *optional*, defaults to 2^25): How many pixels.
        log_level (`str`, *optional*, defaults to `"warning"`): Of the web server.

    Raises:
        `ImportError`: If the packages of the extra `serve` are missing.
        `NotImplementedError`: If the model cannot be batched continuously, saying why.
        `OSError`: If the address is taken or not of this machine.

    Example:

    ```python
    >>> from openai import OpenAI

    >>> from hf_eft import EFTForCausalLM, tiny
    >>> from hf_eft.serving import EFTServer

    >>> base, tuned, reference, tokenizer = tiny.load()
    >>> model = EFTForCausalLM.from_models(base, tuned=tuned, reference=reference)
    >>> with EFTServer(model, tokenizer, port=0) as server, OpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
    ...     [served.id for served in client.models.list()]
    ['eft']
    ```
    """

    def __init__(
        self,
        model: EFTForCausalLM,
        tokenizer: Any,
        *,
        host: str = "127.0.0.1",
        port: int = 8000,
        model_name: str = "eft",
        continuous_batching: bool = False,
        max_batch: int | None = None,
        continuous_batching_config: ContinuousBatchingConfig | None = None,
        speculative: bool = False,
        generation_config: Mapping[str, Any] | None = None,
        api_key: str | None = None,
        processors: Mapping[str, Any] | None = None,
        image_hosts: Sequence[str] = (),
        max_image_bytes: int | None = None,
        max_image_pixels: int | None = None,
        log_level: str = "warning",
    ) -> None:
        if max_batch is not None and max_batch < 1:
            raise ValueError(f"`max_batch` must be 1 or more, got {max_batch}.")
        if not continuous_batching and (max_batch is not None or continuous_batching_config is not None):
            raise ValueError("`max_batch` and `continuous_batching_config` are for `continuous_batching=True`.")
        if speculative and continuous_batching:
            raise ValueError(
                "A batch that requests join and leave has no drafts: leave out `speculative` or `continuous_batching`."
            )
        if speculative and not model.combination.tuned_names:
            raise ValueError(f"There is no tuned member to draft: the recipe is {model.combination}.")
        check_installed()
        import uvicorn

        from .app import build_app
        from .asked import Reader
        from .batched import Batched
        from .dispatch import Generator, OneByOne
        from .images import Limits

        warn_if_open(host, api_key, stacklevel=3)
        reader = Reader(
            model, tokenizer, generation_config, processors, Limits.of(max_image_bytes, max_image_pixels, image_hosts)
        )
        self._generator: Generator = (
            Batched(model, _batching(continuous_batching_config, max_batch))
            if continuous_batching
            else OneByOne(model, speculative)
        )
        reader.room, reader.looks = self._generator.room, not continuous_batching
        self.model_name = model_name
        app = build_app(reader, self._generator, model_name, api_key)
        self._server = uvicorn.Server(uvicorn.Config(app, log_level=log_level))
        self._thread: threading.Thread | None = None
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            self._socket = socket.create_server((host, port), family=family)  # from here on, clients may connect
            # The connections inherit it. (asyncio would set it on sockets that name their protocol, which these do not.) Without it the
            # body of an answer waits for the client to acknowledge the head: 40 ms on Linux.
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._address = self._socket.getsockname()[:2]
        except OSError as error:
            self._generator.stop()
            raise OSError(error.errno, f"Cannot listen on {host}:{port} ({error.strerror}). Choose another `port`.") from error

    @property
    def url(self) -> str:
        """Where it is served, such as `http://127.0.0.1:8000`. Clients of OpenAI take this with `/v1` behind it."""
        return url_of(*self._address)

    def start(self) -> EFTServer:
        """Serve on a thread of its own. Returns the server."""
        if self._thread is not None:
            raise RuntimeError("This server has been started before. Make another one.")
        self._thread = threading.Thread(target=self._serve, name="eft-server", daemon=True)
        self._thread.start()
        return self

    def run(self) -> None:
        """Serve on this thread, until it is interrupted."""
        with contextlib.suppress(KeyboardInterrupt):
            self._serve()

    def stop(self) -> None:
        """Take no more requests, answer those that are open, and end. May be called twice."""
        self._server.should_exit = True
        if self._thread is not None:
            self._thread.join()
        self._close()

    def _serve(self) -> None:
        try:
            self._server.run(sockets=[self._socket])
        finally:
            self._close()

    def _close(self) -> None:
        self._socket.close()
        self._generator.stop()

    def __enter__(self) -> EFTServer:
        return self.start()

    def __exit__(self, *exception: object) -> None:
        self.stop()


def check_installed() -> None:
    """Raise `ImportError` if the packages of the extra `serve` are missing."""
    if not is_serve_available():
        raise ImportError("Serving needs FastAPI, uvicorn, pydantic and openai: pip install 'hf-eft[serve]'")


def read_options(given: str | Mapping[str, Any] | None) -> dict[str, Any]:
    r"""
    Options of `generate` that requests have by default.

    Args:
        given (`str` or `Mapping[str, Any]`, *optional*): The options, or JSON of them.

    Raises:
        `ValueError`: If they are none.
    """
    from .asked import options_of

    return options_of(given)


def serve(model: EFTForCausalLM, tokenizer: Any, **options: Any) -> None:
    """Serve a model until interrupted. Takes what [`EFTServer`] takes, and raises what it raises."""
    server = EFTServer(model, tokenizer, **options)
    print(f"Serving {server.model_name!r} at {server.url}/v1", flush=True)
    server.run()


def url_of(host: str, port: int) -> str:
    """The address of a server as a URL."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def warn_if_open(host: str, api_key: str | None, stacklevel: int = 2) -> None:
    """Warn of a server that others than this machine reach, and that asks for no key."""
    if api_key is None and not _is_local(host):
        warnings.warn(
            f"The server listens on {host} without an `api_key`: whoever reaches it chooses the weights, and negative weights on a "
            "safety-tuned delta undo its safety training. Give it an `api_key`, or listen on 127.0.0.1.",
            stacklevel=stacklevel,
        )


def _batching(config: ContinuousBatchingConfig | None, max_batch: int | None) -> ContinuousBatchingConfig:
    from transformers import ContinuousBatchingConfig

    config = ContinuousBatchingConfig() if config is None else copy.deepcopy(config)
    if max_batch is not None:
        config.max_requests_per_batch = max_batch
    return config


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
