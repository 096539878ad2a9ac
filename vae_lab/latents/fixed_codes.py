"""Codes that are not learned: the points of a grid, and the corners of a cube."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Distribution

from ..distributions import base, full_precision
from ..estimators.base import surrogate
from ..networks.base import widths
from ..precision import FullPrecision
from ..quantized import Quantized
from ..schedules import Schedule, as_schedule
from .codebook import Nearest, is_zero, mean_over_processes
from .discrete import Bernoulli
from .whitening import Whitened, whitening

MOST = 2**22  # codes, of which each has a probability


class FSQ(Whitened, FullPrecision, Nearest):
    r"""Finite scalar quantisation: the nearest point of a grid in [-1, 1]^D; z is L one-hot rows.

    .. math:: q(z_l = k) \propto \exp(-\|\tanh h'_l - e_k\|^2 / T), \qquad
              e_k \in \prod_d \{-1, \dots, 1\} \text{ with } n_d \text{ equal steps}

    It is the codebook of a VQ-VAE, but a fixed one, in which each number is rounded by itself: no
    code can die, and none has to follow. Instead, training begins by whitening h to h', so that
    it is around them: :class:`~vae_lab.latents.whitening.Whitening`. The K codes are
    numbered as digits are, the last dimension first. Levels lie on both sides of 0 alike, be their
    number odd or even.

    Args:
        levels: the number of levels of each dimension, 2 or more; K is their product.
        latents: L.
        temperature: T, a number or a schedule, positive; or 0, the nearest code.
        learn_prior: train the prior's logits; uniform otherwise.
        whiten: in so many first steps of training; 0: h' is h, as in the paper, and all h can run
            to one code.

    Six codes, and the one that is nearest to what the encoder gives:

    >>> import torch
    >>> latent = FSQ(levels=(2, 3))
    >>> z = latent.mode(latent.distribution(torch.tensor([0.4, -0.1])))
    >>> print(latent.numbers(z), latent.embed(z))
    tensor([4]) tensor([1., 0.])

    Source: Mentzer, Minnen, Agustsson & Tschannen, *Finite Scalar Quantization: VQ-VAE Made
    Simple*, ICLR 2024, arXiv:2309.15505
    """

    points: Tensor
    middle: Tensor
    weights: Tensor

    def __init__(
        self,
        levels: Sequence[int] = (8, 5, 5, 5),
        latents: int = 1,
        temperature: float | Schedule = 0.0,
        learn_prior: bool = False,
        whiten: int = 300,
    ) -> None:
        levels = widths("levels", levels)
        if min(levels) < 2:
            raise ValueError(f"levels must be 2 or more of each dimension, got {[*levels]}")
        if math.prod(levels) > MOST:
            raise ValueError(f"levels make {math.prod(levels)} codes, at most {MOST} fit: use LFQ")
        super().__init__(latents, math.prod(levels), len(levels), temperature, learn_prior)
        self.levels = [*levels]
        sides = [torch.linspace(-1, 1, count) for count in levels]
        points = torch.cartesian_prod(*sides).reshape(1, -1, self.dim)
        self.register_buffer("points", points, persistent=False)
        weights = [math.prod(levels[d + 1 :]) for d in range(len(levels))]
        middle = torch.tensor([(count - 1) / 2 for count in levels])  # of its digits, at 0
        self.register_buffer("middle", middle, persistent=False)
        self.register_buffer("weights", torch.tensor(weights), persistent=False)  # of the digits
        self.whiten = whiten
        self.whitening = whitening(latents, self.dim, whiten)

    def codebook(self) -> Tensor:
        return self.points

    def vectors(self, parameters: Tensor) -> Tensor:
        return self.whitening(super().vectors(parameters)).tanh()

    @torch.no_grad()
    def nearest(self, h: Tensor) -> Tensor:
        """Each number is rounded by itself; what is none is the first level."""
        inside = h.nan_to_num(-1.0).clamp(-1, 1)
        digits = torch.addcmul(self.middle, inside, self.middle).round().long()
        return (digits * self.weights).sum(-1)


class LFQ(Whitened, Bernoulli):
    r"""Lookup-free quantisation: the nearest corner of a cube, a bit for each number; z is [L].

    .. math:: q(z_l = 1) = \sigma(4 a h'_l / T), \qquad e_l = a (2 z_l - 1)

    The corners are codes e at distances :math:`\|h' - e\|^2`, so that the bits are independent, and
    2^L codes cost no more than L numbers. Its entropies are sums over the bits: those of
    :math:`\bar q` are raised by ``ELBO(aggregate_kl=...)``, those of each q(z|x) are 0 at T = 0.

    Args:
        latents: L.
        sphere: h' has a length of 1, and so have the codes: :math:`a = 1 / \sqrt{L}`, else 1.
        temperature: T, a number or a schedule, positive; or 0, the nearest code.
        learn_prior: train the prior's logits; fair coins otherwise.
        whiten: each number, in so many first steps of training; 0: h' is h, as in the paper.

    >>> import torch
    >>> latent = LFQ(latents=3)
    >>> z = latent.mode(latent.distribution(torch.tensor([0.2, -3.0, 0.1])))
    >>> print(z, latent.embed(z))
    tensor([1., 0., 1.]) tensor([ 1., -1.,  1.])

    Source: Yu et al., *Language Model Beats Diffusion: Tokenizer is Key to Visual Generation*, ICLR
    2024, arXiv:2310.05737; the sphere: Zhao, Xiong & Kraehenbuehl, *Image and Video Tokenization
    with Binary Spherical Quantization*, ICLR 2025, arXiv:2406.07548
    """

    def __init__(
        self,
        latents: int = 10,
        sphere: bool = False,
        temperature: float | Schedule = 0.0,
        learn_prior: bool = False,
        whiten: int = 300,
    ) -> None:
        super().__init__(latents, learn_prior)
        self.sphere = sphere
        self.temperature = as_schedule(temperature)
        self.deterministic = is_zero(self.temperature)
        self.whiten = whiten
        self.whitening = whitening(latents, 1, whiten)

    @property
    def scale(self) -> float:
        """a."""
        return 1 / math.sqrt(self.latents) if self.sphere else 1.0

    def embed(self, z: Tensor) -> Tensor:
        return (2 * z - 1) * self.scale

    def distribution(self, parameters: Tensor) -> Distribution:
        h = self.whitening(full_precision(parameters).unsqueeze(-1)).squeeze(-1)
        h = F.normalize(h, dim=-1) if self.sphere else h
        if not self.deterministic:
            return self._bits(h, self.temperature.value)
        z = (h > 0).to(h)

        def carried(move: Tensor) -> Tensor:
            return z + surrogate(move / (2 * self.scale))

        return self.independent(Quantized(z, h, self.embed(z), carried, 0))

    def prior_distribution(self, parameters: Tensor) -> Distribution:
        return super().distribution(parameters)

    def aggregate_kl(self, q: Distribution) -> Tensor:
        r"""As :meth:`.Finite.aggregate_kl`; at T = 0 of probabilities that have a derivative, those
        at a T that is the mean squared distance of a number from its code."""
        if self.deterministic:
            inner = base(q)
            distance = (inner.h - inner.code).detach().square()
            q = self._bits(inner.h, mean_over_processes(distance))
        return super().aggregate_kl(q)

    def _bits(self, h: Tensor, temperature: Tensor) -> Distribution:
        return super().distribution(4 * self.scale * h / temperature)
