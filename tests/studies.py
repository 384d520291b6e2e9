"""A steering study whose winners are right with known chances, for the tests of what reads studies."""

from __future__ import annotations

import numpy as np
import pandas as pd

from reasoning_features.models.conditions import UNSTEERED
from reasoning_features.steering.steering_study import COLUMNS, Study

N = 400


def made(kappa, seed, chances):
    """A study whose winners are right with known chances; ReasonScore's and the slot's may be one."""
    rng = np.random.default_rng(seed)
    uniform, frames = rng.random(N), []
    for group, chance in {UNSTEERED: 0.5, **chances}.items():
        frame = pd.DataFrame({"problem": np.arange(N), "domain": ["pair", "ops"] * (N // 2)})
        frame = frame.assign(group=group, condition=f"{group} at {chance}", feature=1, gamma=0.2)
        frame["share of norm"] = 0.1
        frames.append(frame.assign(correct=uniform < chance, thinking_tokens=40 + (group != UNSTEERED)))
    trials = pd.DataFrame({"group": list(chances), "correct": list(chances.values()), "gamma": 0.2})
    trials = trials.assign(candidate="x", feature=1, n=60, gain=trials["correct"] - 0.5)
    trials = trials.assign(condition=[f"{g} at {c}" for g, c in chances.items()], **{"share of norm": 0.1})
    identity = {"model": f"m{seed}", "kappa": kappa, "model_seed": seed}
    return Study(identity, trials, trials[[*COLUMNS, "correct"]], pd.concat(frames, ignore_index=True))
