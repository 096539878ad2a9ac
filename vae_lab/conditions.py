"""What a model is conditioned on: labels or attributes y, as a vector that joins the encoder's
features, the decoder's input and, if it is asked for, the prior's parameters."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from .arguments import PrintsArguments
from .dense import Dense
from .distributions import OneHotCategorical, full_precision, kl, log_softmax, one_hot
from .inputs import Placed, Shape, readable
from .levels import Level
from .networks.base import from_zero

if TYPE_CHECKING:
    from .latents import Latent
    from .networks import Network

__all__ = ["Attributes", "InferredLabels", "Labels"]

MOST_SHOWN = 20  # names in a message
SURE = 1000.0  # of the logits of a label that is known: any other has the probability 0


class Condition(PrintsArguments, nn.Module):
    r"""Makes a vector of y, for q(z|x, y), p(x|z, y) and, with `prior`, p(z|y).

    The prior's parameters are then the latent's own plus a linear map of the vector, which starts
    at zero: the KL keeps its closed form. A prior in its place is given the vector itself.

    A subclass gives :meth:`forward` and :meth:`check`.

    Args:
        width: of the vector.
        prior: does p(z) depend on y.

    Attributes:
        axes: of one y: 0 for a number, 1 for a vector.
        dtype: of y.
        inferred: is y a latent variable where it is not known.
    """

    axes = 0
    dtype: torch.dtype | None = torch.int64  # None: the model's own
    inferred = False
    _met = False  # has it met a y; no part of its state

    def __init__(self, width: int, prior: bool) -> None:
        super().__init__()
        self.width = width
        self.prior = prior

    def bind(self, network: "Network", shape: Shape, latent: "Latent") -> None:
        """Called by the VAE, once: makes what depends on its other parts.

        Args:
            shape: of what an encoder sees.
        """
        if self.prior:
            self.to_prior = from_zero(nn.Linear(self.width, latent.prior_size))

    def leave_prior(self) -> None:
        """Called by the VAE whose prior is not the latent's own: there is nothing to be moved."""
        self._modules.pop("to_prior", None)

    def as_y(self, y: Any, like: Placed, first_only: bool = False) -> Tensor:
        """y as a tensor, [*B] or [*B, A], where the model is.

        Args:
            first_only: look at the values of the first y only, where that waits for the device.

        Raises:
            ValueError: y is not one; a line that says what to type.
        """
        try:
            y = torch.as_tensor(y.copy() if isinstance(y, np.ndarray) else y)
        except (TypeError, ValueError, RuntimeError):
            raise ValueError(f"y must be {self.wanted}, got {type(y).__name__}") from None
        whole = not (y.is_floating_point() or y.is_complex())
        if y.ndim < self.axes or self.dtype is not None and not whole:
            raise ValueError(f"y must be {self.wanted}, got {y.dtype} of shape {list(y.shape)}")
        seen = first_only and self._met and y.device.type != "cpu"
        if not seen and (values := readable(y)) is not None:
            self.check(values)
            self._met = True
        return y.to(like.device, self.dtype or like.dtype)

    @property
    def wanted(self) -> str:
        """What y has to be, in words."""
        raise NotImplementedError

    def check(self, y: Tensor) -> None:
        """Refuses what is no y of this condition; reads values."""
        raise NotImplementedError

    def blank(self, count: int) -> Tensor:
        """Some y, [count] or [count, A], where only its shape counts; on the CPU."""
        return torch.zeros(count, dtype=torch.int64)

    def examples(self, most: int) -> Tensor:
        """Some y to show, [N] or [N, A], no more than `most`."""
        raise NotImplementedError

    def start(self, y: Any) -> None:
        """Learns what has to be known of the y of the training data, [N] or [N, A]."""

    def forward(self, y: Tensor) -> Tensor:
        """The vector of y, [*B] or [*B, A] -> [*B, width], of the model's type."""
        raise NotImplementedError

    def vector(self, y: Tensor | None, x: Tensor | None) -> Tensor:
        """The vector of y; of an inferred one that is not known, the most probable for x."""
        if y is None:
            raise ValueError(f"the model is conditional, it needs y, {self.wanted}: type y=...")
        return self(y)

    def shift(self, vector: Tensor) -> Tensor:
        """What is added to the prior's parameters with `prior`, [*B, width] -> [*B, P]."""
        return full_precision(self.to_prior(vector))

    def level(self, x: Tensor, y: Tensor | None, below: Callable[[Tensor], Level]) -> Level:
        """The level of y where it is inferred, given what is known of it.

        Args:
            x: what encoders see of the data, [B, *X].
            y: [B], -1 where it is not known; None: nowhere.
            below: vectors of y, [S, B, C] -> the level of z.
        """
        raise NotImplementedError

    def draw(self, count: int) -> Tensor:
        """Vectors of draws of p(y), [count, C], where it is inferred."""
        raise NotImplementedError


