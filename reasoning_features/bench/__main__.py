"""`make bench`: every comparison in turn, written into ``figures/bench``."""

from __future__ import annotations

import argparse
import datetime
import gc
import re
from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from reasoning_features import paths
from reasoning_features.bench import (
    device,
    examples,
    generation,
    harvesting,
    scaling,
    scoring,
    setting,
    training,
)
from reasoning_features.bench.record import processor, provenance
from reasoning_features.bench.setting import Setting, Sizes
from reasoning_features.bench.timing import Row, to_frame
from reasoning_features.files import write_between, write_json, write_text
from reasoning_features.reporting.plots import write_csv
from reasoning_features.reporting.tables import to_markdown
from reasoning_features.runs.preflight import check_device

SHOWN = ["what", "against", "measure", "ratio", "lowest", "highest", "runs", "bar", "met", "sizes", "note"]
BEGIN, END = "<!-- bench: written by make bench -->", "<!-- bench: end -->"
CAPTION = (
    "Ratios of pairs run in turn in one process, after a warm-up: median, lowest and highest. Absolute times "
    "are the machine's; the ratios are what is compared."
)
GROWTH = "Time and peak memory of a pass against tokens and features, each run in a process of its own."
COMPARISONS: tuple[Callable[[Setting, Sizes], list[Row]], ...] = (
    scoring.rows,
    harvesting.rows,
    training.rows,
    generation.rows,
    examples.rows,
)


def compare(sizes: Sizes, folder: Path) -> pd.DataFrame:
    """Run every comparison and write ``ratios``: CSV, Markdown, and the record beside them."""
    given, rows = setting.load(sizes.documents), []
    for comparison in COMPARISONS:
        rows += comparison(given, sizes)
        gc.collect()
    scores, kept = (scaling.by_tokens(way, sizes) for way in ("scores", "examples"))
    by_sorting, wider = scaling.by_tokens("sorted examples", sizes), scaling.by_features(sizes)
    rows += scaling.rows(scores, kept, by_sorting)
    table = to_frame(rows)
    growth = pd.concat([scores, kept, by_sorting, wider], ignore_index=True)
    _write(folder, "ratios", table, to_markdown(table[SHOWN]), CAPTION, processor())
    figure = scaling.draw(growth)
    figure.savefig(folder / "growth.png", metadata={"Software": None})
    plt.close(figure)
    _write(folder, "growth", growth, to_markdown(growth), GROWTH, processor(), [folder / "growth.png"])
    return table


def on_device(shape: device.Shape, name: str, folder: Path) -> pd.DataFrame:
    """Run the true shape on a device and write ``device_<card>``."""
    card = device.device_name(name)
    table = device.measure(shape, name).assign(card=card, date=datetime.date.today().isoformat())
    slug = re.sub(r"[^a-z0-9]+", "_", card.lower()).strip("_")
    caption = f"The paper's shape with random weights on {card}: {shape}."
    _write(folder, f"device_{slug}", table, to_markdown(table), caption, card)
    return table


def _write(
    folder: Path,
    name: str,
    table: pd.DataFrame,
    shown: str,
    caption: str,
    ran_on: str,
    more: list[Path] | None = None,
) -> None:
    csv, markdown = folder / f"{name}.csv", folder / f"{name}.md"
    write_csv(csv, table)
    write_text(markdown, f"{shown}\n{caption}\n")
    write_json(folder / f"{name}.json", provenance([csv, markdown, *(more or [])], caption, ran_on))


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="", help="where to run the paper's true shape, such as cuda")
    parser.add_argument("--folder", type=Path, default=paths.root() / "figures" / "bench")
    asked = parser.parse_args()
    name = asked.device or "cpu"
    check_device(name)
    if name == "cpu":
        table = compare(Sizes(), asked.folder)
        print(to_markdown(table[SHOWN]))
        short = table[[name for name in SHOWN if name not in ("runs", "sizes", "note")]]
        write_between(paths.root() / "figures" / "bench" / "README.md", BEGIN, END, to_markdown(short))
        print("The paper's true shape was left out: it takes a GPU (make bench DEVICE=cuda).")
    else:
        print(to_markdown(on_device(device.Shape(), name, asked.folder)))


if __name__ == "__main__":
    main()
