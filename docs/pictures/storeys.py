"""Makes `storeys.svg`: the parts of the package on their storeys, drawn from the code. `python docs/pictures/storeys.py`"""

from __future__ import annotations

import ast
import textwrap
import tomllib
from html import escape
from pathlib import Path

import grimp

ROOT = Path(__file__).resolve().parents[2]
PICTURE = Path(__file__).with_suffix(".svg")
WIDTH, HEIGHT, GAP, MARGIN = 1180, 74, 44, 20  # pixels
WIDEST = 360
STYLE = (
    "text{font:13px sans-serif;fill:#222}.n{font:bold 15px sans-serif}.r{fill:#f4f6fb;stroke:#5b6c94}"
    ".a{stroke:#8a97b8;fill:none;stroke-width:1.2;marker-end:url(#to)}"
)


def storeys() -> list[list[str]]:
    """The rooms from the top down, as import-linter is told."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    return [[room.strip() for room in layer.split("|") if room.strip() != "_version"] for layer in layers]


def arrows(rooms: list[str]) -> set[tuple[str, str]]:
    """Which room imports which, without what follows from other arrows."""
    graph = grimp.build_graph("hf_eft", cache_dir=None)
    uses: dict[str, set[str]] = {room: set() for room in rooms}
    for module in graph.modules:
        for other in graph.find_modules_directly_imported_by(module):
            a, b = (name.split(".")[1] if "." in name else "" for name in (module, other))
            if a != b and a in uses and b in uses:
                uses[a].add(b)

    def below(room: str) -> set[str]:
        return uses[room].union(*(below(other) for other in uses[room]))

    return {(a, b) for a in uses for b in uses[a] if not any(b in below(other) for other in uses[a])}


def says(room: str) -> str:
    """The first sentence of a room's docstring."""
    path = ROOT / "hf_eft" / room
    text = ast.get_docstring(ast.parse((path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text())) or ""
    return " ".join(text.split("\n\n")[0].split()).replace("`", "")


def drawn() -> str:
    """The picture."""
    floors = storeys()
    boxes: dict[str, tuple[float, float, float]] = {}  # left, top, width
    for level, rooms in enumerate(floors):
        width = min(WIDEST, (WIDTH - 2 * MARGIN - GAP * (len(rooms) - 1)) / len(rooms))
        left = (WIDTH - width * len(rooms) - GAP * (len(rooms) - 1)) / 2
        for i, room in enumerate(rooms):
            boxes[room] = (left + i * (width + GAP), MARGIN + level * (HEIGHT + GAP), width)
    parts = []
    for a, b in sorted(arrows(list(boxes))):
        (left, top, width), (x, y, w) = boxes[a], boxes[b]
        start, end = left + width / 2, x + w / 2
        if y - top > HEIGHT + GAP:  # past a storey between them, at the side
            side = min(start, end) - 0.28 * w if end <= WIDTH / 2 else max(start, end) + 0.28 * w
            path = f"M{start:.0f},{top + HEIGHT} C{side:.0f},{top + HEIGHT + GAP} {side:.0f},{y - GAP} {end:.0f},{y}"
        else:
            path = f"M{start:.0f},{top + HEIGHT} L{end:.0f},{y}"
        parts.append(f'<path class="a" d="{path}"/>')
    for room, (left, top, width) in boxes.items():
        name = room if (ROOT / "hf_eft" / room).is_file() or not (ROOT / "hf_eft" / room).is_dir() else f"{room}/"
        parts.append(f'<rect class="r" x="{left:.0f}" y="{top}" width="{width:.0f}" height="{HEIGHT}" rx="6"/>')
        parts.append(f'<text class="n" x="{left + 10:.0f}" y="{top + 19}">{escape(name)}</text>')
        lines = textwrap.wrap(says(room), int((width - 20) / 7.1), max_lines=3, placeholder=" …")
        parts += [f'<text x="{left + 10:.0f}" y="{top + 36 + 15 * i}">{escape(line)}</text>' for i, line in enumerate(lines)]
    height = 2 * MARGIN + len(floors) * (HEIGHT + GAP) - GAP
    marker = (
        '<marker id="to" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
        '<path d="M0,0 L8,4 L0,8 z" fill="#8a97b8"/></marker>'
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="the storeys of hf_eft">'
        f"<style>{STYLE}</style><defs>{marker}</defs>\n" + "\n".join(parts) + "\n</svg>\n"
    )


if __name__ == "__main__":
    PICTURE.write_text(drawn(), encoding="utf-8")
    print(f"wrote {PICTURE.name}")
