"""What a figure shows, in words: for readers who hear it, and for pages whose pictures do not load."""

import re
from collections.abc import Iterable

from IPython import get_ipython
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure

MOST = 12  # panels, series or words that are listed; of more, their number is told


def describe(figure: Figure) -> str:
    """One line: the title, then each panel with its kind, title, axes, series and the words written in it."""
    panels = [_panel(axes) for axes in figure.axes if axes.get_label() != "<colorbar>"]
    legends = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    parts = [figure.get_suptitle(), _listed(panels, ". "), _named("Legend", legends)]
    text = ". ".join(part for part in parts if part).replace("\\,", " ")
    text = re.sub(r"\\(?:math|text)[a-z]*|[\\${}]", "", text)  # of a formula the letters and signs
    return re.sub(r"\s+", " ", text) + "."


def say_in_notebooks() -> None:
    """Let each figure that this kernel displays carry its words as `alt`, in the metadata of the picture."""

    def words(figure: Figure) -> tuple[dict, dict]:
        return {}, {"image/png": {"alt": describe(figure)}}

    if shell := get_ipython():
        shell.display_formatter.mimebundle_formatter.for_type(Figure, words)


def _panel(axes: Axes) -> str:
    """Such as "Curves “GAN”, loss against epoch; series: train, validation"; nothing for an empty one."""
    kinds = {
        "Picture": axes.images,
        "Points": [drawn for drawn in axes.collections if isinstance(drawn, PathCollection)],
        "Bars": axes.patches if axes.axison else [],
        "Curves": axes.lines if axes.axison else [],
        "Drawing": axes.texts,
    }
    kind = next((kind for kind, drawn in kinds.items() if len(drawn)), "")
    if not kind:
        return ""
    labels = [axis.get_label_text() for axis in (axes.yaxis, axes.xaxis) if axes.axison]
    legend = axes.get_legend()
    said = [
        " against ".join(filter(None, labels)),
        _named("series", [text.get_text() for text in legend.get_texts()] if legend else []),
        _named("written in it", [text.get_text() for text in axes.texts]),
    ]
    head = f"{kind} “{axes.get_title()}”" if axes.get_title() else kind
    return ", ".join(filter(None, [head, "; ".join(filter(None, said))]))


def _named(name: str, texts: Iterable[str]) -> str:
    listed = _listed(texts, ", ")
    return f"{name}: {listed}" if listed else ""


def _listed(texts: Iterable[str], between: str) -> str:
    """Each text once, in order, the first few of many."""
    once = [text for text in dict.fromkeys(texts) if text]
    more = [f"and {len(once) - MOST} more"] if len(once) > MOST else []
    return between.join(once[:MOST] + more)
