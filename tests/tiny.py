"""VAEs so small that log p(x) and every gradient are known without sampling."""

from dataclasses import dataclass

import pytorch_lightning as pl
import torch
from torch import nn
from torch.distributions import MultivariateNormal, kl_divergence

from vae_lab import VAE
from vae_lab.data import TensorLoader
from vae_lab.distributions import support
from vae_lab.likelihoods import Bernoulli, Gaussian
from vae_lab.networks import MLP, Grid, Linear
from vae_lab.networks.base import Encoder
from vae_lab.networks.layers import ToChannels, ToPlaces

SHAPE = (1, 2, 2)
GRID_SHAPE = (1, 3, 3)  # of which `SMALL_GRID` makes 2 x 2 places, that stand out of it
SMALL_GRID = Grid((3,), activation="tanh")


@dataclass(frozen=True)
class Patches:
    """A linear network for a grid: a place sees stride x stride pixels of its own, and gives them.

    Args:
        reach: the side of the convolutions at the places; of 1, no place knows of another.
    """

    stride: int = 2
    reach: int = 1

    def encoder(self, shape):
        pixels = shape[0] * self.stride**2
        layers = nn.PixelUnshuffle(self.stride), self._conv(pixels, pixels), ToPlaces()
        return Encoder(*layers, features=pixels)

    def decoder(self, latent_size, shape):
        conv = self._conv(latent_size, shape[0] * self.stride**2)
        return nn.Sequential(ToChannels(), conv, nn.PixelShuffle(self.stride))

    def _conv(self, a, b):
        return nn.Conv2d(a, b, self.reach, padding=self.reach // 2)


def randomize(module, scale=0.5):
    """Every parameter drawn anew: nothing is left at a zero that would hide a missing term."""
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(scale * torch.randn_like(p))
    return module


def discrete_vae(latent, prior=None):
    vae = VAE(SHAPE, MLP((3,), "tanh"), latent, Bernoulli(), prior).double()
    return randomize(vae, 0.8)


def grid_vae(latent):
    """The same at each of 2 x 2 places."""
    vae = VAE(GRID_SHAPE, SMALL_GRID, latent, Bernoulli()).double()
    return randomize(vae, 0.4)  # its features have no bound


def grid_of_colours(latent, shape=(3, 12, 18), scale=0.3, prior=None, padding="circular"):
    """Places of 4 x 4 pixels, 3 x 5 of them in 12 x 18 pixels: the last ones stand out."""
    network = Grid((4, 6), padding=padding)
    return randomize(VAE(shape, network, latent, Bernoulli(), prior), scale).eval()


def binary_images(count=3, shape=SHAPE):
    return torch.rand(count, *shape, dtype=torch.float64).round()


def log_joint(vae, x):
    """Every state z [S, B, *E], and log p(x, z) [S, B]."""
    z = support(vae.encode(x))
    return z, vae.log_px_z(x, z) + vae.latent.prior().log_prob(z)


def log_evidence(vae, x):
    return log_joint(vae, x)[1].logsumexp(0)


def exact_elbo(vae, x, beta=1.0):
    """E_q log p(x|z) - beta KL by enumeration, [B]."""
    z, _ = log_joint(vae, x)
    q, prior = vae.encode(x), vae.latent.prior()
    log_weight = vae.log_px_z(x, z) + beta * (prior.log_prob(z) - q.log_prob(z))
    return (q.log_prob(z).exp() * log_weight).sum(0)


def kl_to_posterior(vae, x):
    """KL(q(z|x) || p(z|x)) by enumeration, [B]."""
    z, log_p = log_joint(vae, x)
    log_q = vae.encode(x).log_prob(z)
    return (log_q.exp() * (log_q - log_p + log_p.logsumexp(0))).sum(0)


class LinearGaussian:
    """x = W z + b + sigma noise with Gaussian z: all is Gaussian. The bias is the decoder's and the
    VAE's own. W and b are read off what the decoder makes of zero and of each variable."""

    sigma = 0.6

    def __init__(self, latent, prior=None, network=None, shape=SHAPE, learned=False):
        likelihood = Gaussian(self.sigma, learned)
        vae = VAE(shape, network or Linear(), latent, likelihood, prior).double()
        self.vae = randomize(vae)
        self.x = torch.rand(3, *shape, dtype=torch.float64)

    def decoded(self, z):
        """[N, L] -> [N, D]."""
        return self.vae.decode(self.vae.latent.from_numbers(z)).flatten(1)

    @property
    def offset(self):
        return self.decoded(torch.zeros(1, self.vae.latent.size))[0]

    @property
    def weight(self):
        """[D, L]."""
        return (self.decoded(torch.eye(self.vae.latent.size)) - self.offset).T

    def moments(self):
        """Mean [D] and covariance [D, D] of p(x); and those of z."""
        prior = self.vae.latent.prior().base_dist
        mean, covariance = prior.mean.flatten(), prior.variance.flatten().diag()
        variance = (2 * self.vae.likelihood.log_sigma).exp()
        noise = variance * torch.eye(len(self.offset), dtype=torch.float64)
        total = self.weight @ covariance @ self.weight.T + noise
        return self.weight @ mean + self.offset, total, mean, covariance

    def log_evidence(self):
        mean, covariance, _, _ = self.moments()
        return MultivariateNormal(mean, covariance).log_prob(self.x.flatten(1))

    def posterior(self):
        """p(z|x), batch shape [B]."""
        mean, total, prior_mean, prior_covariance = self.moments()
        gain = prior_covariance @ self.weight.T @ total.inverse()
        location = prior_mean + (self.x.flatten(1) - mean) @ gain.T
        return MultivariateNormal(
            location, prior_covariance - gain @ self.weight @ prior_covariance
        )

    def elbo(self):
        """log p(x) - KL(q || posterior), [B]."""
        q = self.vae.encode(self.x).base_dist
        q = MultivariateNormal(q.mean.flatten(1), torch.diag_embed(q.variance.flatten(1)))
        return self.log_evidence() - kl_divergence(q, self.posterior())


def gradients(objective, vae, estimator, x):
    """Of the mean objective for the VAE's trained parameters, as one vector."""
    parameters = [p for p in vae.parameters() if p.requires_grad]
    value = objective(vae, estimator, x).objective.mean()
    found = torch.autograd.grad(value, parameters)
    return torch.cat([g.flatten() for g in found])


def gradient_draws(objective, vae, estimator, x, repeats=60, copies=60):
    """Independent draws of those gradients, [repeats, P], each of many copies of x."""
    x = x.repeat(copies, 1, 1, 1)
    return torch.stack([gradients(objective, vae, estimator, x) for _ in range(repeats)])


def is_encoder(vae):
    """Which entries of those vectors are the encoder's and its head's, [P]."""
    return torch.cat(
        [
            torch.full((p.numel(),), name.startswith(("encoder", "head")))
            for name, p in vae.named_parameters()
            if p.requires_grad
        ]
    )


def values(found):
    """What an evaluation measured, by name."""
    return {name: metric.value for name, metric in found.metrics.items()}


class Images(pl.LightningDataModule):
    """16 images that say four bits 15 times each and end in the same four pixels: log p(x) is
    -log 16 nats at best, and -60 log 2 for the best single mean image. Always in the same order."""

    shape = (1, 8, 8)

    def __init__(self, batch_size=16):
        super().__init__()
        bits = torch.cartesian_prod(*[torch.tensor([0, 255], dtype=torch.uint8)] * 4)
        frame = torch.tensor([255, 255, 0, 0], dtype=torch.uint8).expand(16, 4)
        self.images = torch.cat([bits.repeat(1, 15), frame], 1).reshape(16, *self.shape)
        self.batch_size = batch_size

    def train_mean(self, most=None):
        return self.images.float().mean(0) / 255

    def train_dataloader(self):
        ranks = {"rank": self.trainer.global_rank, "world_size": self.trainer.world_size}
        return TensorLoader(self.images, torch.zeros(len(self.images)), self.batch_size, **ranks)

    val_dataloader = train_dataloader