class Labels(Condition):
    """One label of each datum, as a one-hot vector.

    Args:
        classes: K; a label is 0 to K - 1.
        prior: does p(z) depend on the label.
        names: of the classes, in their order, by which y may be given, too; None: they have none.

    >>> Labels(classes=3)(torch.tensor([2, 0]))
    tensor([[0., 0., 1.],
            [1., 0., 0.]])
    """

    unit: Tensor

    def __init__(
        self, classes: int, prior: bool = False, names: Sequence[Any] | None = None
    ) -> None:
        if not isinstance(classes, int) or classes < 1:
            raise ValueError(f"classes must be a positive integer, got {classes!r}")
        if names is not None and len({*map(str, names)}) != classes:
            raise ValueError(f"names must be {classes}, another for each class, got {[*names]}")
        if names is not None and [*map(str, names)] == [*map(str, range(classes))]:
            names = None
        super().__init__(classes, prior)
        self.classes, self.names = classes, None if names is None else [*names]
        self.register_buffer("unit", torch.ones(classes), persistent=False)  # of the vectors' type

    def as_y(self, y: Any, like: Placed, first_only: bool = False) -> Tensor:
        """As :meth:`Condition.as_y`, also of names."""
        named = [y] if isinstance(y, str) else y
        if _holds_text(named):
            numbers = [self._number(name) for name in named]
            y = numbers[0] if isinstance(y, str) else numbers
        return super().as_y(y, like, first_only)

    def _number(self, name: str) -> int:
        known = [*map(str, self.names or ())]
        if name not in known:
            raise ValueError(f"y must be {self.wanted}, got {name!r}")
        return known.index(name)

    @property
    def wanted(self) -> str:
        named = f" ({_shown(self.names)})" if self.names else ""
        return f"whole numbers, 0 to {self.classes - 1}{named}"

    def check(self, y: Tensor) -> None:
        if y.numel() and (y.min() < 0 or y.max() >= self.classes):
            worst = int(y.min() if y.min() < 0 else y.max())
            unlabelled = ": -1 says that there is no label, which semi_supervised_vae infers"
            why = unlabelled if worst == -1 else ""
            raise ValueError(f"y must be {self.wanted}, got {worst}{why}")

    def examples(self, most: int) -> Tensor:
        """All labels, or the first."""
        return torch.arange(min(self.classes, most), device=self.unit.device)

    def forward(self, y: Tensor) -> Tensor:
        return one_hot(y, self.unit)


class Attributes(Condition):
    """Several numbers of each datum, y [B, A], standardised by the training data.

    Args:
        size: A.
        names: of the attributes, to read; None: they have none.
        prior: does p(z) depend on them.
    """

    axes = 1
    dtype = None
    loc: Tensor
    scale: Tensor

    def __init__(self, size: int, names: Sequence[str] | None = None, prior: bool = False) -> None:
        if not isinstance(size, int) or size < 1:
            raise ValueError(f"size must be a positive integer, got {size!r}")
        if names is not None and len(names) != size:
            raise ValueError(f"names must be {size}, one for each attribute, got {len(names)}")
        super().__init__(size, prior)
        self.size, self.names = size, None if names is None else list(names)
        self.register_buffer("loc", torch.zeros(size))
        self.register_buffer("scale", torch.ones(size))

    @property
    def wanted(self) -> str:
        named = f" ({', '.join(self.names)})" if self.names else ""
        return f"numbers of shape [B, {self.size}]{named}"

    def check(self, y: Tensor) -> None:
        if y.shape[-1] != self.size:
            raise ValueError(f"y must be {self.wanted}, got shape {list(y.shape)}")
        if not y.isfinite().all():
            index, *place = (~y.isfinite()).nonzero()[0].tolist()
            raise ValueError(f"y must be finite, got {y[index, *place]} at {[index, *place]}")

    def blank(self, count: int) -> Tensor:
        return torch.zeros(count, self.size)

    @torch.no_grad()
    def start(self, y: Any) -> None:
        """Learns mean and standard deviation; an attribute that is the same everywhere keeps 1."""
        y = self.as_y(y, self.loc)
        deviation = y.std(0, correction=0)
        self.loc.copy_(y.mean(0))
        self.scale.copy_(torch.where(deviation > 0, deviation, 1.0))

    def examples(self, most: int) -> Tensor:
        """Draws of a Gaussian with the training data's means and standard deviations."""
        return self.loc + self.scale * torch.randn(most, self.size).to(self.loc)

    def forward(self, y: Tensor) -> Tensor:
        return (y - self.loc) / self.scale


