"""What a reader needs of any figure: nothing runs off the page, and no text lies on other text."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from reasoning_features.reporting.plots import DOTS


def legible(fig: Figure) -> None:
    """Draw a figure as it is saved, and look where its texts and legends lie."""
    assert outside(fig) == []
    assert overlaps(fig) == []


def different(looks: Iterable[Any]) -> bool:
    """Whether no two looks are the same."""
    told = [str(look) for look in looks]
    return len(told) == len(set(told))


def outside(fig: Figure) -> list[str]:
    """Texts and legends that do not lie within the figure, but for a sliver."""
    boxes = [*_boxes(fig), *(("legend", legend.get_window_extent()) for legend in fig.legends)]
    page = fig.bbox.padded(2)
    return [name for name, box in boxes if not (page.contains(*box.min) and page.contains(*box.max))]


def overlaps(fig: Figure) -> list[tuple[str, str]]:
    """Pairs of texts whose boxes share more than a sliver; texts aslant have boxes too large to tell."""
    boxes = _boxes(fig, aslant=False)
    extents = np.array([box.extents for _, box in boxes]).reshape(-1, 4)
    lowest, highest = extents[:, None, :2], extents[:, None, 2:]
    shared = np.minimum(highest, extents[:, 2:]) - np.maximum(lowest, extents[:, :2])
    pairs = np.argwhere(np.triu((shared[..., 0] > 3) & (shared[..., 1] > 5), 1))
    return [(boxes[i][0], boxes[j][0]) for i, j in pairs]


def _boxes(fig: Figure, aslant: bool = True) -> list[tuple[str, Any]]:
    """Every text that is drawn, and where."""
    fig.set_dpi(DOTS)
    fig.canvas.draw()
    renderer = fig.canvas.get_renderer()
    hidden = {  # labels of ticks outside the limits, and of axes that are off
        label
        for part in fig.axes
        for ax in (part, *part.child_axes)
        for axis in (ax.xaxis, ax.yaxis)
        for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]
        for label in (tick.label1, tick.label2)
        if not (
            ax.axison and min(axis.get_view_interval()) <= tick.get_loc() <= max(axis.get_view_interval())
        )
    }
    texts = [t for t in fig.findobj(plt.Text) if t.get_text().strip() and t.get_visible() and t not in hidden]
    return [
        (t.get_text(), t.get_window_extent(renderer)) for t in texts if aslant or t.get_rotation() % 90 == 0
    ]
