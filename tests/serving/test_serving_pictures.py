"""The real client sends pictures, and gets what `generate` gives for what each member's processor makes of them."""

from __future__ import annotations

import base64
import threading
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import openai
import pytest
from lookers import combination, data_url, own_inputs, picture, processor
from PIL import Image
from seeing import PLACES
from served import BATCHED, connect

from hf_eft.serving import EFTServer

NEW = 6
NO_PLACES = {"suppress_tokens": PLACES}
FAMILIES = {"one_processor": ("qwen2_vl",) * 3, "each_its_own": ("qwen2_vl", "llava", "llava")}


def part(image: Any, **options: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": image if isinstance(image, str) else data_url(image), **options}}


def asks(*parts: Any) -> list[dict[str, Any]]:
    content = [{"type": "text", "text": each} if isinstance(each, str) and each.startswith("w") else each for each in parts]
    return [{"role": "user", "content": content}]


def ask(client: Any, messages: Any, **options: Any) -> Any:
    body = {"generation_config": NO_PLACES, **options.pop("extra_body", {})}
    return client.chat.completions.create(
        **{"model": "eft", "messages": messages, "max_tokens": NEW, "extra_body": body, **options}
    )


@pytest.fixture(scope="module", params=FAMILIES)
def seen(request: pytest.FixtureRequest) -> Iterator[Any]:
    families = FAMILIES[request.param]
    model, processors = combination(*families), by_member(families)
    own = None if request.param == "one_processor" else {name: processors[name] for name in ("tuned", "reference")}
    with EFTServer(model, processors["base"], port=0, processors=own) as server, connect(server) as client:
        yield model, processors, client


def by_member(families: tuple[str, ...]) -> dict[str, Any]:
    known = {family: processor(family) for family in families}
    return dict(zip(("base", "tuned", "reference"), (known[family] for family in families), strict=True))


def generated(model: Any, processors: Any, *parts: Any, **options: Any) -> list[str]:
    """What `generate` says to a question with pictures."""
    inputs = own_inputs(processors, *parts)
    rows = model.generate(**inputs, **{"max_new_tokens": NEW, **NO_PLACES, "do_sample": False, **options})
    tokenizer = processors["base"].tokenizer
    return [tokenizer.decode(row[inputs["input_ids"].shape[1] :], skip_special_tokens=True) for row in rows]


def test_an_answer_is_what_generate_gives(seen: Any) -> None:
    model, processors, client = seen
    one, other = picture(1), picture(2, (8, 24))
    expected, others = generated(model, processors, "w20 w21", one), generated(model, processors, "w20 w21", other)
    assert expected != others  # so that it matters what is seen
    answer = ask(client, asks("w20 w21", part(one)))
    assert [answer.choices[0].message.content] == expected
    assert answer.usage.prompt_tokens == own_inputs(processors, "w20 w21", one)["input_ids"].shape[1]
    assert [ask(client, asks("w20 w21", part(other, detail="auto"))).choices[0].message.content] == others
    two = ask(client, asks("w20", part(one), "w21 w22", part(other)))
    assert [two.choices[0].message.content] == generated(model, processors, "w20", one, "w21 w22", other)


def test_a_stream_is_what_generate_gives(seen: Any) -> None:
    model, processors, client = seen
    parts = list(ask(client, asks(part(picture(3)), "w30"), stream=True))
    assert ["".join(each.choices[0].delta.content or "" for each in parts)] == generated(model, processors, picture(3), "w30")
    assert len(parts) > 3


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 2},
        {"num_beams": 2, "num_return_sequences": 2},
        {"prompt_lookup_num_tokens": 3},
        {"cache_implementation": "static"},
    ],
    ids=str,
)
def test_every_strategy_sees(seen: Any, options: dict[str, Any]) -> None:
    model, processors, client = seen
    answer = ask(client, asks("w20 w21", part(picture(1))), extra_body={"generation_config": {**NO_PLACES, **options}})
    assert [each.message.content for each in answer.choices] == generated(model, processors, "w20 w21", picture(1), **options)


def test_log_probs_recipes_and_schemas_go_with_pictures(seen: Any) -> None:
    model, processors, client = seen
    from hf_eft import Combination

    row = Combination.emulate(alpha=-0.5).at([0], tuple(model.members))
    answer = ask(
        client, asks("w20", part(picture(1))), extra_body={"alpha": -0.5, "generation_config": NO_PLACES}, logprobs=True
    )
    assert [answer.choices[0].message.content] == generated(model, processors, "w20", picture(1), coefficients=row)
    assert len(answer.choices[0].logprobs.content) == NEW


def test_requests_at_once_see_their_own(seen: Any) -> None:
    model, processors, client = seen
    images = [picture(seed) for seed in range(4)] + [None]
    questions = [("w20", image) if image is not None else ("w20",) for image in images]
    expected = [generated(model, processors, *question)[0] for question in questions[:4]]
    assert len(set(expected)) > 1
    with ThreadPoolExecutor(5) as threads:
        asked = [asks(*(each if isinstance(each, str) else part(each) for each in question)) for question in questions]
        answers = [each.choices[0].message.content for each in threads.map(lambda messages: ask(client, messages), asked)]
    assert answers[:4] == expected and answers[4] == ask(client, asked[4]).choices[0].message.content


