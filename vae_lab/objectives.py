"""The objectives, which training maximises: bounds on log p(x), one per datum, in nats."""

import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from .aggregates import Aggregate, log_mean_exp, mean
from .arguments import PrintsArguments
from .estimators import Estimator
from .estimators.base import Integrand
from .inputs import Array
from .schedules import Schedule, as_schedule, bounds

if TYPE_CHECKING:
    from .levels import Level
    from .vae import VAE


class Terms(NamedTuple):
    """An objective and what it is made of, each [B] and in nats."""

    objective: Tensor  # what is maximised
    elbo: Tensor  # reconstruction - kl, so beta = 1; at the estimator's points, relaxed or not
    reconstruction: Tensor  # E_q log p(x|z)
    kl: Tensor  # KL(q(z|x) || p(z)), in closed form where there is one


class Objective(PrintsArguments, nn.Module):
    """x [B, *X], and y of a conditional model, -> terms [B], differentiable with the estimator's
    gradient.

    A subclass gives :meth:`forward`, whose model was given y already.

    The first data are looked at: values outside the likelihood's range are refused.

    Attributes:
        multi_sample: is it a bound with all samples of z in one logarithm, and no mean over them.
        compiles: True if it traces into one graph; else, in a compiled step, what comes after the
            encoder runs eagerly.
        monitor: what is highest in the best checkpoint, and in the model that is released; None:
            no measurement says which one is the best, and the newest is taken.
    """

    multi_sample: ClassVar[bool] = False
    compiles: ClassVar[bool] = True
    monitor: str | None = "val/elbo"

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Groups for the optimizer, of those of its parameters that have settings of their own.

        A group's `max_norm` limits the norm of its gradient apart from all others.
        """
        return []

    def logged(self) -> dict[str, Tensor]:
        """Numbers of the last training batch for the log, besides the terms, by their names; those
        of this process's part of it."""
        return {}

    def __call__(self, vae: "VAE", estimator: Estimator, x: Array, y: Any = None) -> Terms:
        if y is not None:
            vae = vae.given(y, first_only=True)
        # Here and not in forward, which may be compiled: `objective.compile()`.
        return super().__call__(vae, estimator, vae.images(x, first_only=True))

    def forward(self, vae: "VAE", estimator: Estimator, x: Tensor) -> Terms:
        raise NotImplementedError


