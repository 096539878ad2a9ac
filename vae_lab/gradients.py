"""The quality of an estimator's gradient: bias, variance and direction, measured on a batch."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .distributions import num_states
from .estimators import Estimator, Exact, Reparameterization, ScoreFunction
from .objectives import IWAE, MonteCarloELBO, Objective
from .vae import VAE


@dataclass(frozen=True)
class GradientStatistics:
    r"""Quality of R estimates g_r of the encoder's gradient g, vectors over all its parameters.

    Attributes:
        bias: :math:`\|\bar g - g\| / \|g\|`.
        bias_noise: the `bias` that an unbiased estimator would show, by the noise of the R samples
            (and of the reference, if that is an average too).
        variance: :math:`\frac{1}{R - 1} \sum_r \|g_r - \bar g\|^2`.
        snr: :math:`\|g\| / \sqrt{\text{variance}}`.
        cosine: mean cosine of g_r and g.
    """

    bias: float
    bias_noise: float
    variance: float
    snr: float
    cosine: float


@dataclass(frozen=True)
class Reference:
    """The gradient that others are compared with, and the variance of its own noise."""

    gradient: Tensor  # [P]
    variance: float
    exact: bool


def encoder_gradients(
    vae: VAE, objective: Objective, estimator: Estimator, x: Tensor, repeats: int
) -> Tensor:
    """`repeats` independent estimates of the gradient of the mean objective over x, [R, P].

    P runs over the parameters of the encoder and its head. Nothing is accumulated in `.grad`, and
    no running average moves, be it of the estimator or of the model.

    Raises:
        ValueError: q has no randomness.
    """
    check_random(vae)
    modules = (vae.encoder, vae.head)
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    rows = []
    with evaluating(estimator, vae):
        for _ in range(repeats):
            value = objective(vae, estimator, x).objective.mean()
            gradient = torch.autograd.grad(value, parameters)
            rows.append(torch.cat([g.flatten() for g in gradient]))
    return torch.stack(rows)


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Modules in evaluation mode, and then in the modes in which they were."""
    modes = [(part, part.training) for module in modules for part in module.modules()]
    try:
        for module in modules:
            module.eval()
        yield
    finally:
        for part, training in modes:
            part.training = training


def check_random(vae: VAE) -> None:
    """Refuses a q whose gradient is none of an expectation."""
    if vae.latent.deterministic:
        raise ValueError(
            f"the latent {type(vae.latent).__name__} takes the nearest code, without randomness: "
            "there is no gradient of an expectation to measure; type an estimator of drawn codes, "
            "such as estimator=gumbel_softmax, or leave out the measurement"
        )


def bound_samples(objective: Objective, estimator: Estimator) -> int:
    """The samples of one term of the objective: the estimator's S for IWAE, else 1."""
    return estimator.num_samples if objective.multi_sample else 1


def reference(
    vae: VAE,
    objective: Objective,
    x: Tensor,
    num_samples: int = 1,
    repeats: int = 100,
    max_states: int = 4096,
) -> Reference:
    """The exact gradient by enumeration where the support is small enough, else a long average.

    Args:
        num_samples: S of a multi-sample bound; 1 for the ELBO.
        repeats: the length of the average. Each of its terms has 32 samples of z for an ELBO and
            S for a bound, reparameterised where q can be, else leave-one-out.
        max_states: the largest support (of S-tuples) that is enumerated.
    """
    if isinstance(objective, IWAE) and num_samples == 1:
        objective = MonteCarloELBO()  # the same, and its average does not depend on the samples
    q = vae.latent.prior()
    if Exact.accepts(q) and num_states(q) ** num_samples <= max_states:
        exact = Exact(num_samples, max_states)
        return Reference(encoder_gradients(vae, objective, exact, x, 1)[0], 0.0, True)
    judge = Reparameterization if Reparameterization.accepts(q) else ScoreFunction
    many = num_samples if num_samples > 1 else 32
    samples = encoder_gradients(vae, objective, judge(many), x, repeats)
    return Reference(samples.mean(0), samples.var(0).sum().item() / repeats, False)


def statistics(samples: Tensor, against: Reference) -> GradientStatistics:
    """Compares estimates [R, P] with a reference."""
    size = against.gradient.norm()
    variance = samples.var(0).sum()
    noise = (variance / len(samples) + against.variance).sqrt()
    return GradientStatistics(
        bias=((samples.mean(0) - against.gradient).norm() / size).item(),
        bias_noise=(noise / size).item(),
        variance=variance.item(),
        snr=(size / variance.sqrt()).item(),  # infinite of an exact gradient
        cosine=torch.cosine_similarity(samples, against.gradient, dim=1).mean().item(),
    )
