"""What an objective starts from: groups of latent variables, each given those above it."""

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor
from torch.distributions import Distribution

from .aggregates import Aggregate, mean
from .distributions import support
from .estimators.base import Estimator, Integrand

if TYPE_CHECKING:
    from .likelihoods import Likelihood
    from .vae import VAE


class Bound(NamedTuple):
    """The ELBO and what it was made of, in nats."""

    elbo: Tensor  # [B]
    reconstruction: Tensor  # E_q log p(x|z), [B]
    kl: Tensor  # of each latent variable, [B, L]; equal shares, where only their sum is known
    q: Distribution  # batch shape [B]
    label_kl: Tensor | None = None  # KL(q(y|x) || p(y)), [B], where the label is inferred


class Observed(NamedTuple):
    """The data, and how it is said of z what they are."""

    x: Tensor  # [*B, *X]
    decode: Callable[[Tensor], Tensor]  # z [S, *B, *E] -> the parameters of p(x|z) [S, *B, *P]
    likelihood: "Likelihood"

    def log_prob(self, z: Tensor) -> Tensor:
        """log p(x|z), [S, *B]."""
        return self.likelihood.log_prob(self.decode(z), self.x)


class Level(NamedTuple):
    """One group of latent variables, given those above it. A VAE has one, of z; where the label is
    inferred, there is one of y above it."""

    q: Distribution
    p: Callable[[], Distribution]
    kl: Callable[[], Tensor] | None  # of each variable, [*B, L]; None: it has no closed form
    context: Tensor  # what q was computed from, [*B, F]
    below: Callable[[Tensor], "Level | Tensor"]  # z -> the next level, or log p(x|z) after the last
    aggregate_kl: Callable[[], Tensor] | None = None  # of the mean of q, each datum's part, [*B]
    observed: Observed | None = None  # what is below the last level
    embedded: "Level | None" = None  # the same, of what the decoder sees of z in the place of z


class Levels(Estimator):
    """An estimator for the first level, and another one for those below it.

    Args:
        first: of the level that is met first, such as a label's.
        rest: of z given the label.
    """

    evaluations = "those of first times those of rest"
    source = "an estimator for each level"

    def __init__(self, first: Estimator, rest: Estimator) -> None:
        super().__init__()
        self.first, self.rest = first, rest
        self.num_samples = rest.num_samples

    @property
    def relaxed(self) -> bool:
        return self.first.relaxed or self.rest.relaxed

    @property
    def below(self) -> Estimator:
        return self.rest

    def forward(
        self,
        q: Distribution,
        f: Integrand,
        *,
        aggregate: Aggregate = mean,
        context: Tensor | None = None,
    ) -> Tensor:
        return self.first(q, f, aggregate=aggregate, context=context)

    def sample_mean(self, q: Distribution, z: Tensor, values: Tensor) -> Tensor:
        return self.first.sample_mean(q, z, values)

    def density(self, q: Distribution) -> Distribution:
        return self.first.density(q)


def over_labels(vae: "VAE", x: Tensor, num_samples: int) -> Bound:
    r"""The ELBO of a model that infers labels, summed over all of them.

    .. math:: \sum_y q(y|x) \, \mathcal{L}(x, y) - \mathrm{KL}(q(y|x) \,\|\, p(y))
    """
    level = vae.infer(x)
    labels = support(level.q)  # [K, B, K]
    q_y = level.q.log_prob(labels).exp()  # [K, B]
    each = vae.settled(labels).elbo(x, num_samples, check=False)
    elbo, reconstruction = ((q_y * term).sum(0) for term in (each.elbo, each.reconstruction))
    label_kl = (q_y * (level.q.log_prob(labels) - level.p().log_prob(labels))).sum(0)
    kl = (q_y.unsqueeze(-1) * each.kl).sum(0)
    return Bound(elbo - label_kl, reconstruction, kl, vae.given(x=x).encode(x), label_kl)
