"""Errors a user can cause and mend; each message is one sentence that names what is wrong and what to do."""

import math
from typing import Any

import numpy as np

WIDER = "run the model in float32 or bfloat16 (`dtype`), or give one whose weights are finite"


class UserError(Exception):
    """Something the user gave, or lacks, that the message tells how to put right."""


class MissingArtefact(UserError):
    """An artefact another step makes is not there; the message names the make target that makes it."""


class CorruptArtefact(UserError):
    """A stored file's content is not what its checksum says; the message names the file."""


@np.errstate(over="ignore", invalid="ignore")
def check_finite(values: Any, what: str, remedy: str = WIDER) -> Any:
    """A tensor or an array as given; UserError, with the first one's place, where a number is not finite."""
    # a sum takes one pass and no mask; but finite numbers too may add up to infinity
    if math.isfinite(values.sum().item()) or (finite := abs(values) < math.inf).all():
        return values
    place = [int(i) for i in np.unravel_index(int((finite * 1).argmin()), finite.shape)]
    raise UserError(f"{what} is not finite{f' (first at {place})' if place else ''}: {remedy}.")
