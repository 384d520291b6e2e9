"""The paper's claims with their numbers and places, and those that it leaves open and the companion tests.

What counts for or against each is fixed here, before any notebook is run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Rule = Literal["above control", "at least", "at most", "effect", "beside", "planted"]


@dataclass(frozen=True)
class Claim:
    """One claim of the paper, or one that it leaves open and the companion tests.

    The rule says what decides: ``above control``: the interval lies above (for the claim), below (against)
    or about (undecided) the control; ``at least`` and ``at most``: the same with the claim's bar; ``effect``:
    a difference of accuracy lies above 0, or below it or so near that it counts as none
    (:func:`reasoning_features.statistics.finding`); ``beside``: the numbers are of different models
    and are only shown; ``planted``: the organism was built so, hence only a real model can tell.
    """

    id: str
    notebook: str  # the notebook that records it
    place: str  # where the paper says it
    statement: str
    paper: str  # the paper's number, as printed
    rule: Rule
    bar: float | None = None
    source: str = ""  # the paper, where it is another one: arXiv's number and version

    @property
    def where(self) -> str:
        """The place, in which paper."""
        return f"{self.source}, {self.place}" if self.source else self.place


CLAIMS: tuple[Claim, ...] = (
    Claim(
        "layer",
        "01_activations",
        "setup",
        "features are read in the middle of the model's depth (after block 19 of 32, counted from 0)",
        "0.62 of the depth",
        "beside",
    ),
    Claim(
        "moves",
        "01_activations",
        "not tested",
        "the residual stream at that layer holds the reasoning move, linearly (balanced accuracy)",
        "–",
        "above control",
    ),
    Claim(
        "l0",
        "02_sae",
        "SAE training",
        "few features are active on a token (L0)",
        "86 of 65,536",
        "beside",
    ),
    Claim(
        "variance_explained",
        "02_sae",
        "SAE training",
        "the autoencoder explains most of the variance",
        "68.5%",
        "at least",
        0.685,
    ),
    Claim(
        "second_seed",
        "02_sae",
        "not tested",
        "a second seed finds the same features again (share of live features, decoder cosine ≥ 0.7)",
        "–",
        "at least",
        0.6,
    ),
    Claim(
        "vocabulary",
        "03_reason_score",
        "figures 2 and 5",
        "words of thinking and rare elsewhere make the vocabulary R (words of R in the top 40)",
        "10 words, some chosen by hand",
        "planted",
    ),
    Claim(
        "selected",
        "03_reason_score",
        "equation 6, figure 6",
        "a small tail of features has high ReasonScore (features at the quantile)",
        "200 of 65,536 (q = 0.997)",
        "beside",
    ),
    Claim(
        "reasoning_words",
        "03_reason_score",
        "not tested",
        "ReasonScore finds what is special to the words of R, not to any words in their slots",
        "–",
        "above control",
    ),
    Claim(
        "dials",
        "03_reason_score",
        "not tested",
        "the chosen features hardly depend on α, the window and the released code's variant (Jaccard)",
        "–",
        "at least",
        0.5,
    ),
    Claim(
        "published_found",
        "03_reason_score",
        "figure 6, section on interpretation",
        "the features that the paper names are among those with the highest ReasonScore (share found)",
        "all, by construction",
        "above control",
    ),
    Claim(
        "modes",
        "04_interpretation",
        "section on interpretation",
        "chosen features stand for uncertainty, exploration or reflection (share, by a rule)",
        "46 of 200, by hand",
        "beside",
    ),
    Claim(
        "governs",
        "12_known_truth",
        "implied",
        "ReasonScore finds the features that govern reasoning (average precision against causal effects)",
        "–",
        "above control",
    ),
    Claim(
        "token_driven",
        "04_interpretation",
        "not tested; 2601.05679",
        "chosen features answer to reasoning, not to its words (share that words alone drive)",
        "45–90% in 2601.05679",
        "beside",
    ),
    Claim(
        "function",
        "04_interpretation",
        "figure 3b, table 4",
        "steering a chosen feature changes what the answers do (share with a sure change)",
        "10 groups, no control",
        "above control",
    ),
    Claim(
        "steering_accuracy",
        "05_steering",
        "abstract, table 1",
        "steering a feature that ReasonScore finds raises accuracy (gain of the best, on fresh problems)",
        "up to +2.2 points (MATH-500)",
        "effect",
    ),
    Claim(
        "steering_length",
        "05_steering",
        "abstract, table 1",
        "steering a feature that ReasonScore finds lengthens thinking (relative change of tokens)",
        "up to +20.5%, another feature",
        "above control",
    ),
    Claim(
        "screening",
        "05_steering",
        "section on steering",
        "ReasonScore's features raise accuracy when steered (share better by half a point, beside controls)",
        "of 46: 9 better, 29 within 2 points, 8 worse",
        "above control",
    ),
    Claim(
        "steering_control",
        "05_steering",
        "not tested",
        "ReasonScore's best feature beats the best that an equal search of controls finds (accuracy)",
        "–",
        "effect",
    ),
    Claim(
        "steering_difference",
        "05_steering",
        "not tested",
        "what R's words mark makes the difference: (ReasonScore − matched words), coupled less decoupled arm",
        "–",
        "effect",
    ),
    Claim(
        "mediation",
        "05_steering",
        "not tested",
        "steering works through decisions to go on (gain from the steered rates of going on alone)",
        "–",
        "effect",
    ),
    Claim(
        "ban",
        "05_steering",
        "table 2",
        "banning R while thinking costs more accuracy than banning random words",
        "86.6 against 89.4% (MATH-500)",
        "effect",
    ),
    Claim(
        "published_accuracy",
        "05_steering",
        "table 1",
        "steering the paper's own features raises accuracy (mean gain over them, all benchmarks)",
        "+2.2 points at most (MATH-500)",
        "effect",
    ),
    Claim(
        "published_length",
        "05_steering",
        "table 1",
        "steering the paper's own features lengthens thinking (mean relative change; control: random ones)",
        "+20.5% at most (MATH-500)",
        "above control",
    ),
    Claim(
        "diffing_absent",
        "06_diffing",
        "figure 4",
        "reasoning features are absent from the base model on base data (share present)",
        "0% of 46",
        "at most",
        0.05,
    ),
    Claim(
        "diffing_appears",
        "06_diffing",
        "figure 4",
        "reasoning features appear with the reasoning model and its data (share present, beside the start)",
        "60% and 51% of 46",
        "above control",
    ),
    Claim(
        "diffing_control",
        "06_diffing",
        "not tested",
        "more of them appear than of other features as frequent (share that appears)",
        "–",
        "above control",
    ),
    Claim(
        "diffing_placebo",
        "06_diffing",
        "not tested",
        "more of them appear than in a placebo stage: same model, same data, as many tokens",
        "–",
        "above control",
    ),
    Claim(
        "cross_layer",
        "06_diffing",
        "table 3",
        "reasoning features are the same in nearby layers more often than random ones are (share the same)",
        "56 against 38% (layer 17), 59 against 38% (21)",
        "above control",
    ),
    Claim(
        "base_probe",
        "06_diffing",
        "not tested; 2507.12638",
        "what is absent from the base model's dictionary is in its activations (AUC of going on, linearly)",
        "–",
        "above control",
    ),
)
