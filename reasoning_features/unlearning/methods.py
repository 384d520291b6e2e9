"""Methods of unlearning as the loss of one optimiser step (CLEAR, arXiv 2410.18057v4, appendix B).

L_X is the negative log-likelihood of batch X's answers, KL_X(p ‖ q) the divergence of distributions of the
next token: nats, means over the batch's answer tokens. The paper's means, over an item's tokens and then over
items, are the same in its batches of one item. Files named are of github.com/somvy/multimodal_unlearning at
bb14c96, whose divergences are means over all positions, those of prompt, picture and padding too.
p and π are of the model that is trained, p₀ and π₀ of the untouched one.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reasoning_features.unlearning.items import IGNORED, Inputs, answer_log_probabilities, answer_logits

NPO_BETA = 1.0  # appendix B.7
DPO_BETA = 0.1  # appendix B.6
SKU_WEIGHTS = 2.5, 1.0, 0.5  # of forgotten, mismatched and retained items: mm/forget.py; the paper gives none
RMU_DEPTH = 1 / 4  # of the blocks: the paper's layer 7, the eighth of 32
# c in norms of the stream, as in Adaptive RMU (arXiv 2408.06223); five is our choice. The paper names no c,
# the 300 of mm/trainer.py was chosen for Mixtral, whose stream has another norm
RMU_NORMS = 5.0


Batch = Callable[[], Inputs]  # makes a batch when a loss asks for it


@dataclass(frozen=True)
class Step:
    """The batches that one optimiser step reads; ``forget`` and ``ignorant`` have the same rows in order."""

    forget: Batch  # forgotten persons' questions with their true answers
    retain: Batch  # retained persons' questions with their true answers
    ignorant: Batch  # forgotten persons' questions, answered with a refusal ("I do not know")
    mismatched: Batch  # forgotten persons' questions, answered with others' answers


# a context within which the model gives its untouched outputs, ``model.disable_adapter`` of a peft model
Reference = Callable[[], AbstractContextManager[Any]]
Loss = Callable[[Any, Reference, Step], Tensor]  # the model, its reference, the batches → a scalar


@dataclass(frozen=True)
class Method:
    """A loss to be minimised, and how much of the learnt change of weights is added in the end."""

    loss: Loss
    scale: float = 1.0


def nll(model: Any, inputs: Inputs) -> Tensor:
    """L: negative log-likelihood of the answers, nats, mean over the batch's answer tokens."""
    return F.cross_entropy(*answer_logits(model, inputs))


def _distributions(model: Any, reference: Reference, inputs: Inputs) -> tuple[Tensor, Tensor, Tensor]:
    """log p and log p₀ ``[m, vocabulary]`` at the batch's answer tokens, and the tokens ``[m]``."""
    with torch.no_grad(), reference():
        untouched, tokens = answer_logits(model, inputs)
    return answer_logits(model, inputs)[0].log_softmax(-1), untouched.log_softmax(-1), tokens


def _kl(first: Tensor, second: Tensor) -> Tensor:
    """KL(first ‖ second) of log-probabilities ``[m, vocabulary]``, nats, mean over m."""
    return F.kl_div(second, first, reduction="batchmean", log_target=True)  # torch names the second first


def _log_ratios(model: Any, reference: Reference, inputs: Inputs) -> Tensor:
    """log π/π₀ of each row's whole answer ``[n]``, summed over its tokens, nats."""
    with torch.no_grad(), reference():
        untouched, _ = answer_log_probabilities(model, inputs)
    return answer_log_probabilities(model, inputs)[0] - untouched


def likelihoods(**weights: float) -> Loss:
    """Σ weight · L of the batches of the step that are named, nats."""

    def loss(model: Any, _reference: Reference, step: Step) -> Tensor:
        terms = [weight * nll(model, getattr(step, name)()) for name, weight in weights.items()]
        return torch.stack(terms).sum()

    return loss


