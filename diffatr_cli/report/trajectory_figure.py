"""Figure 3 as a picture or a film, with matplotlib (extra `plot`), which is imported here alone.

S candidates shown, L levels visited, K length of the chain.
"""

from __future__ import annotations

import importlib.util
import math
import textwrap
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from ..evaluation.trajectory import TrajectoryResult
from ..files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = (".png", ".svg", ".gif")
PLAIN, TRUE, FINAL, FAINT = "#9fb1c4", "#d1352b", "#1f4e79", "#6b7580"
DPI = 160
FRAME_MS, LAST_MS = 90, 2500  # how long a frame of a film stands, and the last one
WORDS = {"t2a": "Text-to-audio", "a2t": "Audio-to-text"}


_MARK = "DiffATR"  # in each figure, by which it is known again
_MARKS = {"png": {"Software": _MARK}, "svg": {"Creator": _MARK}}


def is_figure(beginning: bytes) -> bool:
    """Whether a file that begins with these bytes, some thousand, was drawn here."""
    return _MARK.encode() in beginning


def check_out(path: Path, option: str = "--out") -> None:
    """Raises UsageError, before anything long is done: the file is of no kind that can be drawn, or matplotlib is missing.
    `option` is the one that names it."""
    if path.suffix.lower() not in FORMATS:
        raise UsageError(f"{option}: {path.name} is none of {', '.join(FORMATS)}; end its name with one of these.")
    if importlib.util.find_spec("matplotlib") is None:
        raise UsageError("trajectory needs the extra `plot`: pip install 'diffatr[plot]'")


def draw(result: TrajectoryResult, path: Path) -> None:
    """Write the figure to `path`, as its suffix says: a picture, or a film of all levels. Raises DiffATRError if it cannot be."""
    kind = path.suffix.lower().removeprefix(".")
    with _quiet(), replacing(path) as temporary, temporary.open("wb") as file:
        if kind == "gif":
            _film(result, file)
        else:
            _picture(result).savefig(file, format=kind, dpi=DPI, metadata=_MARKS[kind])


@contextmanager
def _quiet() -> Iterator[None]:
    """One look whatever a user's own settings are, and no talk of letters that the font lacks: they show as boxes."""
    import matplotlib

    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(
            {
                "font.size": 9,
                "axes.spines.top": False,
                "axes.spines.right": False,
                "axes.edgecolor": "#b6bec6",
                "axes.labelcolor": "#30373d",
                "xtick.color": FAINT,
                "ytick.color": FAINT,
                "axes.titlesize": 10,
            }
        )
        warnings.filterwarnings("ignore", message="Glyph", category=UserWarning)
        yield


def chosen(levels: Sequence[int], count: int = 5) -> list[int]:
    """Places of at most `count` of the levels that are visited, evenly spaced, the first and the last among them."""
    count = min(count, len(levels))
    return [round(i * (len(levels) - 1) / max(count - 1, 1)) for i in range(count)]


def _picture(result: TrajectoryResult) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11.5, 8.4), layout="constrained")
    parts: Any = figure.subfigures(2, 1, height_ratios=[1.35, 1], hspace=0.05)
    above, below = parts
    places = chosen(result.levels)
    axes = above.subplots(2, len(places) + 1, sharex=True, squeeze=False)
    _title(above, result)
    for column, place in enumerate(places):
        _bars(axes[0, column], result.x[place], result)
        axes[0, column].set_title(f"$x_{{{result.levels[place]}}}$")
        _bars(axes[1, column], result.x0_hat[place], result)
        axes[1, column].set_title(rf"$\hat{{x}}_0$ from $x_{{{result.levels[place]}}}$")
    _bars(axes[0, -1], result.x0_hat[-1], result)
    axes[0, -1].set_title("$x_0$, the answer", color=FINAL)
    _key(axes[1, -1], result)
    for row, label in enumerate(("what the chain holds", "what the denoiser answers")):
        axes[row, 0].set_ylabel(label)
    _same_scale(axes[0, : len(places)])
    _same_scale([*axes[1, : len(places)], axes[0, -1]])
    axes[0, -1].yaxis.tick_right()
    axes[0, -1].tick_params(labelright=True)
    for axis in (*axes[1, : len(places)], axes[0, -1]):
        axis.set_xlabel("candidates", labelpad=9)
    _curves(below, result)
    return figure


def _title(figure: Any, result: TrajectoryResult) -> None:
    asked = f"“{result.query}”" if result.direction == "t2a" else result.query
    who = f"{WORDS[result.direction]} on {result.target} {result.split}, {result.recipe} seed {result.seed}"
    text = figure.suptitle("\n".join([*textwrap.wrap(asked, 100)[:2], who]), fontsize=11, color="#30373d")
    text.set_parse_math(False)


def _bars(axis: Axes, values: Any, result: TrajectoryResult) -> None:
    colours = [TRUE if each.true else PLAIN for each in result.candidates]
    axis.bar(range(len(values)), values, color=colours, width=0.85)
    axis.axhline(0, color="#b6bec6", linewidth=0.8)
    true = [i for i, each in enumerate(result.candidates) if each.true]  # whose bar may be too low to be seen
    below = axis.get_xaxis_transform()
    axis.plot(true, [-0.05] * len(true), "^", color=TRUE, markersize=4.5, transform=below, clip_on=False)
    axis.set_xticks([])
    axis.tick_params(labelsize=7.5, length=2)
    axis.margins(x=0.02)


