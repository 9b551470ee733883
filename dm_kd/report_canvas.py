"""The canvas of `report`'s figures: axes, colours, SVG and PNG, and which rows lie on an axis.

Charts are SVG whose lines and letters take the page's colour, so they suit a light and a dark page.
A figure over an axis (guidance, teacher, amount of images) is drawn where rows differ on that axis
and agree on all else.
"""

import base64
import contextlib
import html
import io
import re
import warnings
from pathlib import Path

from dm_kd import files

INK = "#5d636b"  # of PNG files; in the page it becomes the colour of the text
DARK = "#1d1f21"  # of SVG files, whose numbers lie on coloured cells too
COLOURS = ("#3b7ddd", "#d9742c", "#2b9c73", "#bf4f86", "#8870cf", "#96882b", "#3d9db3", "#a3644a")
WIDTH = 5.0  # inches of a chart, 360 points: as many pixels as a phone is wide
MOST_PANELS = 3
STYLE = {"svg.fonttype": "none", "font.size": 9.5, "text.parse_math": False,
         "figure.constrained_layout.use": True, "legend.frameon": False, "legend.fontsize": 8.5,
         "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
         "grid.alpha": 0.13, **dict.fromkeys((
             "text.color", "axes.labelcolor", "xtick.color", "ytick.color", "axes.edgecolor",
             "grid.color"), INK)}


@contextlib.contextmanager
def canvas():
    """Inside the block matplotlib draws without a screen, in the report's style, and does not warn
    of letters that its own font lacks: the browser has them."""
    import matplotlib

    matplotlib.use("Agg")
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")
        yield


def axes(height: float, rows: int = 1, columns: int = 1):
    """A new figure, `height` inches high, and its axes."""
    from matplotlib import pyplot

    return pyplot.subplots(rows, columns, figsize=(WIDTH, height), squeeze=rows * columns == 1)


def as_svg(figure, name: str, title: str) -> str:
    """The figure as inline SVG that fills its place, in the colours of the page. Closes it."""
    import matplotlib
    from matplotlib import pyplot

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    pyplot.close(figure)
    text = buffer.getvalue()
    text = text[text.index("<svg"):]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' (?:width|height)="[\d.]+pt"', "", text, count=2)
    text = re.sub(r' id="[\w.]+_\d+"', "", text).replace(INK, "currentColor")
    text = re.sub(r"(font(?:-family)?: (?:[\d.]+px )?)[^;\"]*", r"\1var(--sans)", text)
    label = html.escape(title, quote=True)
    return text.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)


def standalone(drawn: str) -> bytes | None:
    """The chart of a figure's "html" as an SVG file on white; None where it has none."""
    if "<svg" not in drawn:
        return None
    text = drawn[drawn.index("<svg"):drawn.index("</svg>") + len("</svg>")]
    text = text.replace("currentColor", DARK).replace("var(--sans)", "sans-serif")
    end = text.index(">") + 1
    ground = '<rect width="100%" height="100%" fill="white"/>'
    return f'<?xml version="1.0" encoding="utf-8"?>\n{text[:end]}{ground}{text[end:]}\n'.encode()


def legend_above(figure) -> None:
    """The lines' names above the axes, where they cover nothing; none where there is no line."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    if handles:
        columns = 1 if max(map(len, labels)) > 30 else 2
        figure.legend(handles, labels, loc="outside upper left", ncols=columns)


def write_png(figure, path: Path) -> Path:
    files.atomically(lambda p: figure.savefig(p, dpi=150, facecolor="white",
                                              metadata={"Software": None}), path)
    return path


def chart(figure, name: str, caption: str) -> dict:
    return {"html": as_svg(figure, name, caption), "caption": caption}


def picture(data: bytes, alt: str, kind: str = "png") -> str:
    coded = base64.b64encode(data).decode()
    return f"<img alt='{html.escape(alt)}' src='data:image/{kind};base64,{coded}'>"


def rectangle(x: int, y: int, colour: tuple):
    from matplotlib.patches import Rectangle

    return Rectangle((x - 0.47, y - 0.47), 0.94, 0.94, facecolor=colour, edgecolor="none")


def shown(text: str, most: int = 30) -> str:
    """A name as a label: not too long, and with no underscore first, which matplotlib hides."""
    text = text.lstrip("_") or "row"
    return text if len(text) <= most else text[:most - 1] + "…"


# --- which rows lie on an axis --------------------------------------------------------------------

def series(rows: list[dict], along: tuple[str, ...]) -> list[tuple[str, list[dict]]]:
    """Rows that agree on every setting but those of `along`, and differ there: (what sets them
    apart from the other series, rows), the best first."""
    groups = {}
    for row in rows:
        if row["settings"].get(along[0]) is not None:
            key = tuple(sorted((k, str(v)) for k, v in row["settings"].items() if k not in along))
            groups.setdefault(key, []).append(row)
    varied = [group for group in groups.values()
              if len({tuple(str(r["settings"].get(k)) for k in along) for r in group}) > 1]
    varied.sort(key=lambda group: -max(row["mean"] for row in group))
    names = [sorted({k for row in group for k in row["settings"]}) for group in varied]
    differing = [k for k in dict.fromkeys(k for keys in names for k in keys) if k not in along
                 and len({str(g[0]["settings"][k]) for g in varied
                          if g[0]["settings"].get(k) is not None}) > 1]
    return [(", ".join(in_words(k, group[0]["settings"].get(k)) for k in differing
                       if group[0]["settings"].get(k) is not None) or
             in_words("images", group[0]["settings"]["images"]), group) for group in varied]


def in_words(key: str, value: object) -> str:
    if key == "images":
        return {"real": "real images", "alone": "no teacher", "folder": "a folder of images",
                }.get(str(value), f"images of {value}")
    if key == "images_per_class":
        return f"{value:g} a class"
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if key in ("student", "teacher", "objective") else f"{key.replace('_', ' ')} {text}"


def whiskers(entry: dict) -> list[list[float]]:
    """Lengths below and above the mean, as matplotlib's errorbar takes them; 0 where unknown."""
    low, high = entry["interval"] or [entry["acc1_mean"]] * 2
    return [[max(entry["acc1_mean"] - low, 0)], [max(high - entry["acc1_mean"], 0)]]


# --- in words -------------------------------------------------------------------------------------

def nothing_shared(name: str, settings: int) -> dict:
    """In place of a figure."""
    text = (f"Nothing is drawn or concluded ({name}): there is no trial that all {settings} "
            "settings have.")
    return {"html": "", "caption": text, "says": text}


def points(found: dict) -> str:
    low, high = found["interval"]
    return f"{found['difference']:+.2f} points ({low:+.2f} to {high:+.2f})"
