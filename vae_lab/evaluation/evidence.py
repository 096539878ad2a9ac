r"""Estimates of log p(x), in nats, for every image of a batch.

* :func:`importance_weighted`: a lower bound, for every latent, and what its weights were like.
* :func:`annealed`: a second estimate where z can be any numbers, which needs no good q(z|x).
* :func:`enumerated`: log p(x) itself, for few discrete states.
"""

import math
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution

from ..conditions import SURE
from ..distributions import base, per_variable, power, support
from ..inputs import Array, check_count
from ..latents import Latent
from ..memory import MEMORY, images_at_once

if TYPE_CHECKING:
    from ..vae import VAE

MAX_STATES = 2**16
PILOT_CHAINS = 4
LEAPFROG_STEPS = 5
ACCEPTANCE = 0.65  # what step sizes are adapted to


class Weighted(NamedTuple):
    """The importance-weighted bound and what its weights were like.

    Attributes:
        bound: on log p(x), [B], in nats.
        reconstruction: the mean of log p(x|z) over the samples, [B], in nats.
        effective_samples: :math:`(\\sum_s w_s)^2 / \\sum_s w_s^2`, [B], from 1 to S.
        largest_weight: of the normalised weights, [B], from 1 / S to 1. Where it is near 1 the
            bound is that of one lucky sample, and more of them would raise it.
    """

    bound: Tensor
    reconstruction: Tensor
    effective_samples: Tensor
    largest_weight: Tensor


class Annealed(NamedTuple):
    """The result of annealed importance sampling.

    Attributes:
        estimate: of log p(x), [B], in nats; a lower bound in expectation.
        effective_chains: as :attr:`Weighted.effective_samples`, [B].
        acceptance: of the transitions, [B], from 0 to 1.
    """

    estimate: Tensor
    effective_chains: Tensor
    acceptance: Tensor