def _same_scale(axes: Sequence[Axes] | Any) -> None:
    bounds = [axis.get_ylim() for axis in axes]
    for i, axis in enumerate(axes):
        axis.set_ylim(min(low for low, _ in bounds), max(high for _, high in bounds))
        axis.tick_params(labelleft=i == 0)


def _key(axis: Axes, result: TrajectoryResult) -> None:
    """What the colours and the order of the bars mean, in the place of a panel."""
    axis.axis("off")
    true = sum(each.true for each in result.candidates)
    what = "clip" if result.direction == "t2a" else "caption"
    others = len(result.candidates)
    marked = f"the true {what}{'s' if true != 1 else ''}" if true else f"(no true {what} is known)"
    lines = [
        (TRUE, f"■ ▲ {marked}"),
        (PLAIN, f"■ other {what}s"),
        (FAINT, f"{others} of {result.count:,} are shown,\nthe nearest by cosine\nfrom left to right"),
    ]
    height = 0.95
    for colour, line in lines:
        axis.text(-0.05, height, line, transform=axis.transAxes, color=colour, fontsize=8.5, va="top")
        height -= 0.16


def _curves(figure: Any, result: TrajectoryResult) -> None:
    from matplotlib.ticker import MaxNLocator

    levels = [each.level for each in result.measures]
    panels = figure.subplots(1, 3)
    heading = f"All {result.queries:,} queries at every level, from noise ($k={result.chain}$) to the answer"
    figure.suptitle(heading, fontsize=11, color="#30373d")
    panels[0].plot(levels, [each.p_true for each in result.measures], color=FINAL)
    panels[0].set(title="probability of the true candidates", ylim=(0, _room(each.p_true for each in result.measures)))
    panels[1].plot(levels, [each.entropy for each in result.measures], color=FINAL)
    panels[1].axhline(_uniform(result), color=FAINT, linewidth=1, linestyle=":")
    panels[1].annotate("no preference", (levels[0], _uniform(result)), (3, -10), textcoords="offset points", color=FAINT, size=8)
    panels[1].set(title="entropy of the answer, nats", ylim=(0, _uniform(result) * 1.06))
    recalls = (
        ("r1_final", FINAL, "-", "final score"),
        ("r1_x0_hat", "#e08a1e", "-", r"answer $\hat{x}_0$ alone"),
        ("r1_x", FAINT, "-", "$x_k$ itself"),
    )
    for name, colour, style, label in recalls:
        panels[2].plot(levels, [getattr(each, name) for each in result.measures], color=colour, linestyle=style, label=label)
    panels[2].axhline(result.r1_cosine, color="black", linewidth=1, linestyle=":", label="cosine alone")
    highest = max([result.r1_cosine, *(max(each.r1_x, each.r1_x0_hat, each.r1_final) for each in result.measures)])
    panels[2].set(title="R@1, percent", ylim=(0, max(1.0, highest * 1.08)))
    panels[2].yaxis.set_major_locator(MaxNLocator(6, integer=True))
    panels[2].legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(0, 0.45))
    for panel in panels:
        panel.invert_xaxis()
        panel.set_xticks(sorted({levels[place] for place in chosen(levels, 6)}))
        panel.set_xlabel("noise level $k$")
        panel.grid(axis="y", color="#e6eaee", linewidth=0.8)


def _room(values: Iterable[float]) -> float:
    """Where an axis of probabilities ends."""
    return min(1.0, max(0.05, *values) * 1.5)


def _uniform(result: TrajectoryResult) -> float:
    """The entropy of a distribution that prefers nothing, nats."""
    return math.log(max(result.count, 2))


def _film(result: TrajectoryResult, file: Any) -> None:
    """All levels one after another: x_k, the denoiser's answer, and where on the curve that is."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image

    frames = []
    for place, level in enumerate(result.levels):
        figure = Figure(figsize=(11, 3.6), layout="constrained")
        canvas: Any = FigureCanvasAgg(figure)
        left, middle, right = figure.subplots(1, 3, width_ratios=[1, 1, 0.8])
        _title(figure, result)
        for axis, values, title in (
            (left, result.x, f"$x_{{{level}}}$"),
            (middle, result.x0_hat, rf"$\hat{{x}}_0$ from $x_{{{level}}}$"),
        ):
            _bars(axis, values[place], result)
            axis.set_title(title)
            axis.set_ylim(min(0.0, float(values.min())) * 1.05, float(values.max()) * 1.05)
            axis.set_xlabel("candidates, the nearest by cosine first; true ones in red", labelpad=14)
        right.plot([each.level for each in result.measures], [each.p_true for each in result.measures], color=FINAL)
        right.plot([level], [result.measures[place].p_true], "o", color=TRUE)
        right.set(
            title=f"probability of the true candidates,\nmean of {result.queries:,} queries",
            ylim=(0, _room(each.p_true for each in result.measures)),
        )
        right.set_xlabel("noise level $k$")
        right.invert_xaxis()
        right.set_xticks([result.levels[each] for each in chosen(result.levels, 6)])
        canvas.draw()
        frames.append(Image.fromarray(_pixels(canvas)).convert("RGB").quantize(64))
    times = [FRAME_MS] * (len(frames) - 1) + [LAST_MS]
    frames[0].save(file, format="GIF", save_all=True, append_images=frames[1:], duration=times, loop=0, comment=_MARK.encode())


def _pixels(canvas: Any) -> Any:
    import numpy as np

    return np.asarray(canvas.buffer_rgba())