class _OverLevels(Objective):
    r"""A bound by recursion over the levels of z, of which a VAE has one.

    At each level the estimator averages what lies below it, which at the end is log p(x|z). The
    level's KL, weighted by beta, is subtracted from that in closed form. Where it is sampled
    instead, :math:`\beta (\log p(z) - \log q(z))` is added to what is averaged.

    Attributes:
        sampled: is the KL sampled even where it has a closed form.
        aggregate: how a level's samples become one value.
    """

    sampled: ClassVar[bool] = False
    aggregate: Aggregate

    def __init__(self, beta: float | Schedule = 1.0) -> None:
        super().__init__()
        self.beta = not_negative("beta", beta)

    def forward(self, vae: "VAE", estimator: Estimator, x: Tensor) -> Terms:
        level = vae.infer(x)
        if torch.compiler.is_compiling() and not self.compiles:
            from .estimators.compiled import run_eagerly

            return run_eagerly(self._terms, level, estimator)
        return self._terms(level, estimator)

    def _terms(self, level: "Level", estimator: Estimator) -> Terms:
        log_ratio = _log_ratio(level, estimator) if self.sampled or level.kl is None else None
        if log_ratio is None:  # nobody asks for z itself
            level = level.embedded or level
        seen = Seen(level, estimator)
        value_below = self._below(level, estimator, seen)

        def f(z: Tensor) -> Tensor:
            seen.note(z=z)
            below = value_below(z)
            if log_ratio is None:
                return below
            ratio = log_ratio(z)
            seen.note(below=below, ratio=ratio)
            return below + self.beta.value * ratio

        value = estimator(level.q, f, aggregate=type(self).aggregate, context=level.context)
        each_kl = level.kl() if level.kl else -seen.mean("ratio").unsqueeze(-1)  # [*B, L]
        kl = each_kl.sum(-1)
        if log_ratio is None:
            objective, reconstruction = value - self._penalty(level, each_kl, kl), value
        else:
            objective, reconstruction = value, self._reconstruction(value, kl, seen).detach()
        beside = self._beside(level, estimator, seen)
        if beside is not None:
            objective = objective + beside
        if seen.has("kl"):
            kl = kl + seen.mean("kl")
        if seen.has("lost"):
            reconstruction = reconstruction + seen.mean("lost")
        return Terms(objective, reconstruction - kl, reconstruction, kl)

    def _below(self, level: "Level", estimator: Estimator, seen: "Seen") -> Integrand:
        """What is averaged over a level's z, [S, *B]: the value of the next level, or log p(x|z).

        What it has besides log p(x|z) and the KLs it notes as `lost`, with the opposite sign.
        """

        def value(z: Tensor) -> Tensor:
            below = level.below(z)
            return below if isinstance(below, Tensor) else self._of_lower(below, estimator, seen)

        return value

    def _beside(self, level: "Level", estimator: Estimator, seen: "Seen") -> Tensor | None:
        """A term of value zero, [*B], that trains parameters of the objective's own."""
        return None

    def _of_lower(self, level: "Level", estimator: Estimator, seen: "Seen") -> Tensor:
        if self.multi_sample:
            raise ValueError(
                f"{type(self).__name__} takes all levels of z as one joint distribution, got "
                "several: use ELBO or MonteCarloELBO"
            )
        terms = self._terms(level, estimator.below)
        seen.note(kl=terms.kl, lost=terms.reconstruction - terms.objective)
        return terms.objective

    def _penalty(self, level: "Level", each_kl: Tensor, kl: Tensor) -> Tensor:
        """What is subtracted for the KL of each variable, and their sum, [*B]."""
        return self.beta.value * kl

    def _reconstruction(self, value: Tensor, kl: Tensor, seen: "Seen") -> Tensor:
        """E_q of what lies below, where the KL is sampled; all [*B].

        It is the value without its KL: not every estimator's points are equally likely.
        """
        return value + self.beta.value * kl


class ELBO(_OverLevels):
    r"""The evidence lower bound, with a weight on its KL.

    .. math:: \mathcal{L}(x) = \mathbb{E}_{q(z|x)}[\log p(x|z)]
              - \beta \sum_l \max(\mathrm{KL}_l, \lambda)
              - \gamma \sum_l \mathbb{E}_{q(z|x)}[\log \bar q(z_l) - \log p(z_l)]

    Sums over a datum's values and latents, so beta = 1 and lambda = gamma = 0 *is* the ELBO. Free
    bits apply to each datum on its own: its loss does not depend on the batch that it came in. The
    last term does: :math:`\bar q` is the mean of the posteriors over the batch, and its mean
    is KL(:math:`\bar q` || p). It keeps codes in use, and tells nothing of x. Where the prior
    leaves the KL no closed form, it is sampled, and there is neither of the two.

    Args:
        beta: a number or a schedule (KL warm-up), not negative.
        free_bits: lambda, in nats for each latent variable; below it the KL has no gradient.
        aggregate_kl: gamma, a number or a schedule, not negative; see
            :meth:`vae_lab.latents.Categorical.aggregate_kl`.

    Source: Kingma & Welling 2014, arXiv:1312.6114; beta: Higgins et al. 2017; free bits: Kingma
    et al. 2016, arXiv:1606.04934; gamma: Chen et al. 2018, arXiv:1802.04942 (dimension-wise KL)
    """

    aggregate = staticmethod(mean)

    def __init__(
        self,
        beta: float | Schedule = 1.0,
        free_bits: float = 0.0,
        aggregate_kl: float | Schedule = 0.0,
    ) -> None:
        if not free_bits >= 0:
            raise ValueError(f"free_bits must not be negative, got {free_bits:g}")
        super().__init__(beta)
        self.free_bits = free_bits
        weight = not_negative("aggregate_kl", aggregate_kl)
        self._balances = bounds(weight)[1] > 0
        self.aggregate_kl = weight if self._balances else 0.0  # nobody need see a 0 in each row

    def _terms(self, level: "Level", estimator: Estimator) -> Terms:
        if level.kl is None and (self.free_bits or self._balances):
            name = "free_bits" if self.free_bits else "aggregate_kl"
            raise ValueError(
                f"{name} needs a KL in closed form, which this model has not: leave it at 0"
            )
        return super()._terms(level, estimator)

    def _penalty(self, level: "Level", each_kl: Tensor, kl: Tensor) -> Tensor:
        if self.free_bits:
            kl = each_kl.clamp_min(self.free_bits).sum(-1)
        penalty = self.beta.value * kl
        if self._balances and level.aggregate_kl:
            weight = as_schedule(self.aggregate_kl).value
            penalty = penalty + weight * level.aggregate_kl()
        return penalty


