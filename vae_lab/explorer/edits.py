"""Edits of one z of a trained VAE, and their pictures: the explorer without its page."""

import io
import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from ..data import TensorLoader
from ..data.image_files import read_upload
from ..estimators.base import base
from ..optional import needs
from ..vae import VAE

with needs("train", __name__):
    from PIL import Image

CHUNK = 256  # pictures that are encoded at once
WIDTH = 3  # standard deviations of the prior that a slider spans, on each side
STEPS = 100  # of a path between two pictures


class Explorer:
    r"""What can be done to a z. Nothing changes the explorer: who explores keeps the z.

    A z is one of the latent's, [\*E], an image [C, H, W] in [0, 1]. A *value* of a latent variable
    is a float of a Gaussian, the number of the category, a bit, or a count.

    Args:
        vae: the model, in evaluation mode.
        images: test images, [N, C, H, W], as the model's data has them.
        binarize: what the data does to its images, and so to an uploaded one; see
            :class:`vae_lab.data.Loader`.
        pixels: the settings of :func:`vae_lab.data.image_files.read` that the data was read with.

    Attributes:
        kl: the mean over `images` of KL(q(z|x) || p(z)) of each latent variable, [L], in nats.
        order: the latent variables, by decreasing `kl`.
        low, high: the least and the largest value to offer, of each latent variable, [L].
    """

    @torch.no_grad()
    def __init__(
        self,
        vae: VAE,
        images: Tensor,
        binarize: str = "none",
        pixels: Mapping[str, Any] | None = None,
    ) -> None:
        if not len(images):
            raise ValueError("images must hold at least one image, got 0")
        self.vae, self.latent, self.binarize = vae, vae.latent, binarize
        self.pixels = pixels or {}
        self.images = images.to(vae.device, vae.dtype)
        posteriors = [vae.encode(x) for x in self.images.split(CHUNK)]
        self.kl = torch.cat([self.latent.kl(q) for q in posteriors]).mean(0).cpu()
        self.order: list[int] = self.kl.argsort(descending=True).tolist()
        values = self._values(torch.cat([self.latent.mode(q) for q in posteriors]))
        self.low, self.high = self._range(values)

    @property
    def kind(self) -> Literal["numbers", "codes", "bits"]:
        """What the values are: any numbers; 0, 1, ... of which one is chosen; 0 or 1."""
        if not self.latent.discrete:
            return "numbers"
        return "bits" if self.high.max() == 1 else "codes"

    @property
    def uniform(self) -> bool:
        """Has the prior the same probability for all values, so that it has no temperature."""
        if self.kind == "numbers":
            return False
        log_p = self._log_prior()
        return torch.allclose(log_p, log_p[:, :1])

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """The most probable z of an image."""
        self.vae.likelihood.check(x)
        q = self.vae.encode(x.to(self.images).unsqueeze(0))
        return self.latent.mode(q)[0]

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        r"""The mean images of z [\*, \*E], [\*, C, H, W]."""
        return self.vae.likelihood.mean(self.vae.decode(z))

    def values(self, z: Tensor) -> list[float]:
        """The value of every latent variable, [L]."""
        return self._values(z).tolist()

    def edited(self, z: Tensor, latent: int, value: float) -> Tensor:
        """A z in which one latent variable has another value.

        Raises:
            ValueError: there is no such latent variable, or it cannot have that value.
        """
        if not 0 <= latent < len(self.order):
            raise ValueError(f"latent must be in 0 to {len(self.order) - 1}, got {latent}")
        offered = range(int(self.high[latent]) + 1)
        if not (value in offered if self.latent.discrete else math.isfinite(value)):
            raise ValueError(f"z{latent} cannot have the value {value}")
        values = self._values(z)
        values[latent] = value
        return self._z(values)

    def path(self, z0: Tensor, z1: Tensor) -> Tensor:
        r"""The latent's way from z0 to z1 in :data:`STEPS` steps, [STEPS + 1, \*E]."""
        return self.latent.interpolate(z0, z1, STEPS + 1)

    @torch.no_grad()
    def samples(self, count: int, temperature: float = 1.0, seed: int = 0) -> Tensor:
        r"""Draws from the prior at a temperature t, [count, \*E]; the same noise at every t.

        Of a Gaussian the standard deviation is t times the prior's; of a discrete variable
        :math:`p_t(k) \\propto p(k)^{1/t}`, which leaves a uniform prior as it is.
        """
        if not temperature > 0:
            raise ValueError(f"temperature must be positive, got {temperature}")
        noise = torch.Generator().manual_seed(seed)
        prior = self.latent.prior()
        if not self.latent.discrete:
            epsilon = torch.randn(count, *self.latent.event_shape, generator=noise)
            return prior.mean + temperature * prior.stddev * epsilon.to(self.images.device)
        log_p = self._log_prior()  # [L, K]
        uniform = torch.rand(count, *log_p.shape, generator=noise).to(log_p.device)
        gumbel = -(-uniform.log()).log()
        return self._z((log_p / temperature + gumbel).argmax(-1).to(self.images.dtype))

    def upload(self, data: bytes) -> Tensor:
        """A picture file as an image of the model's shape, read and binarised as its data is.

        Raises:
            ValueError: what is wrong with the file.
        """
        image = read_upload(data, self.vae.shape, **self.pixels).unsqueeze(0)
        loader = TensorLoader(image, torch.tensor([-1]), 1, stage="test", binarize=self.binarize)
        return next(iter(loader)).x[0]

    def _range(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """What the prior and the test images span; values [N, L]."""
        prior = self.latent.prior()
        if not self.latent.discrete:
            low, high = (prior.mean + side * WIDTH * prior.stddev for side in (-1, 1))
            low, high = torch.minimum(low, values.amin(0)), torch.maximum(high, values.amax(0))
            return low.cpu(), high.cpu()
        codes = self.latent.codes(prior)
        if codes is not None:
            high = codes.new_full((len(self.kl),), codes.shape[-1] - 1)
        else:
            high = torch.maximum((prior.mean + WIDTH * prior.stddev).ceil(), values.amax(0))
        return torch.zeros_like(high).cpu(), high.cpu()

    def _log_prior(self) -> Tensor:
        """log p of every value that is offered, [L, K]."""
        prior = self.latent.prior()
        codes = self.latent.codes(prior)
        if codes is not None:
            return codes.log()
        counts = torch.arange(int(self.high.max()) + 1, device=self.images.device)
        return base(prior).log_prob(counts.unsqueeze(-1)).T

    def _values(self, z: Tensor) -> Tensor:
        r"""z [\*, \*E] -> values [\*, L]."""
        return z.argmax(-1).to(z.dtype) if self._one_hot else z.clone()

    def _z(self, values: Tensor) -> Tensor:
        r"""Values [\*, L] -> z [\*, \*E]."""
        if not self._one_hot:
            return values
        categories = self.latent.event_shape[-1]
        return torch.nn.functional.one_hot(values.long(), categories).to(values.dtype)

    @property
    def _one_hot(self) -> bool:
        return len(self.latent.event_shape) == 2


def png(image: Tensor) -> bytes:
    """An image [C, H, W] in [0, 1] as a PNG file, in grey unless it has three channels."""
    if len(image) != 3:
        image = image.mean(0, keepdim=True)
    pixels = image.clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).cpu().numpy()
    file = io.BytesIO()
    Image.fromarray(pixels[..., 0] if len(image) == 1 else pixels).save(file, "PNG")
    return file.getvalue()
