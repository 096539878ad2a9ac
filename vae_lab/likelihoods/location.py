"""Values around the decoder's output, with one scale for all of them: normal, Laplace, logistic."""

import math

import torch
from torch import Tensor, nn

from ..inputs import Shape
from .base import Likelihood
from .eight_bits import check_levels, levels, log_mass
from .units import observed, units, with_mask

WHITE = 2.5  # standard deviations above the mean


class _Location(Likelihood):
    """The base: the decoder gives where a value is expected, and one number how far off it is."""

    def _keep(self, name: str, scale: float, learned: bool) -> None:
        """Keeps the logarithm of a scale as `log_NAME`, which is trained if it is learned."""
        if not 0 < scale < math.inf:
            raise ValueError(f"{name} must be positive and finite, got {scale}")
        self.learned = learned
        log_scale = torch.tensor(math.log(scale))
        if learned:
            self.register_parameter(f"log_{name}", nn.Parameter(log_scale))
        else:
            # The constructor's argument says it all: nothing to save.
            self.register_buffer(f"log_{name}", log_scale, persistent=False)

    def mean(self, params: Tensor) -> Tensor:
        """Mean of the values, clamped to what can be shown."""
        return params.clamp(0, 1)

    def bias(self, mean: Tensor) -> Tensor:
        """The mean datum."""
        return mean.clone()


class _Density(_Location):
    """The base of densities, which may be those of values in any unit, and of some of them only."""

    standardize: bool
    missing: bool
    data_loc: Tensor  # of each channel, [C, 1, 1], if it is standardised
    data_scale: Tensor

    @property
    def learns_units(self) -> bool:  # type: ignore[override]
        return self.standardize

    def bind(self, shape: Shape) -> Shape:
        if self.standardize and not hasattr(self, "data_loc"):
            channels = (shape[0], *[1] * (len(shape) - 1))
            self.register_buffer("data_loc", torch.zeros(channels))
            self.register_buffer("data_scale", torch.ones(channels))
        return super().bind(shape)

    def input_shape(self, shape: Shape) -> Shape:
        return (shape[0] * (1 + self.missing), *shape[1:])

    def inputs(self, x: Tensor) -> Tensor:
        """x standardised; and, if values may be missing, in channels of their own which are not."""
        x = self._standardised(x)
        return with_mask(*observed(x), -self.data_axes) if self.missing else x

    @torch.no_grad()
    def start(self, x: Tensor) -> Tensor:
        """Learns the units of each channel; starts at the mean of what was observed."""
        if self.standardize:
            values = x.movedim(1, -1).flatten(0, -2).double()  # [N, C]
            for part, unit in zip((self.data_loc, self.data_scale), units(values), strict=True):
                part.copy_(unit.reshape(part.shape))
            if not (self.data_scale > 0).all():
                channel = (~(self.data_scale > 0)).flatten().nonzero()[0].item()
                raise ValueError(
                    f"channel {channel} has the same value everywhere: leave it out, or use "
                    "standardize=False"
                )
        mean = self.bias(x.nanmean(0) if self.missing else x.mean(0))
        return mean.nan_to_num(0) if self.missing else mean

    def pixel_log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        x = self._standardised(x)
        x, seen = observed(x) if self.missing else (x, None)
        terms = self.log_density(params, x)
        if self.standardize:
            terms = terms - self.data_scale.log()
        return terms if seen is None else torch.where(seen, terms, 0)

    def mean(self, params: Tensor) -> Tensor:
        """Mean of the values; of those without a unit of their own clamped to what can be shown."""
        return self._in_units(params) if self.standardize else super().mean(params)

    def sample(self, params: Tensor) -> Tensor:
        """A draw with its noise, which may leave [0, 1]."""
        return self._in_units(params + self.noise(params))

    def bias(self, mean: Tensor) -> Tensor:
        return self._standardised(mean).clone()

    def check(self, x: Tensor) -> None:
        """Refuses what is outside [0, 1], unless it is standardised, and what is no number."""
        x = torch.where(x.isnan(), 0, x) if self.missing else x
        if not self.standardize:
            super().check(x)
        elif not x.isfinite().all():
            index, *place = (~x.isfinite()).nonzero()[0].tolist()
            value = x[index, *place].item()
            advice = "remove the broken data"
            if math.isnan(value):
                advice = "fit a model to data with missing values, or type likelihood.missing=true"
            raise ValueError(
                f"{type(self).__name__} needs finite numbers, the batch has {value} at {place} of "
                f"its datum {index}: {advice}"
            )

    def log_density(self, params: Tensor, x: Tensor) -> Tensor:
        """Of each standardised value."""
        raise NotImplementedError

    def noise(self, params: Tensor) -> Tensor:
        """What a standardised value is off by, drawn for each of the parameters."""
        raise NotImplementedError

    def intensity(self, x: Tensor) -> Tensor:
        """Of values in units of their own the mean is grey; black and white are so many of their
        standard deviations from it."""
        if not self.standardize:
            return x
        return (self._standardised(x).nan_to_num(0.0) / (2 * WHITE) + 0.5).clamp(0, 1)

    def _standardised(self, x: Tensor) -> Tensor:
        return (x - self.data_loc) / self.data_scale if self.standardize else x

    def _in_units(self, x: Tensor) -> Tensor:
        return self.data_loc + self.data_scale * x if self.standardize else x