class MonteCarloELBO(_OverLevels):
    r"""The ELBO with its KL sampled.

    .. math:: \mathcal{L}(x) = \mathbb{E}_q[\log p(x|z) + \beta (\log p(z) - \log q(z|x))]

    For estimators that gain from seeing log q(z|x) inside the expectation.

    Args:
        beta: a number or a schedule (KL warm-up), not negative.
    """

    sampled = True
    aggregate = staticmethod(mean)


class IWAE(_OverLevels):
    r"""The multi-sample bound; S is the estimator's `num_samples`.

    .. math:: \mathcal{L}_S(x) = \mathbb{E}_{z_{1:S} \sim q(z|x)} \Big[
              \log \tfrac{1}{S} \textstyle\sum_s p(x, z_s) / q(z_s | x) \Big]

    Equals the ELBO for S = 1 and does not decrease in S. With a reparameterised estimator this is
    IWAE, with the leave-one-out score function VIMCO. Relaxed samples give log-weights that
    interpolate those of one-hot samples linearly, so no bound until their temperature is low.

    Source: Burda, Grosse & Salakhutdinov, *Importance Weighted Autoencoders*, ICLR 2016,
    arXiv:1509.00519
    """

    multi_sample = True
    sampled = True
    aggregate = staticmethod(log_mean_exp)

    def __init__(self) -> None:
        super().__init__()  # no beta: with another weight than 1 the log-weights bound nothing

    def _reconstruction(self, value: Tensor, kl: Tensor, seen: "Seen") -> Tensor:
        """The mean over the samples."""
        return seen.mean("below")


class Seen:
    """The values at an estimator's points, kept without gradient for the terms that are logged."""

    def __init__(self, level: "Level", estimator: Estimator) -> None:
        self._sample_mean = partial(estimator.sample_mean, level.q)
        self._chunks: dict[str, list[Tensor]] = {}  # an estimator may take its points in parts

    def note(self, **values: Tensor) -> None:
        for name, value in values.items():
            self._chunks.setdefault(name, []).append(value.detach())

    def has(self, name: str) -> bool:
        return name in self._chunks

    def values(self, name: str) -> Tensor:
        """What was noted by this name, [S, *]."""
        return torch.cat(self._chunks[name])

    def mean(self, name: str) -> Tensor:
        """E_q of what was noted by this name, [*B]."""
        return self.mean_of(self.values(name))

    def mean_of(self, values: Tensor) -> Tensor:
        """E_q of something else at these points, [S, *B] -> [*B]."""
        return self._sample_mean(self.values("z"), values)


def _log_ratio(level: "Level", estimator: Estimator) -> Callable[[Tensor], Tensor]:
    """z -> log p(z) - log q(z)."""
    density, prior = estimator.density(level.q), level.p()
    return lambda z: prior.log_prob(z) - density.log_prob(z)


def not_negative(name: str, weight: float | Schedule) -> Schedule:
    schedule = as_schedule(weight)
    least, most = bounds(schedule)
    if not least >= 0:
        raise ValueError(f"{name} must not be negative, got {least:g}")
    if most == math.inf:
        raise ValueError(f"{name} must be finite, got {most:g}")
    return schedule
