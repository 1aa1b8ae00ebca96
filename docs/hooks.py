"""What the site adds to the pages: pictures and files that lie beside what makes them, and links from names to the reference."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
# Pages show pictures and name figures where their scripts write them, above `docs`; the site has copies.
_ABOVE = re.compile(r"\]\(\.\./((?:examples|tests|vllm_eft)/[^)\s#]+|[A-Z]+\.md|LICENSE)([)#])")
# A parameter's type, which mkdocstrings takes for code, and the default that it adds.
_TYPE = re.compile(r"\(<code>([^<]*`[^<]*)</code>(,\s+default:\s+<code>.*?</code>)?")
_NAMED = re.compile(r"\[<code>([\w.]+)</code>\]")
_REFERENCE: dict[str, str] = {}


def on_files(files: Files, config: Any) -> Files:
    """Take in what pages link to above `docs`."""
    wanted = set()
    for page in (ROOT / "docs").glob("**/*.md"):
        wanted |= {path for path, _ in _ABOVE.findall(page.read_text())}
    for path in sorted(wanted):
        if (ROOT / path).is_dir():
            path = f"{path.rstrip('/')}/README.md"
        if (ROOT / path).is_file():
            files.append(File.generated(config, f"source/{path}", abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Point these links at the copies."""
    depth = "../" * page.file.src_uri.count("/")
    return _ABOVE.sub(lambda match: f"]({depth}source/{match[1]}{match[2]}", markdown)


def on_env(env: Any, config: Any, files: Files) -> Any:
    """Learn where the reference documents each name."""
    for page in (file.page for file in files.documentation_pages() if file.src_uri.startswith("reference/")):
        for anchor in re.findall(r'id="(hf_eft[\w.]*)"', page.content or ""):
            _REFERENCE.setdefault(anchor.rpartition(".")[2], f"{page.url}#{anchor}")
            _REFERENCE[anchor] = f"{page.url}#{anchor}"
    return env


def on_post_page(output: str, page: Any, config: Any) -> str:
    """Hugging Face's [`Name`] as a link, and `type`, *optional* of a parameter as it is meant."""
    up = "../" * page.url.count("/")

    def linked(match: re.Match[str]) -> str:
        name = match[1]
        where = _REFERENCE.get(name) or _REFERENCE.get(name.rpartition(".")[2])
        return f'<a href="{up}{where}"><code>{name}</code></a>' if where else f"<code>{name}</code>"

    def typed(match: re.Match[str]) -> str:
        text = re.sub(r"\*(.*?)\*", r"<em>\1</em>", re.sub(r"`(.*?)`", r"<code>\1</code>", match[1]))
        return f"({text}{'' if 'defaults to' in text else match[2] or ''}"

    return _NAMED.sub(linked, _TYPE.sub(typed, output))