class InferredLabels(Labels):
    r"""A label of each datum that is a latent variable where it is not known.

    With p(y) uniform and a classifier q(y|x) that has an encoder of its own,

    .. math:: \log p(x) \ge \mathbb{E}_{q(y|x)}[\mathcal{L}(x, y)]
              - \mathrm{KL}(q(y|x) \,\|\, p(y))

    where :math:`\mathcal{L}(x, y)` is the ELBO of a model conditioned on y. A known label, one that
    is not -1, is a q(y|x) that is sure of it; its bound is
    :math:`\mathcal{L}(x, y) + \log p(y)`.

    Args:
        classes: K.
        prior: does p(z) depend on the label.
        names: of the classes; see :class:`Labels`.

    Source: Kingma, Rezende, Mohamed & Welling, *Semi-Supervised Learning with Deep Generative
    Models*, NeurIPS 2014, arXiv:1406.5298, eq. 6 to 8
    """

    inferred = True

    def bind(self, network: "Network", shape: Shape, latent: "Latent") -> None:
        super().bind(network, shape, latent)
        self.encoder = network.encoder(shape)
        self.head = Dense(self.encoder.features, self.classes)

    @property
    def wanted(self) -> str:
        return f"{super().wanted}, or -1 where it is not known"

    def check(self, y: Tensor) -> None:
        super().check(y.clamp_min(0) if y.numel() and y.min() >= -1 else y)

    def features(self, x: Tensor) -> Tensor:
        """Those of the classifier's encoder, [B, F]; of a grid their means over the places."""
        features = self.encoder(x)
        return features.flatten(1, -2).mean(1) if features.ndim > 2 else features

    def classify(self, features: Tensor) -> Tensor:
        """log q(y|x), [B, K]."""
        return log_softmax(full_precision(self.head(features)))

    def log_prob(self, x: Tensor, y: Tensor) -> Tensor:
        """log q(y|x) of the known labels y [B], and 0 where there is none, [B]."""
        log_q = self.classify(self.features(x))
        return (log_q * self(y)).sum(-1)

    def posterior(self, features: Tensor, y: Tensor | None) -> Distribution:
        """q(y|x), one-hot, batch shape [B]; sure of the y [B] that are known."""
        log_q = self.classify(features)
        if y is not None:
            log_q = self._known(log_q, y, SURE * (self(y).to(log_q) - 1))
        return OneHotCategorical(logits=log_q, validate_args=False)

    def p_y(self) -> Distribution:
        """p(y), uniform, batch shape []."""
        return OneHotCategorical(logits=log_softmax(0 * self.unit), validate_args=False)

    def draw(self, count: int) -> Tensor:
        return self.p_y().sample((count,))

    def level(self, x: Tensor, y: Tensor | None, below: Callable[[Tensor], Level]) -> Level:
        features = self.features(x)
        q = self.posterior(features, y)
        return Level(q, self.p_y, partial(self.kl, q), features, below)

    def kl(self, q: Distribution) -> Tensor:
        """KL(q || p(y)), [*B, 1]."""
        return kl(q, self.p_y())

    def vector(self, y: Tensor | None, x: Tensor | None) -> Tensor:
        if x is None:
            if y is not None and (values := readable(y)) is not None:
                if (values == -1).any():
                    known = f"0 to {self.classes - 1}"
                    raise ValueError(
                        f"without x a label must be known, {known}, got -1: leave out y for draws "
                        "of p(y)"
                    )
                super().check(values)
            return super().vector(y, x)
        log_q = self.classify(self.features(x))
        best = one_hot(log_q.argmax(-1), self.unit)
        return best if y is None else self._known(best, y, self(y))

    def _known(self, inferred: Tensor, y: Tensor, known: Tensor) -> Tensor:
        """What is inferred, or what is known of the label, [B, K]."""
        if y.shape not in ((), inferred.shape[:1]):
            raise ValueError(f"y must be one, or {len(inferred)}, got shape {list(y.shape)}")
        return torch.where((y < 0).unsqueeze(-1), inferred, known)


def _holds_text(y: Any) -> bool:
    if isinstance(y, np.ndarray):
        return y.ndim == 1 and y.dtype.kind in "OU" and _holds_text(y.tolist())
    return isinstance(y, list | tuple) and bool(y) and all(isinstance(name, str) for name in y)


def _shown(names: Sequence[Any]) -> str:
    return ", ".join(map(str, names[:MOST_SHOWN])) + ", ..." * (len(names) > MOST_SHOWN)
