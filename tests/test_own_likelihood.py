"""A likelihood from outside is one class: all that is done with a model works with it."""

import math

import pytest
import pytorch_lightning as pl
import torch
import torch.distributions as D
import torch.nn.functional as F
from tiny import Images

import vae_lab
from models import GaussianVAE
from vae_lab import VAE, pictures
from vae_lab.evaluation import evaluate
from vae_lab.latents import Gaussian
from vae_lab.likelihoods import Likelihood
from vae_lab.networks import MLP
from vae_lab.objectives import ELBO


class Spread(Likelihood):
    """Normal values, each with a standard deviation of its own."""

    def __init__(self, least: float = 0.05) -> None:
        super().__init__()
        self.least = least

    def parameter_shape(self, shape):
        return (2, *shape)

    def normal(self, params):
        loc, scale = params.unbind(-1 - self.data_axes)
        return D.Normal(loc, self.least + F.softplus(scale), validate_args=False)

    def pixel_log_prob(self, params, x):
        return self.normal(params).log_prob(x)

    def mean(self, params):
        return self.normal(params).mean.clamp(0, 1)

    def sample(self, params):
        return self.normal(params).sample()

    def bias(self, mean):
        return torch.stack([mean, torch.zeros_like(mean)])


class Channels(Likelihood):
    """The same of images, as version 0.1.0 wants it: with twice as many channels."""

    def out_channels(self, channels: int) -> int:
        return 2 * channels

    def image_log_prob(self, params, x):
        loc, scale = params.chunk(2, -3)
        return D.Normal(loc, 0.05 + F.softplus(scale)).log_prob(x).flatten(-3).sum(-1)

    def mean(self, params):
        return params.chunk(2, -3)[0].clamp(0, 1)

    def bias(self, mean):
        return torch.cat([mean, torch.zeros_like(mean)], -3)


OWN = [Spread, Channels]


@pytest.fixture(params=OWN)
def trained(request):
    torch.manual_seed(0)
    model = GaussianVAE(
        shape=Images.shape,
        network=MLP((32,)),
        likelihood=request.param(),
        objective=ELBO(),
        optimizer=lambda groups: torch.optim.Adam(groups, lr=0.02),
        latents=4,
    )
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=200,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    before = model.vae.elbo(images(), 20).elbo.mean()
    trainer.fit(model, Images())
    assert trainer.callback_metrics["val/elbo"] > before + 60
    return model.vae


def images():
    return Images().images.float() / 255


def test_it_is_trained_measured_shown_and_released(trained, tmp_path):
    found = evaluate(trained, [images().repeat(4, 1, 1, 1)], samples=50, ais_images=2, ais_steps=5)
    assert found.metrics["log_likelihood"].value >= found.metrics["elbo"].value > 0
    for picture in (
        pictures.reconstructions(trained, images()),
        pictures.samples(trained, 2, 2),
        pictures.interpolations(trained, images()[:1], images()[1:2], 3),
    ):
        assert picture.shape[0] == 3 and 0 <= picture.min() and picture.max() <= 1
    with pytest.raises(ValueError, match="decorate the class with @vae_lab.register"):
        trained.save_pretrained(tmp_path)
    vae_lab.register(type(trained.likelihood))
    loaded = VAE.from_pretrained(trained.save_pretrained(tmp_path))
    torch.manual_seed(1)
    expected = trained.log_likelihood(images(), 5)
    torch.manual_seed(1)
    assert torch.equal(loaded.log_likelihood(images(), 5), expected)


def test_both_are_the_same_distribution():
    x, params = torch.rand(3, 2, 4, 4), torch.randn(5, 3, 2, 2, 4, 4)
    new, old = Spread(), Channels()
    expected = old.log_prob(params.flatten(-4, -3), x)
    torch.testing.assert_close(new.log_prob(params, x), expected)
    with pytest.raises(ValueError, match=r"params must end in \(2, 2, 4, 4\) for data of shape"):
        new.log_prob(params[..., :1, :, :], x)


@pytest.mark.parametrize("shape", [(6,), (3, 2), (1, 2, 3), (2, 1, 3, 1)])
def test_it_needs_to_know_nothing_of_images(shape):
    vae = VAE(shape, MLP((8,)), Gaussian(2), Spread())
    x = torch.rand(4, *shape)
    assert vae.decode(torch.zeros(4, 2)).shape == (4, 2, *shape)
    assert vae(x).elbo.shape == (4,) and vae.sample(3).shape == (3, *shape)
    vae.initialize_bias(x.mean(0))
    torch.testing.assert_close(vae.likelihood.mean(vae.output_bias), x.mean(0))
    flat = VAE((math.prod(shape),), MLP((8,)), Gaussian(2), Spread())
    params = torch.randn(4, 2, *shape)
    expected = flat.likelihood.log_prob(params.flatten(2), x.flatten(1))
    torch.testing.assert_close(vae.likelihood.log_prob(params, x), expected)