def test_a_response_sees(seen: Any) -> None:
    model, processors, client = seen
    image = {"type": "input_image", "image_url": data_url(picture(1))}
    text = {"type": "input_text", "text": "w20 w21"}
    for items in ([{"role": "user", "content": [text, image]}], [text, image]):
        for stream in (False, True):
            got = client.responses.create(
                model="eft", input=items, max_output_tokens=NEW, stream=stream, extra_body={"generation_config": NO_PLACES}
            )
            said = (
                "".join(each.delta for each in got if each.type == "response.output_text.delta") if stream else got.output_text
            )
            assert [said] == generated(model, processors, "w20 w21", picture(1))


def test_chats_without_pictures_are_answered_as_before(seen: Any) -> None:
    model, processors, client = seen
    ids = processors["base"].apply_chat_template(
        [[{"role": "user", "content": [{"type": "text", "text": "w20 w21"}]}]], add_generation_prompt=True, tokenize=True,
        return_dict=True, return_tensors="pt",
    )["input_ids"]  # fmt: skip
    tokens = model.generate(ids, max_new_tokens=NEW, do_sample=False, **NO_PLACES)[0, ids.shape[1] :]
    expected = processors["base"].tokenizer.decode(tokens, skip_special_tokens=True)
    for messages in ([{"role": "user", "content": "w20 w21"}], asks("w20 w21")):
        assert ask(client, messages).choices[0].message.content == expected


def test_a_picture_is_upright_whatever_its_file_says(seen: Any) -> None:
    _, _, client = seen
    upright = picture(4, (16, 8))
    turned = upright.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # is to be turned by 270 degrees
    one, other = (ask(client, asks("w20", part(data_url(turned, **options)))) for options in ({"exif": exif}, {}))
    assert one.choices[0].message.content == ask(client, asks("w20", part(upright))).choices[0].message.content
    assert one.choices[0].message.content != other.choices[0].message.content


def bomb() -> str:
    """A PNG of 60000 x 60000 pixels in a few bytes, cut after its head."""
    head = b"IHDR" + (60000).to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    data = b"\x89PNG\r\n\x1a\n" + (13).to_bytes(4, "big") + head + zlib.crc32(head).to_bytes(4, "big")
    return "data:image/png;base64," + base64.b64encode(data).decode()


