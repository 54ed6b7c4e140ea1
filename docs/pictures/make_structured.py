"""Draws sparse-low-rank.svg, tucker-conv.svg and completion.svg: python3 docs/pictures/make_structured.py"""
import pathlib
import random

FOLDER = pathlib.Path(__file__).parent
INK, FILL, DOT = "#334", "#cfe0f5", "#c2571a"


def box(x, y, w, h, label, fill=FILL):
    text = f'<text x="{x + w / 2}" y="{y + h / 2 + 5}" text-anchor="middle">{label}</text>'
    return f'<rect x="{x}" y="{y}" width="{w}" height="{h}" fill="{fill}" stroke="{INK}"/>{text}'


def word(x, y, text):
    return f'<text x="{x}" y="{y}" text-anchor="middle">{text}</text>'


def dots(x, y, w, h, count, seed):
    draw = random.Random(seed)
    spots = [(x + 6 * draw.randrange(1, w // 6), y + 6 * draw.randrange(1, h // 6)) for _ in range(count)]
    return "".join(f'<rect x="{a - 2}" y="{b - 2}" width="4" height="4" fill="{DOT}"/>' for a, b in spots)


def write(name, width, height, *parts):
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="14" fill="{INK}">'
    (FOLDER / name).write_text(head + f'<rect width="{width}" height="{height}" fill="#fff"/>' + "\n".join(parts) + "</svg>\n")


write(
    "sparse-low-rank.svg", 560, 160,
    box(10, 20, 120, 120, "W"), word(150, 85, "="), box(175, 20, 30, 120, "B"), box(215, 20, 120, 30, "A"),
    word(365, 85, "+"), box(400, 20, 120, 120, "", "#fff"), dots(400, 20, 120, 120, 24, 1), word(460, 156, "S, fixed support"),
)
write(
    "tucker-conv.svg", 640, 150,
    word(30, 80, "x"), box(60, 30, 120, 90, "1 × 1: c → rᵢ"), word(200, 80, "→"), box(225, 45, 150, 60, "k × k core: rᵢ → rₒ"),
    word(395, 80, "→"), box(420, 30, 120, 90, "1 × 1: rₒ → o"), word(570, 80, "y"),
)
write(
    "completion.svg", 600, 170,
    box(10, 20, 140, 120, "", "#fff"), dots(10, 20, 140, 120, 60, 2), word(80, 160, "observed entries"), word(175, 85, "≈"),
    box(200, 20, 30, 120, "u"), box(245, 20, 140, 30, "vᵀ"), word(490, 60, "u fixed: a regression per column"),
    word(490, 90, "v fixed: a regression per row"), word(490, 120, "until the residual is small"),
)
