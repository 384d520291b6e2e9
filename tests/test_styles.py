"""An architecture looks the same in every figure, and no two look alike."""

from __future__ import annotations

from reasoning_features.foundations.names import CEILING, FLOOR, NAMES
from reasoning_features.foundations.styles import style, styles
from reasoning_features.foundations.synthetic_cells import FROZEN


def looks_of(found: dict) -> set[tuple]:
    return {(look["color"], look["marker"], look.get("markerfacecolor")) for look in found.values()}


def test_styles_tell_every_architecture_apart_and_frozen_ones_are_hollow():
    looks = {name: style(name) for name in NAMES}
    assert len(looks_of(looks)) == 9
    assert {name for name, look in looks.items() if look["markerfacecolor"] == "white"} == set(FROZEN)


def test_a_dictionary_looks_as_its_architecture_whatever_stands_beside_it():
    few, many = styles(["OrtSAE"]), styles(["BatchTopK", FLOOR, "OrtSAE", "OrtSAE, second seed"])
    assert few["OrtSAE"] == many["OrtSAE"] == style("ortsae")
    assert many["OrtSAE, second seed"]["color"] == style("ortsae")["color"]


def test_variants_floors_and_ceilings_are_told_apart():
    names = ["frozen decoder", "frozen decoder (cov)", "BatchTopK", "BatchTopK, second seed", FLOOR, CEILING]
    found = styles(names)
    assert list(found) == names == [look["label"] for look in found.values()]
    assert len(looks_of(found)) == len(names)
