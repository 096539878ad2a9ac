"""What all likelihoods have in common: the range of the data, and sums over a datum."""

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..arguments import PrintsArguments
from ..inputs import Shape, readable


class Likelihood(PrintsArguments, nn.Module):
    """Distribution of a datum given the decoder's output.

    A subclass gives `pixel_log_prob`, or `image_log_prob` where it sums up faster, and `mean`,
    `sample` and `bias`. Where it has more parameters than the datum has values, it also gives
    `parameter_shape`, or `out_channels` if it needs nothing but more channels.

    Attributes:
        discrete: is it a probability mass, of binary or 8-bit values, and not a density.
        binary: do only 0 and 1 have a probability, so that values between them have none.
        draws: does a sample of the model show a draw of x and not its mean, which for an image is
            the better picture.
        missing: may values be NaN, which were not observed.
        learns_units: does :meth:`start` learn of the data more than their mean tells.
        data_axes: how many a datum has; 3, as an image has, until a VAE tells it by :meth:`bind`.
    """

    discrete: bool = False
    binary: ClassVar[bool] = False
    draws: ClassVar[bool] = False
    missing: bool = False
    learns_units = False
    data_axes = 3  # no part of its state
    _met = False  # has it met data; neither is this

    def __init__(self) -> None:
        super().__init__()  # without arguments: a release reads them from the signature

    def bind(self, shape: Shape) -> Shape:
        """Called by the VAE with the shape of a datum; returns that of the parameters."""
        if "data_axes" in vars(self) and self.data_axes != len(shape):
            raise ValueError(
                f"this {type(self).__name__} belongs to a VAE of data with {self.data_axes} axes, "
                f"make another one for data of shape {tuple(shape)}"
            )
        self.data_axes = len(shape)
        return self.parameter_shape(shape)

    def parameter_shape(self, shape: Shape) -> Shape:
        """The shape [*P] of the decoder's output for a datum of this shape [*X]."""
        return (self.out_channels(shape[0]), *shape[1:])

    def out_channels(self, channels: int) -> int:
        """The first number of [*P], given that of [*X]: for an image, C' and C."""
        return channels

    def input_shape(self, shape: Shape) -> Shape:
        """The shape of what the encoder sees of a datum of this shape [*X]."""
        return shape

    def inputs(self, x: Tensor) -> Tensor:
        """What the encoder sees of x, [B, *X] -> [B, *input_shape]; x itself, if not said else."""
        return x

    def start(self, x: Tensor) -> Tensor:
        """Learns of the training data what has to be known of them, such as their units.

        Args:
            x: [N, *X], all of them or many.

        Returns:
            Parameters [*P] to start from.
        """
        return self.bias(x.mean(0))

    def log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        """log p(x | z) per datum, summed over all its axes, in nats.

        Args:
            params: the decoder's output, [*, *P].
            x: data in the likelihood's range, [*, *X]; its leading axes broadcast against those of
                `params`.
        """
        shape = x.shape[-self.data_axes :]
        expected = self.parameter_shape(shape)
        if params.shape[-len(expected) :] != expected:
            raise ValueError(
                f"params must end in {expected} for data of shape {tuple(shape)}, "
                f"got shape {tuple(params.shape)}"
            )
        ours, theirs = params.shape[: -len(expected)], x.shape[: -self.data_axes]
        if any(a != b and 1 not in (a, b) for a, b in zip(ours[::-1], theirs[::-1], strict=False)):
            raise ValueError(
                f"there must be as many data as params, got {list(theirs)} and {list(ours)}"
            )
        return self.image_log_prob(params, x.to(params.dtype))

    def image_log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        """The sum of :meth:`pixel_log_prob`, [*]; a datum need not be an image."""
        return self.sum_over_datum(self.pixel_log_prob(params, x))

    def sum_over_datum(self, terms: Tensor) -> Tensor:
        """The sum over all axes of a datum, [*, *X] -> [*]."""
        return terms.flatten(-self.data_axes).sum(-1)

    def pixel_log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        """Terms of the log-probability, [*, *X]; an axis of which it is joint may have length 1."""
        raise NotImplementedError

    def mean(self, params: Tensor) -> Tensor:
        """The datum to show, [*, *X]."""
        raise NotImplementedError

    def sample(self, params: Tensor) -> Tensor:
        """A draw of x, [*, *X]."""
        raise NotImplementedError

    def expected(self, params: Tensor) -> Tensor:
        """Expectations that tell the datum to show: its mean, or of categories their probabilities.

        Averaged over many z they are those of the mixture of all p(x|z).
        """
        return self.mean(params)

    def intensity(self, x: Tensor) -> Tensor:
        """How bright the values of images are shown, from 0 to 1: as they are, unless they have
        units of their own."""
        return x

    def show(self, expected: Tensor) -> Tensor:
        """The datum to show, [*, *X], by what is :meth:`expected`."""
        return expected

    def by_column(self, expected: Tensor) -> list[Tensor]:
        """What is :meth:`expected` of each column of the last axis, [*, n]: of a number its mean,
        of categories their probabilities, of two that of the second."""
        return list(expected.unsqueeze(-1).unbind(-2))

    def schema(self, size: int) -> list[dict[str, Any]]:
        """The columns of data whose last axis has this size, as :class:`.Columns` takes them."""
        kind = "bernoulli" if self.binary else "gaussian"
        return [{"name": str(place), "kind": kind} for place in range(size)]

    def given(self, x: Tensor) -> "Likelihood":
        """This likelihood for data that is like x in what is not modelled, such as a total."""
        return self

    def bias(self, mean: Tensor) -> Tensor:
        """Parameters [*P] to start from, given the mean of the training data [*X]."""
        raise NotImplementedError

    def meet(self, x: Tensor) -> None:
        """Inspects the first data that it meets, and no more: that would wait for the device."""
        if torch.compiler.is_compiling() or self._met:
            return
        if (values := readable(x)) is None or not values.any():  # a dry run's zeros
            return
        self.inspect(x)
        self._met = True

    def inspect(self, x: Tensor) -> None:
        """Checks x where its values can be read; not in a compiled function, for one."""
        if (values := readable(x)) is not None:
            self.check(values)

    def check(self, x: Tensor) -> None:
        """Refuse data outside [0, 1]; it reads values: call it at set-up, not at every step."""
        if x.numel() == 0:
            return
        low, high = x.min().item(), x.max().item()
        if low >= 0 and high <= 1:
            return
        worst = low if low < 0 else high
        name = type(self).__name__
        if not math.isfinite(worst):
            index, *place = (~x.isfinite()).nonzero()[0].tolist()
            raise ValueError(
                f"{name} needs values in [0, 1], the batch has {worst} at {place} of its datum "
                f"{index}: remove the broken data"
            )
        raise ValueError(
            f"{name} needs values in [0, 1], the batch has {worst:g}: {_advice(worst)}"
        )


def _advice(worst: float) -> str:
    return "divide by 255" if worst > 2 else "shift and scale the data into it"
