"""Codebooks: categories that are points in a space, of which the nearest are the likeliest."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Distribution

from ..distributed import all_sum
from ..distributions import base, full_precision, log_softmax, one_hot, wrapped
from ..estimators.base import surrogate
from ..quantized import Quantized, QuantizedCategory, lowest
from ..schedules import Schedule, as_schedule, bounds
from .codes import Codes
from .discrete import OneHot

RIDGE = 1e5  # units in the last place; where codes span a part of their space only, it counts
LEAST = 0.01  # of the codes' spread, for a temperature


class Nearest(OneHot):
    r"""One-hot variables whose categories are codes e_k in a space of D dimensions; z is [L, K].

    .. math:: q(z_l = k) \propto \exp(-\|h_l - e_{lk}\|^2 / T)

    The encoder gives the L vectors h. The decoder sees the codes, z times the codebook, and so a
    mixture of codes where z is one of categories. At T = 0 the nearest code has all of the
    probability: q is :class:`~vae_lab.quantized.Quantized`. A subclass says what the codes are.

    Args:
        latents: L.
        categories: K.
        dim: D.
        temperature: T, a number or a schedule, positive; or 0.
        learn_prior: train the prior's logits; uniform otherwise.
    """

    def __init__(
        self,
        latents: int,
        categories: int,
        dim: int,
        temperature: float | Schedule,
        learn_prior: bool,
    ) -> None:
        if dim < 1:
            raise ValueError(f"dim must be at least 1, got {dim}")
        super().__init__(latents, categories, latents * dim, learn_prior, latents * categories)
        self.dim = dim
        self.temperature = as_schedule(temperature)
        self.deterministic = is_zero(self.temperature)

    @property
    def width(self) -> int:
        return self.latents * self.dim

    def codebook(self) -> Tensor:
        """The codes of each variable, [L, K, D]; or of all of them, [1, K, D]."""
        raise NotImplementedError

    def vectors(self, parameters: Tensor) -> Tensor:
        """What the encoder gives, [*, L * D] -> h [*, L, D]."""
        return full_precision(parameters).unflatten(-1, (self.latents, self.dim))

    def embed(self, z: Tensor) -> Tensor:
        return _exactly(_mixed, z, self.codebook()).flatten(-2).to(z.dtype)

    def distribution(self, parameters: Tensor) -> Distribution:
        h, codes = self.vectors(parameters), self.codebook()
        if not self.deterministic:
            closeness = _exactly(_closeness, h, codes)  # [*, L, K]
            return self.categorical(closeness / self.present_temperature)
        index = self.nearest(h)
        category = codes[..., 0]

        def carried(move: Tensor) -> Tensor:
            return _Carried.apply(one_hot(index, category), move, _inverse(codes.detach()))

        q = QuantizedCategory(index, category, h, _chosen(codes, index), carried)
        return self.independent(q)

    def embedded(self, q: Distribution) -> Distribution | None:
        if not self.deterministic or type(self).embed is not Nearest.embed:
            return None
        inner = base(q)
        return as_seen(inner, inner.code, lambda move: move, len(self.grid))

    @torch.no_grad()
    def nearest(self, h: Tensor) -> Tensor:
        """The code nearest to each vector, h [*, L, D] -> [*, L]."""
        return _exactly(_closeness, h, self.codebook()).argmax(-1)

    @property
    def present_temperature(self) -> Tensor:
        """T, shape []."""
        return self.temperature.value

    def kl(self, q: Distribution) -> Tensor:
        """Of the nearest code it is -log p(z), that of the code alone."""
        inner = base(q)
        if not isinstance(inner, QuantizedCategory):
            return super().kl(q)
        log_p = log_softmax(self.prior_parameters.unflatten(-1, self.variables))  # [L, K]
        log_p = log_p.clamp_min(lowest(log_p)).unsqueeze(-1)
        return -_chosen(log_p, inner.index).squeeze(-1)

    def aggregate_kl(self, q: Distribution) -> Tensor:
        r"""As :meth:`.Finite.aggregate_kl`; at T = 0 of probabilities that have a derivative, those
        at a T that is the mean squared distance from h to its code."""
        if self.deterministic:
            q = self.categorical(self.softened(base(q).h, base(q).code))
        return super().aggregate_kl(q)

    def softened(self, h: Tensor, code: Tensor) -> Tensor:
        """Logits [*, L, K] of h at a T that is the mean squared distance to its code, both
        [*, L, D]; or a hundredth of that of the codes to their mean, where codes lie on h."""
        codes = self.codebook()
        temperature = mean_over_processes((h - code).detach().square().sum(-1))
        spread = (codes - codes.mean(-2, keepdim=True)).detach().square().sum(-1).mean()
        return _exactly(_closeness, h, codes) / temperature.clamp_min(LEAST * spread)


class Codebook(Nearest):
    r"""Categories whose codes are learned; z is L one-hot rows of K.

    .. math:: q(z_l = k) \propto \exp(-\|h_l - e_{lk}\|^2 / T)

    At T > 0 any estimator of categorical variables trains encoder and codes, with a true ELBO. At
    T = 0 it is the latent of a VQ-VAE, which :class:`~vae_lab.estimators.VectorQuantization`
    trains. Its KL is then log K for each variable, whatever x is: the length of the name of a code,
    in nats. The ELBO is a bound on log p(x) all the same, but training does not follow its
    gradient.

    Args:
        latents: L.
        categories: K.
        dim: D, of the codes; the encoder's last layer maps its features to it.
        temperature: T, a number or a schedule, positive; or 0.
        learn_temperature: train T, which begins there.
        shared: one codebook for all L variables; each has its own otherwise.
        cosine: codes and h have a length of 1.
        decay: at T = 0 the codes follow the mean of their h, with so much of the past; None: the
            gradient, which they always follow where they are drawn.
        revive: at T = 0 a code begins anew where its usage falls below this share of 1 / K; 0:
            never. Where codes are drawn h need not lie among them, and none begins anew.
        learn_prior: train the prior's logits; uniform otherwise.

    Three codes on a line, and an h between the first two of them:

    >>> import torch
    >>> latent = Codebook(categories=3, dim=1)
    >>> latent.book.codes.data = torch.tensor([[[0.0], [1.0], [5.0]]])
    >>> q = latent.distribution(torch.tensor([0.2]))
    >>> print(latent.codes(q).detach(), latent.embed(latent.mode(q)).detach())
    tensor([[6.4566e-01, 3.5434e-01, 6.6256e-11]]) tensor([0.])

    Source: van den Oord, Vinyals & Kavukcuoglu, *Neural Discrete Representation Learning*, NeurIPS
    2017, arXiv:1711.00937; T > 0: Takida et al., *SQ-VAE: Variational Bayes on Discrete
    Representation with Self-annealed Stochastic Quantization*, ICML 2022, arXiv:2205.07547; few
    dimensions and cosine: Yu et al., *Vector-quantized Image Modeling with Improved VQGAN*, ICLR
    2022, arXiv:2110.04627
    """

    def __init__(
        self,
        latents: int = 1,
        categories: int = 512,
        dim: int = 8,
        temperature: float | Schedule = 1.0,
        learn_temperature: bool = False,
        shared: bool = False,
        cosine: bool = False,
        decay: float | None = 0.9,
        revive: float = 0.1,
        learn_prior: bool = False,
    ) -> None:
        super().__init__(latents, categories, dim, temperature, learn_prior)
        if learn_temperature and self.deterministic:
            raise ValueError("learn_temperature needs a positive temperature, got 0")
        self.learn_temperature, self.shared, self.cosine = learn_temperature, shared, cosine
        self.decay, self.revive = decay, revive
        for name, share in (("decay", decay), ("revive", revive)):
            if share is not None and not 0 <= share < 1:
                null = ", or null" if name == "decay" else ""
                raise ValueError(f"{name} must be in [0, 1){null}, got {share:g}")
        kept = (decay, revive) if self.deterministic else (None, 0.0)
        self.book = Codes((1 if shared else latents, categories, dim), *kept)
        self.log_factor = nn.Parameter(torch.zeros(1), requires_grad=learn_temperature)

    @property
    def present_temperature(self) -> Tensor:
        return self.temperature.value * self.log_factor.exp().squeeze(0)

    def codebook(self) -> Tensor:
        codes = full_precision(self.book.codes).clone()  # the next batch writes into the book
        return F.normalize(codes, dim=-1) if self.cosine else codes

    def vectors(self, parameters: Tensor) -> Tensor:
        h = super().vectors(parameters)
        return F.normalize(h, dim=-1) if self.cosine else h

    def learn(self, parameters: Tensor) -> Distribution:
        with torch.no_grad():
            h = self.vectors(parameters)
            if self.deterministic:
                chosen = one_hot(self.nearest(h), self.book.codes[..., 0])
            else:
                chosen = base(self.distribution(parameters)).probs.nan_to_num()
            books = len(self.book.codes)
            self.book.learn(*(x.reshape(-1, books, x.shape[-1]) for x in (h, chosen)))
        return self.distribution(parameters)

    def learned(self) -> dict[str, Tensor]:
        return {"revived_codes": self.book.revived.sum(), "code_perplexity": self.book.perplexity}


def is_zero(temperature: Schedule) -> bool:
    """Whether the temperature of a q is 0.

    Raises:
        ValueError: it is negative, or 0 at some steps only.
    """
    least, most = bounds(temperature)
    if not least >= 0 or (least == 0 and most > 0):
        raise ValueError(f"temperature must be positive, or 0 at all steps, got {least:g}")
    return most == 0


def as_seen(
    q: Quantized, seen: Tensor, moved: Callable[[Tensor], Tensor], places: int
) -> Distribution:
    """q(z), as the distribution of what the decoder sees, of all L vectors: [*, L * D].

    Args:
        seen: it, [*, L, D].
        moved: the move of q's codes -> that of what is seen, [*, L, D].
        places: the axes of a grid before it.
    """
    point = seen.flatten(-2)

    def carried(move: Tensor) -> Tensor:
        return point + surrogate(moved(move).flatten(-2))

    return wrapped(Quantized(point, q.h, q.code, carried, 1), 1 + places)


def mean_over_processes(x: Tensor) -> Tensor:
    """The mean of what is not negative, above 0, in all processes together, shape []."""
    total, count = all_sum(torch.stack([x.sum(), torch.ones_like(x).sum()]))
    return (total / count).clamp_min(torch.finfo(x.dtype).tiny)


class _Carried(torch.autograd.Function):
    r"""z, whose gradient is that of a move :math:`\Delta` of its code, [*, L, K].

    .. math:: \Delta z = \Delta (\bar C^\top \bar C)^{-1} \bar C^\top, \qquad
              \Delta z \, C = \Delta, \qquad \Delta z \, 1 = 0

    with the codes C, and :math:`\bar C` without their mean: z still sums to 1, so that what is the
    same for all codes has no gradient. It is least squares where the codes' differences do not span
    their space. Nobody needs the values of such a move of z: only gradients are taken back.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(z: Tensor, move: Tensor, inverse: Tensor) -> Tensor:
        return z.view_as(z)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[2])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor, None]:  # type: ignore[override]
        return None, _exactly(_mixed, gradient, ctx.saved_tensors[0].mT), None


