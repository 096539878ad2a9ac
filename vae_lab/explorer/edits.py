"""Edits of one z of a trained VAE, and their pictures: the explorer without its page."""

import io
import math
from collections.abc import Mapping, Sequence
from threading import Lock
from typing import Any, Literal

import torch
from torch import Tensor

from .. import variables
from ..data import TensorLoader
from ..data.image_files import read_upload
from ..drawing.kinds import figures_of
from ..memory import encode_in_parts
from ..networks.base import place_size
from ..optional import needs
from ..pictures import code_patches
from ..seeding import seeded
from ..vae import VAE

with needs("train", __name__):
    from PIL import Image

Y = Tensor | int | None  # a label or attributes; None: the model has no condition
CHUNK = 256  # pictures that are encoded at once
STEPS = 100  # of a path between two pictures
DRAWING = Lock()  # matplotlib draws one figure at a time


class Explorer:
    r"""The edits of a z. None of them changes the explorer: who explores keeps the z.

    A z is one of the latent's, [\*E]; an image, in [0, 1] or in units of its own, a row of a table
    or a series are as the model's data has them. A *value* of a latent variable is a number, the
    number of the category, a bit, or a count.

    Args:
        vae: the model, in evaluation mode.
        images: test data, [N, \*X], as the model's data has them.
        y: their labels [N] or attributes [N, A], for a conditional model.
        binarize: what the data does to its images, and so to an uploaded one; see
            :class:`vae_lab.data.Loader`.
        pixels: the settings of :func:`vae_lab.data.image_files.read` that the data was read with.

    Attributes:
        use: how much each latent variable says of `images`: the mean of its KL(q(z|x) || p(z)),
            if the prior is the latent's own; see :func:`vae_lab.variables.use`.
        order: the latent variables, by decreasing use.
        low, high: the least and the largest value to offer, of each latent variable, [L].
    """

    @torch.no_grad()
    def __init__(
        self,
        vae: VAE,
        images: Tensor,
        binarize: str = "none",
        pixels: Mapping[str, Any] | None = None,
        y: Tensor | None = None,
    ) -> None:
        if not len(images):
            raise ValueError("images must hold at least one image, got 0")
        self.vae, self.latent, self.binarize = vae, vae.latent, binarize
        self.prior = vae.latent if vae.prior is None else vae.prior
        self.pixels = pixels or {}
        self.images, self.y = images.to(vae.device, vae.dtype), None
        of_data = vae
        if vae.condition is not None:
            of_data = vae.of_data(self.images, torch.zeros(0) if y is None else y)
            self.y = of_data.labels if self.classes else y
        q = encode_in_parts(of_data, self.images, most=CHUNK)
        self.use = variables.use(of_data, [q])
        self.order: list[int] = self.use.each.argsort(descending=True).tolist()
        ends = variables.value_range(vae, self.latent.numbers(self.latent.mode(q)))
        self.low, self.high = (end.cpu() for end in ends)
        if self.grid:  # what one place can be, each can
            self.low = self._everywhere(self.latent.at_places(self.low).amin((0, 1)))
            self.high = self._everywhere(self.latent.at_places(self.high).amax((0, 1)))

    def _everywhere(self, values: Tensor) -> Tensor:
        """A place's values at each place, [V] -> [L]."""
        return values.expand(*self.grid, -1).flatten()

    @property
    def grid(self) -> tuple[int, ...]:
        """The places, (h, w); () where there is no grid."""
        return self.latent.grid

    @property
    def cells_across(self) -> tuple[float, float]:
        """How many places the picture has, down and across: the last may stand out of it."""
        height, width = (side / place_size(self.vae.network) for side in self.vae.shape[-2:])
        return height, width

    def variables(self, place: tuple[int, int]) -> list[int]:
        """The latent variables of a place: row and column."""
        every = self.latent.at_places(torch.arange(self.latent.num_variables))
        found: list[int] = every[place].tolist()
        return found

    @property
    def classes(self) -> int:
        """The labels that a z can be given, 0 to classes - 1; 0 of a model without labels."""
        return getattr(self.vae.condition, "classes", 0)

    @property
    def class_names(self) -> Sequence[Any] | None:
        """Of these labels; None: they are numbers."""
        return getattr(self.vae.condition, "names", None) if self.classes else None

    def y_of(self, number: int) -> Tensor | None:
        """Of one of the images: its label or attributes; None of a model without a condition."""
        return None if self.y is None else self.y[number]

    def code_patches(self, y: Y = None) -> Tensor:
        """What each code looks like, where a place has a single one; otherwise none of them."""
        if self.latent.kind != "codes" or len(self.variables((0, 0))) > 1:
            return torch.zeros(0, *self.vae.shape)
        return code_patches(self.vae.given(y))

    @property
    def kind(self) -> Literal["numbers", "codes", "bits"]:
        """The kind of the values: any numbers, codes 0, 1, ... or bits 0 and 1."""
        if self.latent.kind == "numbers":
            return "numbers"
        return "bits" if self.high.max() == 1 else "codes"

    @property
    def uniform(self) -> bool:
        """Whether the prior has the same probability for all values, and so no temperature."""
        return self.prior.uniform

    @property
    def has_temperature(self) -> bool:
        """Whether :meth:`samples` are others at another temperature than 1."""
        return self.vae.has_temperature

    @torch.no_grad()
    def encode(self, x: Tensor, y: Y = None) -> Tensor:
        """The most probable z of an image, and here and below of a conditional model given y."""
        self.vae.likelihood.check(x)
        q = self.vae.given(y).encode(x.to(self.images).unsqueeze(0))
        return self.latent.mode(q)[0]

    def png(self, data: Mapping[str, Tensor]) -> bytes:
        r"""Data [\*X] that are no images as one plot, by what they are called."""
        with DRAWING:
            return figures_of(self.vae.shape).png(self.vae, data, self.images)

    @torch.no_grad()
    def decode(self, z: Tensor, y: Y = None) -> Tensor:
        r"""The mean images of z [\*, \*E], [\*, C, H, W]."""
        return self.vae.likelihood.mean(self.vae.given(y).decode(z))

    def intensity(self, images: Tensor) -> Tensor:
        """Images as they are shown, in [0, 1], whatever units they have."""
        return self.vae.likelihood.intensity(images)

    def values(self, z: Tensor) -> list[float]:
        """The value of every latent variable, [L]."""
        return self.latent.numbers(z).tolist()

    def edited(self, z: Tensor, latent: int, value: float) -> Tensor:
        """A z in which one latent variable has another value.

        Raises:
            ValueError: there is no such latent variable, or it cannot have that value.
        """
        if not 0 <= latent < len(self.order):
            raise ValueError(f"latent must be in 0 to {len(self.order) - 1}, got {latent}")
        return self._with(z, {latent: value})

    def painted(self, z: Tensor, place: tuple[int, int], values: Sequence[float]) -> Tensor:
        """A z in which the variables of a place have these values.

        Raises:
            ValueError: one of them cannot have its value.
        """
        return self._with(z, dict(zip(self.variables(place), values, strict=True)))

    def _with(self, z: Tensor, values: Mapping[int, float]) -> Tensor:
        numbers = self.latent.numbers(z).clone()
        for latent, value in values.items():
            if not self._can_be(latent, value):
                raise ValueError(f"z{latent} cannot have the value {value}")
            numbers[latent] = value
        return self.latent.from_numbers(numbers)

    def _can_be(self, latent: int, value: float) -> bool:
        if self.kind == "numbers":
            low, high = self.latent.bounds
            return math.isfinite(value) and low <= value <= high
        if self.latent.kind == "counts":
            return value >= 0 and float(value).is_integer()
        return value in range(int(self.high[latent]) + 1)

    def path(self, z0: Tensor, z1: Tensor) -> Tensor:
        r"""The latent's way from z0 to z1 in :data:`STEPS` steps, [STEPS + 1, \*E]."""
        return self.latent.interpolate(z0, z1, STEPS + 1)

    @torch.no_grad()
    def samples(self, count: int, temperature: float = 1.0, seed: int = 0, y: Y = None) -> Tensor:
        r"""Draws from the prior at a temperature t, [count, \*E]; the same noise at every t.

        See :meth:`.Latent.sample` and :meth:`.Prior.sample`. A uniform prior it leaves as it is.
        """
        if not temperature > 0:
            raise ValueError(f"temperature must be positive, got {temperature}")
        vae = self.vae.given(y)
        moved = vae.prior is None and vae.condition is not None and vae.condition.prior
        if not moved and (vae.prior is None or vae.prior.has_temperature):
            return vae.draw_by_seed(count, temperature, seed)
        with seeded(seed, vae.device):
            return vae.draw(count, 1.0 if moved else temperature)

    def label_of(self, x: Tensor, y: Y) -> Y:
        """The label of an image that has none: by a model that infers labels, or else y."""
        if not self.vae.infers_labels:
            return y
        return self.vae.classify(x.to(self.images).unsqueeze(0))[0]

    def upload(self, data: bytes) -> Tensor:
        """A picture file as an image of the model's shape, read and binarised as its data is.

        Raises:
            ValueError: what is wrong with the file, or no file of a picture has the data's units.
        """
        if self.vae.likelihood.learns_units:
            raise ValueError("the model's data are numbers in units of their own, and no bytes")
        image = read_upload(data, self.vae.shape, **self.pixels).unsqueeze(0)
        loader = TensorLoader(image, torch.tensor([-1]), 1, stage="test", binarize=self.binarize)
        return next(iter(loader)).x[0]


def png(image: Tensor) -> bytes:
    """An image [C, H, W] in [0, 1] as a PNG file, in grey unless it has three channels."""
    if len(image) != 3:
        image = image.mean(0, keepdim=True)
    pixels = image.clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).cpu().numpy()
    file = io.BytesIO()
    Image.fromarray(pixels[..., 0] if len(image) == 1 else pixels).save(file, "PNG")
    return file.getvalue()
