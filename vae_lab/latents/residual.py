"""Codebooks in a chain: each has codes for what the ones before it left over."""

from collections.abc import Sequence
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from ..distributions import base, full_precision
from ..quantized import QuantizedCategory
from .codebook import Codebook, as_seen
from .discrete import OneHot


class ResidualCodebook(OneHot):
    r"""Residual vector quantisation: R codes are added up to one vector; z is R L one-hot rows.

    .. math:: k_r = \arg\min_k \| h_r - e_{rk} \|^2, \qquad h_1 = h, \qquad
              h_{r+1} = h_r - e_{r k_r}

    The decoder sees :math:`\sum_r e_{r k_r}`: K^R points from R K codes. Those of all L vectors at
    the first, coarsest level come first in z. Each level has codes of its own, which follow the
    mean of what is left over at it, and begin anew by themselves.

    :class:`~vae_lab.estimators.VectorQuantization` trains it, with its loss at every level: h_r
    moves as h does. The decoder's gradient at the sum is copied to h once; that of the rotation
    trick is turned as h would be to become its first code. As with :class:`Codebook` at T = 0, the
    KL is log K for each of the codes.

    Args:
        latents: L.
        depth: R.
        categories: K, at each level.
        dim: D.
        shared: one codebook of each level for all L vectors; each has its own otherwise.
        decay: see :class:`Codebook`, as for the next one.
        revive: where a code begins anew.
        learn_prior: train the prior's logits; uniform otherwise.

    Ten and one are 11, the nearest sum to 11.2:

    >>> import torch
    >>> latent = ResidualCodebook(depth=2, categories=2, dim=1)
    >>> for level, far in zip(latent.levels, (10.0, 1.0)):
    ...     _ = level.book.codes.copy_(torch.tensor([[[0.0], [far]]]))
    >>> z = latent.mode(latent.distribution(torch.tensor([11.2])))
    >>> print(latent.numbers(z), latent.embed(z))
    tensor([1, 1]) tensor([11.])

    Source: Lee, Kim, Kim, Cho & Han, *Autoregressive Image Generation using Residual Quantization*,
    CVPR 2022, arXiv:2203.01941; Zeghidour et al., *SoundStream: An End-to-End Neural Audio Codec*,
    2021, arXiv:2107.03312
    """

    deterministic = True

    def __init__(
        self,
        latents: int = 1,
        depth: int = 4,
        categories: int = 512,
        dim: int = 8,
        shared: bool = False,
        decay: float | None = 0.9,
        revive: float = 0.1,
        learn_prior: bool = False,
    ) -> None:
        if depth < 1:
            raise ValueError(f"depth must be at least 1, got {depth}")
        codes = depth * latents
        super().__init__(codes, categories, latents * dim, learn_prior, codes * categories)
        self.latents, self.depth, self.dim = latents, depth, dim
        self.shared, self.decay, self.revive = shared, decay, revive
        level = partial(Codebook, shared=shared, decay=decay, revive=revive)
        levels = nn.ModuleList(level(latents, categories, dim, 0.0) for _ in range(depth))
        self.levels = cast(Sequence[Codebook], levels)

    @property
    def width(self) -> int:
        return self.latents * self.dim

    def embed(self, z: Tensor) -> Tensor:
        chosen = z.chunk(self.depth, -2)
        return torch.stack(
            [level.embed(x) for level, x in zip(self.levels, chosen, strict=True)]
        ).sum(0)

    def distribution(self, parameters: Tensor) -> Distribution:
        rest, found = full_precision(parameters), []
        for level in self.levels:
            found.append(base(level.distribution(rest)))
            rest = rest - found[-1].code.detach().flatten(-2)
        index = torch.cat([q.index for q in found], -1)
        h, code = (torch.cat([getattr(q, name) for q in found], -2) for name in ("h", "code"))

        def carried(move: Tensor) -> Tensor:
            first = found[0].carried(self._of_the_first(move, code))
            return torch.cat([first, *(q.point for q in found[1:])], -2)

        category = self.levels[0].codebook()[..., 0]
        return self.independent(QuantizedCategory(index, category, h, code, carried))

    def embedded(self, q: Distribution) -> Distribution | None:
        if type(self).embed is not ResidualCodebook.embed:
            return None
        inner = base(q)
        total = inner.code.unflatten(-2, (self.depth, self.latents)).sum(-3)
        return as_seen(
            inner, total, lambda move: self._of_the_first(move, inner.code), len(self.grid)
        )

    def _of_the_first(self, move: Tensor, code: Tensor) -> Tensor:
        """The move of the first codes, [*, R L, D] -> [*, L, D], once for all that are added to
        them; its gradient takes back f's of the others."""
        later = code[..., self.latents :, :]
        others = (later - later.detach()).unflatten(-2, (-1, self.latents)).sum(-3)
        return move[..., : self.latents, :] - others

    def aggregate_kl(self, q: Distribution) -> Tensor:
        r"""As :meth:`.Finite.aggregate_kl`, of probabilities that have a derivative, at each level
        those at a T that is the mean squared distance from what is left over to its code."""
        h, code = (x.chunk(self.depth, -2) for x in (base(q).h, base(q).code))
        logits = [level.softened(*pair) for level, *pair in zip(self.levels, h, code, strict=True)]
        return super().aggregate_kl(self.categorical(torch.cat(logits, -2)))

    def learn(self, parameters: Tensor) -> Distribution:
        """Each level learns from what is left over by the codes of those before it, which have just
        learned."""
        with torch.no_grad():
            rest = full_precision(parameters)
            for level in self.levels:
                rest = rest - base(level.learn(rest)).code.flatten(-2)
        return self.distribution(parameters)

    def learned(self) -> dict[str, Tensor]:
        each = [level.learned() for level in self.levels]
        revived, perplexity = (torch.stack([x[name] for x in each]) for name in each[0])
        return {"revived_codes": revived.sum(), "code_perplexity": perplexity.mean()}