def _inverse(codes: Tensor) -> Tensor:
    """[L, D, K]; no singular values, for which a GPU would be waited for."""
    precise = codes if codes.device.type == "mps" else codes.double()
    precise = precise - precise.mean(-2, keepdim=True)
    gram = precise.mT @ precise
    diagonal = gram.diagonal(dim1=-2, dim2=-1)
    limits = torch.finfo(gram.dtype)
    ridge = RIDGE * limits.eps * diagonal.mean(-1, keepdim=True) + limits.tiny
    root, _ = torch.linalg.cholesky_ex(gram + torch.diag_embed(ridge.expand_as(diagonal)))
    return torch.cholesky_solve(precise.mT, root).to(codes)


def _chosen(codes: Tensor, index: Tensor) -> Tensor:
    """The codes of these names, [L, K, D] or [1, K, D] and [*, L] -> [*, L, D]."""
    if len(codes) == 1:
        return F.embedding(index, codes[0])
    return codes[torch.arange(len(codes), device=index.device), index]


def _exactly(function: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor) -> Tensor:
    """A function of x and y in their own precision; autocast would take half of it away."""
    with torch.autocast(x.device.type, enabled=False):
        return function(x.to(y.dtype), y)


def _mixed(weights: Tensor, codes: Tensor) -> Tensor:
    """Weights [*, L, K] and codes [L, K, D], or [1, K, D] -> [*, L, D]."""
    if len(codes) == 1:  # laid out as is several times as fast on a CPU where D is small
        return F.linear(weights, codes[0].T.contiguous())
    return torch.einsum("...lk,lkd->...ld", weights, codes)


def _closeness(h: Tensor, codes: Tensor) -> Tensor:
    """-|h - e|^2 + |h|^2, [*, L, K], from the codes' mean, near which less is lost to rounding."""
    center = codes.mean(-2)  # [L, D]
    h, codes = h - center, codes - center.unsqueeze(-2)
    length = codes.square().sum(-1)
    if len(codes) == 1:
        return F.linear(h, 2 * codes[0], -length[0])
    return _mixed(h, 2 * codes.mT) - length
