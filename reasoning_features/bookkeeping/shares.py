"""Who does work that comes in shards: two variables of the environment, which ``make`` sets, say it.

``ENGINE=ray`` hands shards to a Ray cluster (:mod:`reasoning_features.bookkeeping.ray_engine`); without it
this process makes them. ``make share-03 SHARD=3/16`` makes every sixteenth shard from the third on and stops;
``make merge-03`` makes none and goes on with what is there.
"""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass

from reasoning_features.errors import UserError

ENGINE, SHARE = "REASONING_FEATURES_ENGINE", "REASONING_FEATURES_SHARD"
MERGE = "merge"
RAY = "ray"


@dataclass(frozen=True)
class Share:
    """One share of an array of jobs: ``number`` of ``of``, from 1; of number 0 nothing is computed."""

    number: int
    of: int

    def has(self, shard: int) -> bool:
        """Whether a shard is this share's."""
        return self.number > 0 and shard % self.of == self.number - 1

    def __str__(self) -> str:
        return f"{self.number}/{self.of}" if self.number else MERGE


def asked_share() -> Share | None:
    """The share that ``SHARD=`` asks for; None: all.

    Raises:
        UserError: it is neither ``merge`` nor of the form 3/16.
    """
    told = os.environ.get(SHARE, "")
    if told in ("", MERGE):
        return Share(0, 1) if told else None
    number, _, of = told.partition("/")
    if not (number.isdigit() and of.isdigit() and 1 <= int(number) <= int(of)):
        raise UserError(f"SHARD={told!r} is not a share: give SHARD=3/16 for the third of sixteen.")
    return Share(int(number), int(of))


def asked_engine() -> str:
    """The engine that ``ENGINE=`` asks for; empty: this process.

    Raises:
        UserError: there is no such engine, or Ray is not installed.
    """
    return known_engine(os.environ.get(ENGINE, ""))


def known_engine(told: str) -> str:
    """An engine by its name; raises a UserError as :func:`asked_engine`."""
    if told not in ("", RAY):
        raise UserError(f"There is no engine {told!r}: leave ENGINE out, or give ENGINE=ray.")
    if told == RAY and importlib.util.find_spec("ray") is None:
        raise UserError("ENGINE=ray needs Ray: `pip install 'ray>=2.40,<3'`, or leave ENGINE out.")
    return told
