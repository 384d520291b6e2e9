"""Steered answers, all conditions in one batch, against a run a condition with other libraries' samplers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reasoning_features.bench.setting import Setting, Sizes, questions_of_one_length
from reasoning_features.bench.timing import Bar, Row, all_in_turn, compared, in_turn
from reasoning_features.models.conditions import Condition, feature_conditions
from reasoning_features.models.sampling import TEMPERATURE, TOP_P
from reasoning_features.steering.answering import write
from reasoning_features.steering.benchmarks import Questions


def conditions_of(setting: Setting, sizes: Sizes) -> tuple[list[Condition], Tensor]:
    """The most active features at the profile's strengths, and every feature's largest activation ``[f]``."""
    features = setting.sae.encode(setting.residual[:8192])
    maxima = features.amax(0)
    often = (features > 0).sum(0).argsort(descending=True)[: sizes.features].tolist()
    strengths = setting.settings.strengths[: sizes.strengths]
    return feature_conditions(setting.sae, often, strengths, maxima.numpy()), maxima


def written(tokens: Tensor, prompt: int, end: int) -> int:
    """New tokens of rows ``[b, t]`` behind prompts of one length, the first ``end`` counted, padding not."""
    new = tokens[:, prompt:].numpy()
    ended = new == end
    lengths = np.where(ended.any(1), ended.argmax(1) + 1, new.shape[1])
    return int(lengths.sum())


def released_change(sae: Any, feature: int, target: float) -> Callable[[Tensor], Tensor]:
    """The released hook: encode the stream, set a feature to ``target``, decode, and add the error back."""

    def change(stream: Tensor) -> Tensor:
        features = sae.encode(stream)
        error = stream - sae.decode(features)
        features[..., feature] = target
        return sae.decode(features) + error

    return change


class Peers:
    """The same problems answered by TransformerBridge.generate and by Hugging Face's generate.

    Args:
        setting: the model and its autoencoder.
        questions: problems with prompts of one length.
    """

    def __init__(self, setting: Setting, questions: Questions) -> None:
        self._setting, self._questions = setting, questions
        self._prompts = torch.tensor(questions.prompts)
        self._bridge: Any = None

    def bridge(self, condition: Condition) -> int:
        """TransformerLens' sampler with a hook that adds the vector; gives the tokens written."""
        if self._bridge is None:
            self._bridge = self._setting.subject.bridge()
        vector = condition.vector

        def add(stream: Tensor, hook: Any) -> Tensor:
            return stream if vector is None else stream + vector

        hooks = [(self._setting.subject.hook_name, add)]
        with torch.no_grad(), self._bridge.hooks(fwd_hooks=hooks):
            tokens = self._bridge.generate(
                self._prompts,
                max_new_tokens=self._questions.max_new_tokens,
                eos_token_id=self._questions.end,
                do_sample=True,
                temperature=TEMPERATURE,
                top_p=TOP_P,
                prepend_bos=False,
                return_type="tokens",
                verbose=False,
            )
        return written(tokens, self._prompts.shape[1], self._questions.end)

    def unsteered(self) -> int:
        """Hugging Face's sampler; gives the tokens written."""
        model: Any = self._setting.subject.model
        with torch.no_grad():
            tokens = model.generate(
                self._prompts,
                attention_mask=torch.ones_like(self._prompts),
                max_new_tokens=self._questions.max_new_tokens,
                eos_token_id=self._questions.end,
                pad_token_id=self._questions.end,
                do_sample=True,
                temperature=TEMPERATURE,
                top_p=TOP_P,
                top_k=0,
            )
        return written(tokens, self._prompts.shape[1], self._questions.end)

    def released(self, feature: int, target: float) -> int:
        """Hugging Face's sampler with the released hook; gives the tokens written."""
        with self._setting.subject.edited(released_change(self._setting.sae, feature, target)):
            return self.unsteered()


def rows(setting: Setting, sizes: Sizes) -> list[Row]:
    """All conditions in one batch against a run each, and one condition against unsteered answers."""
    asked = questions_of_one_length(setting, sizes.problems)
    conditions, maxima = conditions_of(setting, sizes)
    few, peers = conditions[:: max(1, len(conditions) // sizes.few)][: sizes.few], Peers(setting, asked)

    def ours(given: Sequence[Condition]) -> float:
        answers: dict[int, list[int]] = {}
        rows = range(len(asked) * len(given))
        write(setting.subject, asked, given, 0, rows, answers.__setitem__, batch=len(rows))
        return float(sum(map(len, answers.values())))

    def released() -> float:
        return float(sum(peers.released(c.feature, c.gamma * float(maxima[c.feature])) for c in few))

    told = f"{len(conditions)} conditions × {len(asked)} problems, up to {asked.max_new_tokens} new tokens"
    note = f"{len(few)} of the {len(conditions)} runs of the other way are run each time"
    what = f"steered sampling, {len(conditions)} conditions in one batch"
    found, bar = [], Bar("at least", 3)
    peers_of = {
        "TransformerBridge.generate with a hook, a run a condition": lambda: sum(map(peers.bridge, few)),
        "Hugging Face's generate with the released hook, a run a condition": released,
    }
    timed = all_in_turn(lambda: ours(conditions), list(peers_of.values()), sizes.runs)
    for against, pairs in zip(peers_of, timed, strict=True):
        found.append(compared(what, against, pairs, "speed", bar, told, note))
    pairs = in_turn(lambda: ours(few[:1]), lambda: float(peers.unsteered()), 2 * sizes.runs)
    told = f"{len(asked)} problems, up to {asked.max_new_tokens} new tokens"
    against, bar = "Hugging Face's generate, unsteered, same problems", Bar("at least", 0.97)
    found.append(compared("steered sampling, one condition", against, pairs, "speed", bar, told))
    return found