class Gaussian(_Density):
    r"""Values are normal around the decoder's output, with one sigma for all of them.

    .. math:: \log p(x) = -\frac{(x - \mu)^2}{2 \sigma^2} - \log \sigma - \frac{1}{2} \log 2 \pi

    Args:
        sigma: the standard deviation, in units of the data's range [0, 1], or as it is
            standardised; its first value if it is learned.
        learned: train log sigma; at the optimum sigma**2 is the mean squared error.
        standardize: the data have any unit, which is that of each channel's standard deviation in
            the training data, from their mean on; learned by :meth:`start`.
        missing: is NaN a value that was not observed: it is left out of log p(x), and the encoder
            sees 0 and, in channels of their own, which values were observed.

    The density of a value that is as expected is 0.399 / sigma, so it can be larger than 1, and its
    logarithm positive:

    >>> import torch
    >>> likelihood, params = Gaussian(sigma=0.1), torch.tensor([[[0.5]]])  # an image of one pixel
    >>> likelihood.log_prob(params, torch.tensor([[[0.5]]])).exp()
    tensor(3.9894)
    >>> likelihood.log_prob(params, torch.tensor([[[0.6]]])).exp()  # one sigma away
    tensor(2.4197)

    Source of the learned sigma: Rybkin, Daniilidis & Levine, *Simple and Effective VAE Training
    with Calibrated Decoders*, ICML 2021, arXiv:2006.13202
    """

    log_sigma: Tensor

    def __init__(
        self,
        sigma: float = 1.0,
        learned: bool = False,
        standardize: bool = False,
        missing: bool = False,
    ) -> None:
        super().__init__()
        self.sigma, self.standardize, self.missing = sigma, standardize, missing
        self._keep("sigma", sigma, learned)

    def log_density(self, params: Tensor, x: Tensor) -> Tensor:
        standardised = (x - params) * torch.exp(-self.log_sigma)
        return -standardised.square() / 2 - self.log_sigma - math.log(2 * math.pi) / 2

    def noise(self, params: Tensor) -> Tensor:
        return self.log_sigma.exp() * torch.randn_like(params)


class Laplace(_Density):
    r"""Values have a Laplace density around the decoder's output: large errors cost less.

    .. math:: \log p(x) = -\frac{|x - \mu|}{b} - \log 2 b

    Args:
        scale: b, in units of the data's range [0, 1], or as it is standardised; its first value if
            it is learned.
        learned: train log b; at the optimum b is the mean absolute error.
        standardize: the data have any unit, which is that of each channel's standard deviation in
            the training data, from their mean on; learned by :meth:`start`.
        missing: is NaN a value that was not observed: it is left out of log p(x), and the encoder
            sees 0 and, in channels of their own, which values were observed.

    A value that is as expected has the density 1 / (2 b), and one that is b away e times less:

    >>> import torch
    >>> likelihood, params = Laplace(scale=0.1), torch.tensor([[[0.5]]])  # an image of one pixel
    >>> likelihood.log_prob(params, torch.tensor([[[0.5]]])).exp()
    tensor(5.)
    >>> likelihood.log_prob(params, torch.tensor([[[0.6]]])).exp()
    tensor(1.8394)
    """

    log_scale: Tensor

    def __init__(
        self,
        scale: float = 1.0,
        learned: bool = False,
        standardize: bool = False,
        missing: bool = False,
    ) -> None:
        super().__init__()
        self.scale, self.standardize, self.missing = scale, standardize, missing
        self._keep("scale", scale, learned)

    def log_density(self, params: Tensor, x: Tensor) -> Tensor:
        return -(x - params).abs() * torch.exp(-self.log_scale) - self.log_scale - math.log(2)

    def noise(self, params: Tensor) -> Tensor:
        # The difference of two exponentials: the inverse of F is infinite at 0.
        one, other = (torch.empty_like(params).exponential_() for _ in range(2))
        return self.log_scale.exp() * (one - other)


class DiscretizedLogistic(_Location):
    r"""Mass of 8-bit values: a logistic around the decoder's output, integrated over a value's bin.

    .. math:: p(x) = F((x + b - \mu) / s) - F((x - b - \mu) / s)

    with F the sigmoid and b = 1 / 510 half a bin; the outermost bins extend to infinity, so the 256
    masses sum to 1. The decoder gives one number for each value, where a mixture
    (:class:`DiscretizedLogisticMixture`) wants a hundred for each pixel of a photograph.

    Args:
        scale: s, in units of the data's range [0, 1]; its first value if it is learned.
        learned: train log s.

    The masses of all 256 values sum to 1:

    >>> import torch
    >>> likelihood = DiscretizedLogistic(scale=0.1)
    >>> greys = (torch.arange(256) / 255).reshape(256, 1, 1, 1)  # 256 images of one pixel
    >>> print(f"{likelihood.log_prob(torch.full((1, 1, 1), 0.2), greys).exp().sum():.4f}")
    1.0000

    Source: Kingma et al., *Improved Variational Inference with Inverse Autoregressive Flow*,
    NeurIPS 2016, arXiv:1606.04934, appendix
    """

    discrete = True
    log_scale: Tensor

    def __init__(self, scale: float = 0.1, learned: bool = True) -> None:
        super().__init__()
        self.scale = scale
        self._keep("scale", scale, learned)

    def pixel_log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        level = levels(x)
        return log_mass(level / 255 - params, torch.exp(-self.log_scale), level, half=1 / 510)

    def sample(self, params: Tensor) -> Tensor:
        noise = self.log_scale.exp() * torch.rand_like(params).logit()
        return levels(params + noise).clamp(0, 255) / 255

    def check(self, x: Tensor) -> None:
        """Refuses data outside [0, 1] and values that are not k / 255."""
        super().check(x)
        check_levels(type(self).__name__, x)
