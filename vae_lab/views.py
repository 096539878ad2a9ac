"""The same model for other data: pictures of another size, data whose labels are given."""

from copy import copy, deepcopy
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from .inputs import Array
from .networks.base import check_shape, grid

if TYPE_CHECKING:
    from .priors import Prior
    from .vae import VAE


PART = 500  # data whose labels are inferred at once


class Views(nn.Module):
    """The methods of a :class:`vae_lab.VAE` that give it for other data; all weights and modes are
    shared."""

    def __init__(self) -> None:
        super().__init__()
        self._y: Tensor | None = None  # of the data at hand
        self._vector: Tensor | None = None  # what the condition makes of it, where that is settled

    def at(self, *shape: int) -> "VAE":
        """The same model for pictures of another size.

        .. code-block:: python

            vae.at(3, 256, 256).reconstruct(x)

        Args:
            shape: of one picture, (C, H, W).

        Raises:
            ValueError: the network is not fully convolutional, C is another, or H or W is too
                small.
        """
        other = self._copy()
        if not other.latent.grid:
            raise ValueError(
                f"{type(other.network).__name__} takes data of shape {list(other.shape)} only: "
                "train with a fully convolutional network, such as Grid, for pictures of any size"
            )
        check_shape(shape)
        if len(shape) != 3 or shape[0] != other.shape[0]:
            raise ValueError(f"shape must be [{other.shape[0]}, H, W], got {list(shape)}")
        with torch.device("meta"):
            other.network.encoder(tuple(shape))  # refuses what is too small for it
        other.shape, other.latent = tuple(shape), copy(other.latent)
        other.output_shape = other.likelihood.bind(other.shape)
        del other.latent.grid  # of this copy: it is bound anew
        other.latent.bind(grid(other.network, other.shape))
        return other

    def with_prior(self, prior: "Prior") -> "VAE":
        r"""The same model with another prior, of which only the prior is trained: a second stage.

        .. code-block:: python

            second = vae.with_prior(Autoregressive())

        All else is a copy, frozen. The ELBO changes by what the posteriors say of the two priors,

        .. math:: \mathcal{L}'(x) - \mathcal{L}(x)
                  = \mathbb{E}_{q(z|x)}[\log p'(z) - \log p(z)]
        """
        other = deepcopy(cast("VAE", self)).requires_grad_(False)
        other.latent.learn_prior = False  # what was learned is no longer used
        other.set_prior(prior)
        return other

    def given(self, y: Any = None, x: Array | None = None, first_only: bool = False) -> "VAE":
        """The same model for data of these y: its methods need no y any more.

        .. code-block:: python

            vae.given(3).sample(16)

        Args:
            y: one for all, or one for each datum [B]; of attributes [A] or [B, A]. None: of a model
                without a condition, or one that infers its labels.
            x: the data, of which the labels that are not known are the most probable ones. None:
                they stay latent variables.
            first_only: look at the values of the first y only, where that waits for the device.

        Raises:
            ValueError: the model has no condition, or y is none of it; one line.
        """
        vae = cast("VAE", self)
        if y is not None and vae.condition is None:
            raise ValueError(
                "the model is not conditional: leave out y, or build it by "
                "VAE(..., condition=Labels(classes))"
            )
        if vae.condition is None or y is None and (x is None or self._vector is not None):
            return vae
        other = self._copy()
        if y is not None:
            other._y, other._vector = vae.condition.as_y(y, vae, first_only), None
        if x is not None:
            other._vector = other.vector_of(other.seen(vae.images(x, first_only=True)))
        return other

    def blank(self, count: int = 1) -> "VAE":
        """The same model, given some y [count], where only shapes count."""
        vae = cast("VAE", self)
        return vae if vae.condition is None else vae.given(vae.condition.blank(count))

    def own_y(self, y: Tensor) -> Tensor | None:
        """What the model is given of the labels y of data that it is measured on: None where it has
        no condition, or infers them."""
        condition = cast("VAE", self).condition
        return None if condition is None or condition.inferred else y

    def of_data(self, x: Tensor, y: Tensor) -> "VAE":
        """The model given the y of these data [N], which may lie on another device; labels that it
        infers are the most probable ones."""
        vae = cast("VAE", self)
        if vae.condition is None:
            return vae
        if not vae.condition.inferred:
            return vae.given(y)
        parts = [vae.given(x=part.to(vae.device))._vector for part in x.split(PART)]
        return vae.settled(torch.cat([part for part in parts if part is not None]))

    def classify(self, x: Array) -> Tensor:
        """The most probable labels of x [B, *X] by a model that infers them, [B]."""
        return cast("VAE", self).given(x=x).labels

    @property
    def labels(self) -> Tensor:
        """Those that a model of :class:`.Labels` was given, [*B]."""
        vector = self.vector_of(None)
        if vector is None:
            raise ValueError("the model has no labels: build it with VAE(..., condition=...)")
        return vector.argmax(-1)

    @property
    def own_prior(self) -> bool:
        """Whether p(z) is the latent's own, and the same for all data."""
        vae = cast("VAE", self)
        return vae.prior is None and (vae.condition is None or not vae.condition.prior)

    def settled(self, vector: Tensor) -> "VAE":
        """The same model, given what the condition makes of y, [*B, C]."""
        other = self._copy()
        other._vector = vector
        return other

    def rows(self, part: slice | Tensor) -> "VAE":
        """The model that was given the y of many data, for some of them."""
        other = self._copy()
        condition = other.condition
        if condition is not None and self._y is not None and self._y.ndim > condition.axes:
            other._y = self._y[part]
        if self._vector is not None and self._vector.ndim > 1:
            other._vector = self._vector[part]
        return other

    def towards(self, other: "VAE", steps: int) -> "VAE":
        """The models between two that were given their y, in a row, [steps, *B]."""
        if self._vector is None or other._vector is None:
            return cast("VAE", self)
        v0, v1 = torch.broadcast_tensors(*torch.atleast_2d(self._vector, other._vector))
        t = torch.linspace(0, 1, steps, device=v0.device, dtype=v0.dtype)
        return self.settled(torch.stack([torch.lerp(v0, v1, share) for share in t]))

    def with_drawn_labels(self, count: int) -> "VAE":
        """The same model given draws of p(y), [count], where the label is a latent variable."""
        vae = cast("VAE", self)
        if vae.condition is None or not vae.infers_labels or self._y is not None:
            return vae
        return self.settled(vae.condition.draw(count))

    @property
    def infers_labels(self) -> bool:
        """Whether there is a label, and it is a latent variable where it is not known."""
        condition = cast("VAE", self).condition
        return condition is not None and condition.inferred and self._vector is None

    def vector_of(self, seen: Tensor | None) -> Tensor | None:
        """What the condition makes of y, [*B, C]; None where there is no condition.

        Args:
            seen: what encoders see of the data, where labels may have to be inferred.
        """
        condition = cast("VAE", self).condition
        if self._vector is not None or condition is None:
            return self._vector
        found: Tensor = condition.vector(self._y, seen)
        return found

    def _copy(self) -> "VAE":
        other = copy(self)
        other._modules = dict(self._modules)
        return cast("VAE", other)