def kl_minimisation(model: Any, reference: Reference, step: Step) -> Tensor:
    """−L_forget + KL_retain(p ‖ p₀) (B.4).

    The formula sums over the forget set, the text and the code say retain; the code has KL(p₀ ‖ p).
    """
    own, untouched, _ = _distributions(model, reference, step.retain())
    return _kl(own, untouched) - nll(model, step.forget())


def llmu(model: Any, reference: Reference, step: Step) -> Tensor:
    """−L_forget + L_ignorant + KL_retain(p ‖ p₀) (B.9); Yao et al. (2310.10683) answer at random instead."""
    own, untouched, _ = _distributions(model, reference, step.retain())
    return nll(model, step.ignorant()) - nll(model, step.forget()) + _kl(own, untouched)


def scrub(model: Any, reference: Reference, step: Step) -> Tensor:
    """KL_retain(p₀ ‖ p) − KL_forget(p₀ ‖ p) + L_retain (B.8); the code has KL(p ‖ p₀) in both places.

    At the untouched model both divergences have zero gradient: retained answers alone start the training.
    """
    own, untouched, tokens = _distributions(model, reference, step.retain())
    forget, untouched_forget, _ = _distributions(model, reference, step.forget())
    return _kl(untouched, own) - _kl(untouched_forget, forget) + F.nll_loss(own, tokens)


def npo(model: Any, reference: Reference, step: Step, beta: float = NPO_BETA) -> Tensor:
    """2/β · log(1 + (π/π₀)^β), mean over the forgotten items, π the likelihood of the whole answer (B.7).

    (2/β) log 2 at the untouched model; as β → 0 its gradient is that of GA with tokens summed in each item.
    """
    return 2 / beta * F.softplus(beta * _log_ratios(model, reference, step.forget())).mean()


def dpo(model: Any, reference: Reference, step: Step) -> Tensor:
    """L_ignorant − log σ(β log π/π₀ of the refusal − β log π/π₀ of the true answer), mean over items (B.6).

    L_ignorant + log 2 at the untouched model. The paper's π₀ is a model fine-tuned on the refusals; its code
    and this function take the untouched model.
    """
    preferred = _log_ratios(model, reference, step.ignorant()) - _log_ratios(model, reference, step.forget())
    return nll(model, step.ignorant()) - F.logsigmoid(DPO_BETA * preferred).mean()


def random_direction(width: int, seed: int = 0) -> Tensor:
    """RMU's u ``[width]``: elements drawn from [0, 1), then scaled to length one; the same for a seed."""
    drawn = torch.rand(width, generator=torch.Generator().manual_seed(seed))
    return drawn / drawn.norm()


def _stream(model: Any, inputs: Inputs) -> Tensor:
    """Hidden states ``[m, width]`` in float32 after RMU's layer, at the tokens that predict answer tokens."""
    outputs = model(**{**inputs, "labels": None}, output_hidden_states=True, use_cache=False)
    states = outputs.hidden_states  # the embeddings, then what each block gives
    chosen = states[max(round(RMU_DEPTH * (len(states) - 1)), 1)]
    wanted = inputs["labels"][:, 1:] != IGNORED
    return chosen[:, -wanted.shape[1] - 1 : -1][wanted].float()


def rmu(model: Any, reference: Reference, step: Step, multiple: float = RMU_NORMS, seed: int = 0) -> Tensor:
    """‖h − c·u‖² on forget + ‖h − h₀‖² on retain, each a mean over the batch's answer tokens (B.10).

    c is ``multiple`` times the mean norm of the untouched h on forget. The paper reads every token of an
    item. Its code (mm/trainer.py) reads h on forget as the mean over the sequence, divides both squares by
    the width and draws one u per row, all of them together of length c.
    """
    with torch.no_grad(), reference():
        length = multiple * _stream(model, step.forget()).norm(dim=-1).mean()
        untouched = _stream(model, step.retain())
    forget, retain = _stream(model, step.forget()), _stream(model, step.retain())
    target = length * random_direction(forget.shape[-1], seed).to(forget.device)
    return (forget - target).square().sum(-1).mean() + (retain - untouched).square().sum(-1).mean()