REFUSED = {
    "a_place": (part("https://pictures.example.com/a.png"), "pictures are not fetched from 'pictures.example.com'"),
    "a_file": (part("file:///etc/hostname"), "pictures are not fetched from there"),
    "a_path": (part("/etc/hostname"), "pictures are not fetched from there"),
    "a_path_to_a_template": ({"type": "image", "image": "/etc/hostname"}, "a picture is .*data:image/png"),
    "a_place_to_a_template": ({"type": "image", "url": "http://127.0.0.1/"}, "a picture is .*data:image/png"),
    "a_path_to_a_film": ({"type": "video", "video": ["/etc/hostname"]}, "films are not read here"),
    "no_picture": (part("data:text/plain;base64,YWJj"), "begins with .?data:image/png;base64"),
    "no_base64": (part("data:image/png;base64,???"), "is no base64"),
    "broken": (part("data:image/png;base64,YWJj"), "no picture in PNG, JPEG, WEBP, GIF that can be read"),
    "another_format": (part(data_url(picture(), "bmp")), "no picture in PNG, JPEG, WEBP, GIF"),
    "half_a_file": (part(data_url(picture(0, (64, 64)))[:-400]), "no picture in|no base64"),
    "a_bomb": (part(bomb()), "no picture in|pixels together"),
    "moving": (part(data_url(picture(), "gif", save_all=True, append_images=[picture(1)])), "the picture moves, in 2 frames"),
    "detail": (part(picture(), detail="low"), "`detail` 'low' is not heeded|`detail` \"low\" is not heeded"),
    "a_file_kept": ({"type": "input_image", "file_id": "file-1"}, "`file_id` is not heeded"),
    "unknown": ({**part(picture()), "colour": "red"}, "`colour` is not read"),
    "nothing": ({"type": "image_url", "image_url": {}}, "got no URL"),
    "a_sound": ({"type": "input_audio", "input_audio": {}}, "must be \"text\""),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_picture_is_refused_by_its_place(seen: Any, name: str) -> None:
    _, _, client = seen
    given, expected = REFUSED[name]
    with pytest.raises(openai.BadRequestError, match=expected) as refused:
        ask(client, [{"role": "user", "content": "w20"}, {"role": "assistant", "content": "w21"}, *asks("w20", given)])
    assert "messages[2]: " in str(refused.value) and "content[1]" in str(refused.value)


def test_the_pictures_of_a_request_share_its_limits() -> None:
    model = combination(*FAMILIES["one_processor"])
    image = picture(0, (20, 20))
    size = len(base64.b64decode(data_url(image).partition(",")[2]))
    limits: list[dict[str, Any]] = [{"max_image_pixels": 800}, {"max_image_bytes": 2 * size}]
    for options in limits:
        with EFTServer(model, processor("qwen2_vl"), port=0, **options) as server, connect(server) as client:
            ask(client, asks(part(image), part(image)))
            word = "pixels" if "max_image_pixels" in options else "bytes"
            with pytest.raises(openai.BadRequestError, match=rf"messages\[0\]: content\[2\]: the pictures .* {word} together"):
                ask(client, asks(part(image), part(image), part(picture(0, (1, 1)))))


@pytest.fixture
def pictures() -> Iterator[str]:
    """A host of pictures: `/picture`, `/elsewhere`, which sends one to it, and `/endless`."""

    class Host(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = self.path in ("/picture", "/endless")
            self.send_response(200 if found else 302)
            if not found:
                self.send_header("Location", "/picture")
            self.end_headers()
            if self.path == "/picture":
                self.wfile.write(base64.b64decode(data_url(picture(1)).partition(",")[2]))
            while self.path == "/endless" and self._write(bytes(2**16)):
                pass

        def _write(self, data: bytes) -> bool:
            try:
                self.wfile.write(data)
            except OSError:
                return False
            return True

        def log_message(self, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Host) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


def test_pictures_are_fetched_from_hosts_that_are_named(pictures: str) -> None:
    model = combination(*FAMILIES["one_processor"])
    with EFTServer(model, processor("qwen2_vl"), port=0, image_hosts=[pictures]) as server, connect(server) as client:
        fetched = ask(client, asks("w20", part(f"http://{pictures}/picture")))
        assert fetched.choices[0].message.content == ask(client, asks("w20", part(picture(1)))).choices[0].message.content
        for path, expected in (("elsewhere", "answered 302"), ("endless", "bytes together")):
            with pytest.raises(openai.BadRequestError, match=expected):
                ask(client, asks("w20", part(f"http://{pictures}/{path}")))
        for host in (f"{pictures}@127.0.0.1:1", "127.0.0.1:1", f"{pictures}.example.com"):
            with pytest.raises(openai.BadRequestError, match="not fetched from"):
                ask(client, asks("w20", part(f"http://{host}/picture")))
    with pytest.raises(ValueError, match="`image_hosts` are names of hosts"):
        EFTServer(model, processor("qwen2_vl"), port=0, image_hosts=["http://127.0.0.1/"])


def test_drafts_see() -> None:
    model, processors = combination(*FAMILIES["one_processor"]), by_member(FAMILIES["one_processor"])
    with EFTServer(model, processors["base"], port=0, speculative=True) as server, connect(server) as client:
        answer = ask(client, asks("w20 w21", part(picture(1))))
    assert [answer.choices[0].message.content] == generated(model, processors, "w20 w21", picture(1))


def test_members_that_do_not_see_are_named() -> None:
    model = combination(*FAMILIES["each_its_own"])
    processors = {"base": processor("qwen2_vl"), "tuned": processor("llava")}
    blind = r"messages\[0\]: content\[1\]: .*'reference', which has no processor"
    with (
        EFTServer(model, processors["base"].tokenizer, port=0, processors=processors) as server,
        connect(server) as client,
        pytest.raises(openai.BadRequestError, match=blind),
    ):
        ask(client, asks("w20", part(picture())))
    for wrong, expected in (({"draft": processors["base"]}, "the members are"), ({"base": 1}, "makes nothing of pictures")):
        with pytest.raises(ValueError, match=expected):
            EFTServer(model, processors["base"].tokenizer, port=0, processors=wrong)


def test_a_batch_refuses_pictures() -> None:
    from served import family

    model, tokenizer = family()
    with (
        EFTServer(model, tokenizer, port=0, **BATCHED) as server,
        connect(server) as client,
        pytest.raises(openai.BadRequestError, match=r"messages\[0\]: content\[0\]: .* not batched continuously"),
    ):
        ask(client, asks(part(picture())), extra_body={"generation_config": {}})


def test_every_member_has_room_for_its_own_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    model, processors = combination(*FAMILIES["each_its_own"]), by_member(FAMILIES["each_its_own"])
    small = picture(0, (8, 8))
    own = own_inputs(processors, "w20", small)
    length = own["member_inputs"]["reference"]["input_ids"].shape[1]
    assert length > own["input_ids"].shape[1]
    monkeypatch.setattr(model.members["reference"].config.get_text_config(), "max_position_embeddings", length + NEW - 1)
    with EFTServer(model, processors["base"], port=0, processors=processors) as server, connect(server) as client:
        with pytest.raises(openai.BadRequestError, match=f"{length} tokens and {NEW} new ones .* of the member 'reference'"):
            ask(client, asks("w20", part(small)))
        assert ask(client, asks("w20", part(small)), max_tokens=NEW - 1).usage.completion_tokens == NEW - 1
