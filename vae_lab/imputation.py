"""Missing values, filled by what a model expects of them where the others were observed."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .inputs import Array, check_count
from .memory import MEMORY, images_at_once

if TYPE_CHECKING:
    from .likelihoods import Likelihood
    from .vae import VAE


@torch.no_grad()
def impute(
    vae: "VAE", x: Array, num_samples: int = 100, draw: bool = False, y: Any = None
) -> Tensor:
    r"""x [B, *X] with its missing values, which are NaN, filled; all others are as they were.

    .. math:: \mathbb{E}[x_m \mid x_o] \approx \sum_s \bar w_s \, \mathbb{E}[x_m \mid z_s], \quad
              \bar w_s \propto \frac{p(x_o \mid z_s) \, p(z_s)}{q(z_s \mid x_o)}, \quad
              z_s \sim q(z \mid x_o)

    with o what was observed and m what is missing, and weights that sum to 1: right in the limit of
    many samples, whatever q is. Of categories the probabilities are averaged, and the most probable
    one is taken.

    Args:
        num_samples: S. Some hundred do where q is near to the posterior.
        draw: one draw of :math:`p(x_m \mid x_o)`, by one z that is drawn by its weight: for several
            tables that differ as far as the missing values are not known (multiple imputation).
        y: of a conditional model.

    Source: Mattei & Frellsen, *MIWAE: Deep Generative Modelling and Imputation of Incomplete Data
    Sets*, ICML 2019, arXiv:1812.02633
    """
    check_count("num_samples", num_samples)
    x = vae.images(x)
    vae = vae.given(y, x)
    filled = x.clone()
    at_once = images_at_once(vae, MEMORY)
    rows = x.isnan().flatten(1).any(1).nonzero()[:, 0]
    for some in rows.split(at_once) if len(rows) else ():
        values = _values(vae.rows(some), x[some], num_samples, max(at_once // len(some), 1), draw)
        filled[some] = torch.where(x[some].isnan(), values.to(x.dtype), x[some])
    return filled


def _values(vae: "VAE", x: Tensor, num_samples: int, chunk: int, draw: bool) -> Tensor:
    """Of all entries of x, of which only those that are missing are asked for, [B, *X]."""
    q, prior, likelihood = vae.encode(x), vae.p_z(), vae.likelihood.given(x)
    found = _Draw() if draw else _Mean(x)
    for start in range(0, num_samples, chunk):
        z = q.sample((min(chunk, num_samples - start),))
        params = vae.decode(z)  # [S, B, *P]
        log_px_z = likelihood.log_prob(params, x)
        found.add(likelihood, params, log_px_z + prior.log_prob(z) - q.log_prob(z))
    return found.value(likelihood)


class _Mean:
    """What is expected, averaged over z. Weights are kept relative to the largest one so far."""

    def __init__(self, x: Tensor) -> None:
        self.top = torch.full((len(x),), torch.finfo(torch.float32).min, device=x.device)
        self.weight, self.sum = torch.zeros_like(self.top), torch.zeros((), device=x.device)

    def add(self, likelihood: "Likelihood", params: Tensor, log_w: Tensor) -> None:
        """Takes in parameters [S, B, *P] and weights [S, B]."""
        top = torch.maximum(self.top, log_w.amax(0))
        kept, w = (self.top - top).exp(), (log_w - top).exp()
        expected = likelihood.expected(params)
        self.sum = self.sum * _over(kept, expected[0]) + (_over(w, expected) * expected).sum(0)
        self.weight = self.weight * kept + w.sum(0)
        self.top = top

    def value(self, likelihood: "Likelihood") -> Tensor:
        return likelihood.show(self.sum / _over(self.weight, self.sum))


class _Draw:
    """A draw at one z, which is drawn by its weight: as the largest log w with Gumbel noise."""

    def __init__(self) -> None:
        self.best: list[Tensor] = []
        self.params: list[Tensor] = []  # of them

    def add(self, likelihood: "Likelihood", params: Tensor, log_w: Tensor) -> None:
        """Takes in parameters [S, B, *P] and weights [S, B]."""
        noisy = log_w - torch.empty_like(log_w).exponential_().log()
        self.best, self.params = _best([*self.best, *noisy], [*self.params, *params])

    def value(self, likelihood: "Likelihood") -> Tensor:
        return likelihood.sample(self.params[0])


def _best(scores: list[Tensor], params: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Those with the highest score [B] of each row, as lists of one."""
    score, among = torch.stack(scores), torch.stack(params)
    row = torch.arange(score.shape[1], device=score.device)
    highest = score.argmax(0)
    return [score[highest, row]], [among[highest, row]]


def _over(weights: Tensor, values: Tensor) -> Tensor:
    """Weights [*] with as many axes as the values [*, *E] have."""
    return weights.reshape(*weights.shape, *[1] * (values.ndim - weights.ndim))