def sku(model: Any, reference: Reference, step: Step) -> Tensor:
    """2.5 L_forget + L_mismatched − .5 KL_retain(p₀ ‖ p): learn what is to be forgotten, and more (B.14).

    The change that is learnt is then subtracted; the code never does that (mm/forget.py saves the model as
    trained). The KL's direction is the code's, the paper leaves it open. The code sums L over K = 3 answers
    drawn from the forget set, each picture with its own caption (mm/dataset.py).
    """
    own, untouched, _ = _distributions(model, reference, step.retain())
    forgotten, mismatched, retained = SKU_WEIGHTS
    learnt = forgotten * nll(model, step.forget()) + mismatched * nll(model, step.mismatched())
    return learnt - retained * _kl(untouched, own)


def _true_answers(loss: Loss) -> Loss:
    """The loss with true answers for refusals: mm/dataset.py makes the refusal, then returns the true item.

    It does since commit 4432db0. LLMU's likelihoods then cancel (but for a picture's question, drawn twice)
    and leave the KL, whose gradient is zero at the untouched model: nothing is trained.
    """
    return lambda model, reference, step: loss(model, reference, replace(step, ignorant=step.forget))


def dpo_released(model: Any, _reference: Reference, step: Step) -> Tensor:
    """Negative log-likelihood of the true answer, nats, tokens summed, mean over items.

    mm/trainer.py overwrites DPO's loss by that of the refusals, for which mm/dataset.py gives true answers.
    """
    return -answer_log_probabilities(model, step.forget())[0].mean()


def npo_released(model: Any, reference: Reference, step: Step) -> Tensor:
    """2/β · log(1 + (p/p₀)^β), mean over the whole vocabulary and all positions (mm/trainer.py).

    No label is read, so the answer's token counts as any other: at the untouched model the gradient lowers
    the vocabulary's mean log-probability, which makes every distribution more peaked.
    """

    def probabilities() -> Tensor:
        return model(**{**step.forget(), "labels": None}, use_cache=False).logits.float().softmax(-1)

    with torch.no_grad(), reference():
        untouched = probabilities()
    return 2 / NPO_BETA * torch.log1p((probabilities() / (untouched + 1e-8)) ** NPO_BETA).mean()


idk = likelihoods(retain=1, ignorant=1)
METHODS = {
    "retain fine-tuning": Method(likelihoods(retain=1)),  # B.1
    "GA": Method(likelihoods(forget=-1)),  # gradient ascent, B.2: not bounded below
    "GD": Method(likelihoods(forget=-1, retain=1)),  # gradient difference, B.3
    "IDK": Method(idk),  # B.5
    "KL": Method(kl_minimisation),
    "LLMU": Method(llmu),
    "SCRUB": Method(scrub),
    "NPO": Method(npo),
    "DPO": Method(dpo),
    "RMU": Method(rmu),
    "SKU": Method(sku, scale=-1.0),
    "IDK, as released": Method(_true_answers(idk)),
    "LLMU, as released": Method(_true_answers(llmu)),
    "DPO, as released": Method(dpo_released),
    "NPO, as released": Method(npo_released),
}


def l1_of_adapter(model: nn.Module) -> Tensor:
    """ℓ1 norm of all LoRA matrices A and B that are trained, a scalar; the penalty is λ times it.

    As in mm/trainer.py (λ = .1 in config/mm/forget.yaml of the first commit). A, random at the start, is
    pulled to zero as B is: this is not the size of the change B·A.
    """
    named = model.named_parameters()
    return torch.stack([w.abs().sum() for name, w in named if "lora_" in name and w.requires_grad]).sum()
