"""What a VAE makes with its decoder: samples, reconstructions, and the way from one to another."""

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from .inputs import Array, check_count

if TYPE_CHECKING:
    from .vae import VAE


class Generation:
    """The methods of a :class:`vae_lab.VAE` that give data."""

    @property
    def has_temperature(self) -> bool:
        """Whether there are samples of another temperature than 1."""
        vae = cast("VAE", self)
        if vae.prior is not None:
            return vae.prior.has_temperature
        moved = vae.condition is not None and vae.condition.prior
        return vae.latent.has_temperature and not moved

    @torch.no_grad()
    def sample(self, num_images: int, y: Any = None, temperature: float = 1.0) -> Tensor:
        """Data for draws z of the prior, [num_images, *X]: the means of p(x|z), which are pictures
        without noise; of a likelihood that says so (:attr:`.Likelihood.draws`) draws of p(x|z).

        Args:
            y: one for all, or one for each. None: of a model that infers labels, draws of p(y).
            temperature: of z; see :meth:`.Latent.sample` and :meth:`.Prior.sample`.
        """
        check_count("num_images", num_images)
        vae = cast("VAE", self).given(y).with_drawn_labels(int(num_images))
        z, likelihood = vae.draw(int(num_images), temperature), vae.likelihood
        params = vae.decode(z)
        return likelihood.sample(params) if likelihood.draws else likelihood.mean(params)

    def draw(self, count: int, temperature: float = 1.0) -> Tensor:
        """Draws z of the prior, [count, *E]; given y [count], one of each."""
        vae = cast("VAE", self)
        if temperature != 1:
            if not temperature >= 0:
                raise ValueError(f"temperature must not be negative, got {temperature:g}")
            if not vae.has_temperature:
                raise ValueError(
                    f"samples of this model have temperature 1 only, got {temperature:g}: type "
                    "another prior, as prior=autoregressive"
                )
            return vae.draw_by_seed(count, temperature, int(torch.randint(2**62, ())))
        p = vae.p_z()
        if not p.batch_shape:
            return p.sample((count,))
        if p.batch_shape != (count,):
            raise ValueError(f"y must be one, or one of {count}, got {list(p.batch_shape)}")
        return p.sample()

    def draw_by_seed(self, count: int, temperature: float, seed: int) -> Tensor:
        """Draws z of a prior that has temperatures, [count, *E]: the same noise at each of them."""
        vae = cast("VAE", self)
        if vae.prior is None:
            return vae.latent.sample(count, temperature, seed)
        vae.p_z()  # refuses a prior that is one of pictures of another size
        vector = vae.vector_of(None) if vae.prior.condition_width else None
        return vae.prior.sample(count, temperature, seed, vector)

    @torch.no_grad()
    def reconstruct(self, x: Array, y: Any = None) -> Tensor:
        """The means of p(x|z) at the most probable z, [B, *X]."""
        vae = cast("VAE", self)
        x = vae.images(x)
        vae = vae.given(y, x)
        return vae.likelihood.given(x).mean(vae.decode(vae.mode(x)))

    def impute(self, x: Array, num_samples: int = 100, draw: bool = False, y: Any = None) -> Tensor:
        """x [B, *X] with its missing values, which are NaN, filled: by their means given what was
        observed, or by a draw; see :func:`vae_lab.imputation.impute`."""
        from .imputation import impute

        return impute(cast("VAE", self), x, num_samples, draw, y)

    @torch.no_grad()
    def interpolate(
        self, x0: Array, x1: Array, steps: int = 8, y: Any = None, y1: Any = None
    ) -> Tensor:
        """The means of p(x|z) on a path through the latent from x0 to x1, [steps, B, *X].

        Args:
            y: of x0, and of x1 too if it has no other.
            y1: of x1; what the condition makes of the two is on the way between them.
        """
        check_count("steps", steps)
        vae = cast("VAE", self)
        x0, x1 = vae.images(x0), vae.images(x1)
        first, last = vae.given(y, x0), vae.given(y if y1 is None else y1, x1)
        z0, z1 = first.mode(x0), last.mode(x1)
        if len(z0) != len(z1) and 1 not in (len(z0), len(z1)):
            raise ValueError(f"x0 and x1 must be equally many, got {len(z0)} and {len(z1)}")
        vae = first.towards(last, steps)
        return vae.likelihood.mean(vae.decode(vae.latent.interpolate(z0, z1, steps)))

    def mode(self, x: Tensor) -> Tensor:
        """The most probable z of x [B, *X], [B, *E]."""
        vae = cast("VAE", self)
        return vae.latent.mode(vae.encode(x))