@torch.no_grad()
def importance_weighted(
    vae: "VAE",
    x: Array,
    num_samples: int = 5000,
    chunk: int | None = None,
    memory: float = MEMORY,
) -> Weighted:
    r"""The importance-weighted bound with exactly `num_samples` samples.

    .. math:: \log \frac{1}{S} \sum_s w_s \le \log p(x), \quad
              w_s = \frac{p(x, z_s)}{q(z_s|x)}, \quad z_s \sim q(z|x)

    On average it does not decrease in S, and is log p(x) in the limit. No more than a chunk of the
    weights is ever kept.

    Args:
        x: images in [0, 1], [B, C, H, W].
        chunk: how many samples of each image are decoded at once; does not change the bound. None:
            so many that a CPU decodes some 1000 images, which stay in its cache, and an accelerator
            16 times as many, within `memory`.
        memory: in bytes, roughly.

    Source: Burda, Grosse & Salakhutdinov, *Importance Weighted Autoencoders*, ICLR 2016,
    arXiv:1509.00519
    """
    check_count("num_samples", num_samples)
    if chunk is not None:
        check_count("chunk", chunk)
    x = vae.images(x)
    if not len(x):  # of which torch sums no log-densities
        return Weighted(*4 * [x.new_zeros(0)])
    if vae.infers_labels:
        return _over_labels(vae, x, num_samples, chunk, memory)
    chunk = chunk or max(images_at_once(vae, memory) // len(x), 1)
    q, prior = vae.encode(x), vae.p_z()
    weights, reconstruction = _Sum(x), torch.zeros((), device=x.device)
    for start in range(0, num_samples, chunk):
        z = q.sample((min(chunk, num_samples - start),))
        log_px_z = vae.log_px_z(x, z)
        weights.add(log_px_z + prior.log_prob(z) - q.log_prob(z))
        reconstruction = reconstruction + log_px_z.sum(0) / num_samples
    bound = weights.log() - math.log(num_samples)
    return Weighted(bound, reconstruction, weights.effective(), weights.largest())


def _over_labels(
    vae: "VAE", x: Tensor, num_samples: int, chunk: int | None, memory: float
) -> Weighted:
    r"""The bound of a model that infers labels: :math:`\log \sum_y p(y) \, \frac{1}{S_y} \sum_s
    w_{ys}`, with as many samples for each label as there are for one, but at least one."""
    each, log_py = _of_labels(vae, x)
    samples = max(num_samples // len(each), 1)
    found = [importance_weighted(one, x, samples, chunk, memory) for one in each]
    bounds, *others = (torch.stack(terms) for terms in zip(*found, strict=True))  # [K, B]
    posterior = (log_py + bounds).softmax(0)  # of y given x, as far as it is known
    reconstruction, effective, largest = ((posterior * term).sum(0) for term in others)
    return Weighted((log_py + bounds).logsumexp(0), reconstruction, effective, largest)


def _of_labels(vae: "VAE", x: Tensor) -> tuple[list["VAE"], Tensor]:
    """The model given each label, and log p(y), [K, B]."""
    level = vae.infer(x)
    labels = support(level.q)  # [K, B, K]
    log_py = level.p().log_prob(labels)
    ruled_out = level.q.log_prob(labels) <= -SURE  # another one is known
    return [vae.settled(label) for label in labels], log_py.masked_fill(ruled_out, -torch.inf)


def annealed(
    vae: "VAE",
    x: Array,
    num_chains: int = 16,
    steps: int = 200,
    start: Literal["posterior", "prior"] = "posterior",
) -> Annealed:
    r"""Annealed importance sampling with Hamiltonian transitions, where z can be any numbers.

    Chains move from a base distribution b through :math:`f_t(z) = b(z)^{1 - \beta_t} \,
    p(x, z)^{\beta_t}`, and each weighs

    .. math:: \log w = \sum_t (\beta_t - \beta_{t-1}) \, (\log p(x, z_{t-1}) - \log b(z_{t-1}))

    whose mean over chains estimates p(x) without bias. Step sizes, one for every image and step,
    are adapted in a pilot run with chains of its own and then stay as they are, so that the
    transitions leave f_t invariant.

    Args:
        x: images in [0, 1], [B, C, H, W]; all chains of all of them are in memory at once.
        steps: T. One costs 5 gradients of log p(x, z) for each chain and image.
        start: the base. "posterior" is q(z|x), with which some hundred steps do; "prior" does not
            use the encoder at all, and needs thousands.

    Sources: Neal, *Annealed Importance Sampling*, Statistics and Computing 2001,
    arXiv:physics/9803008; for VAEs: Wu et al., *On the Quantitative Analysis of Decoder-Based
    Generative Models*, ICLR 2017, arXiv:1611.04273
    """
    if vae.infers_labels:
        raise ValueError(
            "annealed importance sampling needs y: type vae.given(y), or use importance_weighted"
        )
    check_count("num_chains", num_chains)
    check_count("steps", steps)
    if start not in ("posterior", "prior"):
        raise ValueError(f"start must be posterior or prior, got {start!r}")
    if not can_anneal(vae.latent):
        raise ValueError(
            "annealed importance sampling needs latents that can be any numbers, got "
            f"{type(vae.latent).__name__}: use importance_weighted"
        )
    if start == "prior" and vae.prior is not None:
        raise ValueError("start=prior needs the latent's own prior: use start=posterior")
    x = vae.images(x)
    path = _Path(vae, x, start)
    betas = torch.linspace(0, 1, steps + 1, dtype=torch.float64).tolist()
    sizes = _adapted(path, betas)
    point = path.draw(num_chains)
    log_w, accepted = torch.zeros_like(point.log_base), torch.zeros(len(x), device=x.device)
    for t in range(steps):
        if t:
            point, probability = path.move(point, betas[t], sizes[t - 1])
            accepted = accepted + probability.mean(0) / (steps - 1)
        log_w = log_w + (betas[t + 1] - betas[t]) * (point.log_joint - point.log_base)
    weights = _Sum(x)
    weights.add(log_w)
    return Annealed(weights.log() - math.log(num_chains), weights.effective(), accepted)


@torch.no_grad()
def enumerated(
    vae: "VAE", x: Array, max_states: int = MAX_STATES, memory: float = MEMORY
) -> Tensor:
    r""":math:`\log p(x) = \log \sum_z p(z) \, p(x|z)` over all K^L states of discrete latents, [B].

    Every state is decoded once for all images.

    Args:
        x: images in [0, 1], [B, C, H, W].
        max_states: more of them, and latents with infinitely many, are refused.
        memory: in bytes, roughly.
    """
    if (states := vae.latent.num_states) > max_states:
        raise ValueError(
            f"{type(vae.latent).__name__} has {power(states)} states, more than max_states="
            f"{max_states}: use importance_weighted"
        )
    x = vae.images(x)
    if vae.infers_labels:
        each, log_py = _of_labels(vae, x)
        found = [enumerated(one, x, max_states, memory) for one in each]
        return (log_py + torch.stack(found)).logsumexp(0)
    prior, total = vae.p_z(), _Sum(x)
    chunk = max(images_at_once(vae, memory) // max(len(x), 1), 1)
    for z in support(vae.latent.prior()).split(chunk):
        z = z.unsqueeze(1)  # [states, 1, *E]
        log_px_z = vae.likelihood.log_prob(vae.decode(z), x)  # [states, B]
        total.add(log_px_z + prior.log_prob(z))
    return total.log()


def can_anneal(latent: Latent) -> bool:
    """Whether z can be any numbers, so that a chain can move wherever the gradient leads it."""
    return latent.closed_kl and latent.bounds == (-math.inf, math.inf)


class _Sum:
    """A running sum of weights exp(log_w) over the leading axis, for every image.

    Kept relative to the largest weight so far, so that nothing overflows and nothing is lost.
    """

    def __init__(self, x: Tensor) -> None:
        self._top = torch.full((len(x),), torch.finfo(torch.float32).min, device=x.device)
        self._sum = self._squares = torch.zeros_like(self._top)

    def add(self, log_w: Tensor) -> None:
        """Adds weights [S, B]."""
        top = torch.maximum(self._top, log_w.amax(0))
        kept, w = (self._top - top).exp(), (log_w - top).exp()
        self._sum = self._sum * kept + w.sum(0)
        self._squares = self._squares * kept.square() + w.square().sum(0)
        self._top = top

    def log(self) -> Tensor:
        """The sum's logarithm, [B]."""
        return self._top + self._sum.log()

    def effective(self) -> Tensor:
        """The effective number of samples, [B]: so many equal weights would be as good."""
        return self._sum.square() / self._squares

    def largest(self) -> Tensor:
        """The share of the largest weight, which is kept as 1, [B]."""
        return 1 / self._sum


class _Point(NamedTuple):
    """The points z [S, B, D] of the chains, with both log-densities [S, B] and their gradients."""

    z: Tensor
    log_base: Tensor
    log_joint: Tensor
    grad_base: Tensor
    grad_joint: Tensor


class _Path:
    """The distributions between a base and p(x, z), and transitions that leave them invariant."""

    def __init__(self, vae: "VAE", x: Tensor, start: str) -> None:
        self.vae, self.x = vae, x
        with torch.no_grad():
            self.prior, q = vae.p_z(), vae.encode(x)
            self.base: Distribution = (
                q if start == "posterior" else self.prior.expand(q.batch_shape)
            )
        # [B, D]: the mass of every coordinate
        self.scale = per_variable(base(self.base).stddev, self.base)

    def draw(self, num_chains: int) -> _Point:
        return self.at(self.vae.latent.numbers(self.base.sample((num_chains,))))

    def at(self, z: Tensor) -> _Point:
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            point = self.vae.latent.from_numbers(z)
            log_base = self.base.log_prob(point)
            log_joint = self.vae.log_px_z(self.x, point) + self.prior.log_prob(point)
            (grad_base,) = torch.autograd.grad(log_base.sum(), z)
            (grad_joint,) = torch.autograd.grad(log_joint.sum(), z)
        return _Point(z.detach(), log_base.detach(), log_joint.detach(), grad_base, grad_joint)

    def move(self, point: _Point, beta: float, size: Tensor) -> tuple[_Point, Tensor]:
        """A Hamiltonian transition at inverse temperature beta, and its acceptance [S, B].

        Args:
            size: of a leapfrog step, in units of the base's standard deviations, [B].
        """
        step = size.unsqueeze(-1) * (0.8 + 0.4 * torch.rand_like(point.z[..., :1]))  # no resonance
        velocity = torch.randn_like(point.z)
        energy = self._energy(point, beta, velocity)
        new = point
        for _ in range(LEAPFROG_STEPS):
            velocity = velocity + step / 2 * self._force(new, beta)
            new = self.at(new.z + step * self.scale * velocity)
            velocity = velocity + step / 2 * self._force(new, beta)
        gain = (self._energy(new, beta, velocity) - energy).nan_to_num(-torch.inf)
        probability = gain.clamp_max(0).exp()
        accept = torch.rand_like(probability) < probability
        kept = (
            torch.where(accept if a.ndim == 2 else accept.unsqueeze(-1), a, b)
            for a, b in zip(new, point, strict=True)
        )
        return _Point(*kept), probability

    def _energy(self, point: _Point, beta: float, velocity: Tensor) -> Tensor:
        """The log-density of the position and the velocity, [S, B]."""
        log_density = (1 - beta) * point.log_base + beta * point.log_joint
        return log_density - velocity.square().sum(-1) / 2

    def _force(self, point: _Point, beta: float) -> Tensor:
        return self.scale * ((1 - beta) * point.grad_base + beta * point.grad_joint)


def _adapted(path: _Path, betas: list[float]) -> list[Tensor]:
    """Step sizes [B] for every transition, from a run with chains of its own."""
    point = path.draw(PILOT_CHAINS)
    log_size = torch.full_like(point.log_base[0], math.log(0.5 * path.scale.shape[-1] ** -0.25))
    found = []
    for beta in [betas[1]] * 20 + betas[1:-1]:
        point, probability = path.move(point, beta, log_size.exp())
        found.append(log_size.exp())
        log_size = log_size + 0.2 * (probability.mean(0) - ACCEPTANCE)
    return found[20:]
