"""The base class of all models: VAE, estimator, objective and optimizer in a LightningModule."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar, Literal

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.optim import Optimizer

from vae_lab import VAE, threads
from vae_lab.callbacks import MetricsLog
from vae_lab.conditions import Attributes, Condition, Labels
from vae_lab.data import Batch
from vae_lab.description import blueprint
from vae_lab.distributed import aside
from vae_lab.estimators import Estimator
from vae_lab.latents import Latent
from vae_lab.lightning import notes_hooks_quickly
from vae_lab.likelihoods import Likelihood
from vae_lab.metrics import BoundMetrics, sums_and_count
from vae_lab.networks import Network
from vae_lab.objectives import Objective, Terms
from vae_lab.optimization import (
    Decay,
    check_learning_rate,
    clip,
    loss,
    parameter_groups,
    rehearse,
    terms_of,
)
from vae_lab.priors import Prior
from vae_lab.priors.base import start as start_prior
from vae_lab.schedules import schedules

from .optimizer import scheduled, take_settings
from .sharding import gathered, shard

Classes = int | Sequence[Any]  # of labels: how many, or their names

PRIOR_STARTS_OF = 1000  # data
GRID_MEAN_OF = 1000  # images: a grid starts at one number a channel, not at one a pixel


class VAEModule(pl.LightningModule):
    """Trains a :class:`vae_lab.VAE`: maximises an objective with an estimator's gradient.

    Args:
        shape: of one image, (C, H, W).
        latent: the family of q(z|x) and of the prior.
        network: the encoder and decoder.
        likelihood: p(x|z).
        prior: p(z), to which the KL is sampled; None: the latent's own.
        condition: what q, the decoder and maybe the prior know besides: the labels or the
            attributes of the data, or a condition of one's own; None: nothing.
        condition_prior: does p(z) depend on it too.
        classes: of the labels, how many or their names; None: the data has none.
        attributes: their names; None: the data has none.
        objective: what is maximised.
        estimator: how it is differentiated.
        optimizer: makes the optimizer from groups of parameters.
        estimator_lr: the learning rate of the estimator's own parameters (baselines, control
            variates); None: the optimizer's.
        likelihood_lr: the learning rate of the likelihood's own parameters, such as a learned
            sigma, which lags behind the errors if it is too low; None: the optimizer's.
        lr_warmup_steps: the learning rate rises linearly over so many steps.
        lr_decay: after the warm-up the learning rate stays (none), falls along a cosine to zero at
            the end of training, or is multiplied by a schedule, such as
            :class:`~vae_lab.schedules.Staircase`, of the steps since.

    Attributes:
        own_latent_settings: arguments of a subclass that only its own choice of latent uses.
        own_prior_settings: likewise of prior.
        own_estimator_settings: likewise of estimator.
        labelled_share: of a training batch, that has labels at least.
    """

    own_latent_settings: ClassVar[tuple[str, ...]] = ()
    own_prior_settings: ClassVar[tuple[str, ...]] = ()
    own_estimator_settings: ClassVar[tuple[str, ...]] = ()
    labelled_share: float = 0.0

    def __init__(
        self,
        *,
        shape: tuple[int, int, int],
        latent: Latent,
        network: Network,
        likelihood: Likelihood,
        prior: Prior | None = None,
        condition: Condition | Literal["labels", "attributes"] | None = None,
        condition_prior: bool = False,
        classes: Classes | None = None,
        attributes: Sequence[str] | None = None,
        objective: Objective,
        estimator: Estimator,
        optimizer: Callable[..., Optimizer],
        estimator_lr: float | None = None,
        likelihood_lr: float | None = None,
        lr_warmup_steps: int = 0,
        lr_decay: Decay = "none",
    ) -> None:
        super().__init__()
        if estimator is None:  # `estimator: null` in the config: the model's own
            raise ValueError(
                f"estimator must be an Estimator, got None: {type(self).__name__}'s constructor "
                "has to pass on its own choice, as in estimator=estimator or Reparameterization()"
            )
        check_learning_rate(lr_warmup_steps, lr_decay)
        if condition is None and condition_prior:
            raise ValueError(
                "condition_prior=true needs a condition: type model.condition=labels, or leave it "
                "out"
            )
        if isinstance(condition, str):
            condition = condition_of(condition, condition_prior, classes, attributes)
        self.vae = VAE(shape, network, latent, likelihood, prior, condition)
        self.estimator = estimator
        self.objective = objective
        self.optimizer = optimizer
        self.estimator_lr = estimator_lr
        self.likelihood_lr = likelihood_lr
        self.lr_warmup_steps = lr_warmup_steps
        self.scheduled = partial(scheduled, warmup_steps=lr_warmup_steps, decay=lr_decay)
        self.config: dict[str, Any] = {}  # of the run, in plain types; kept in its checkpoints
        self.latest: dict[str, float] = {}  # the training metrics last read off the device
        self.batch_terms: Tensor | None = None  # of the last batch; see callbacks.training
        rehearse(self.vae, objective, estimator)
        self._fresh_optimizer()  # what it does not take fails here
        self.schedules = schedules(self)
        self.metrics = BoundMetrics.of(self.vae, self.estimator.relaxed)

    def _fresh_optimizer(self) -> Optimizer:
        rates = {"estimator_lr": self.estimator_lr, "likelihood_lr": self.likelihood_lr}
        return self.optimizer(parameter_groups(self.vae, self.objective, self.estimator, **rates))

    def setup(self, stage: str) -> None:
        """Starts a fresh decoder at the data's mean, and a likelihood that learns units with them;
        one that was loaded has a bias of its own."""
        if stage == "fit":
            self._start()
        # Lightning does it after a checkpoint was read: 64 bits would have become 32.
        self.trainer.precision_plugin.convert_module(self)

    def _start(self) -> None:
        data: Any = self.trainer.datamodule
        if not self.vae.output_bias.any():
            self._start_decoder(data)
        if self.vae.prior is not None and hasattr(data, "train_examples"):
            x, y = data.train_examples(PRIOR_STARTS_OF)
            start_prior(self.vae, x.to(self.device), y)

    def _start_decoder(self, data: Any) -> None:
        if self.vae.condition is not None:
            self.vae.condition.start(data.train_labels())
        if self.vae.likelihood.learns_units:
            self.vae.initialize(data.train_values().to(self.device))
        elif mean := getattr(data, "train_mean", None):
            self.vae.initialize_bias(mean(GRID_MEAN_OF) if self.vae.latent.grid else mean())

    def configure_model(self) -> None:
        shard(self, (self.vae.encoder, self.vae.decoder))

    def configure_optimizers(self) -> dict[str, Any]:
        return self.scheduled(self._fresh_optimizer(), trainer=self.trainer)

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        clip(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def configure_callbacks(self) -> list[pl.Callback]:
        return [MetricsLog()]

    def on_fit_start(self) -> None:
        threads.use()  # Lightning has set it, where there are several processes

    def on_train_start(self) -> None:
        take_settings(self.trainer, self._fresh_optimizer())

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        self.set_step(self.trainer.global_step)
        if batch_idx == 0:
            self.vae.likelihood.check(batch[0])

    def set_step(self, step: int) -> None:
        """Moves the temperature, beta and all other schedules to this step."""
        for schedule in self.schedules.values():
            schedule.set_step(step)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        x, y, size = batch  # [B, C, H, W] of the `size` images that all processes have together
        with gathered(self):
            terms = self._terms(x, y)
        self.batch_terms = sums_and_count(terms)
        return loss(terms, size, self.trainer.world_size)

    def _terms(self, x: Tensor, y: Tensor) -> Terms:
        """The objective's terms; also where a short last batch leaves this process no images.

        It takes part in the backward pass all the same, with a blank image of weight zero: the
        others wait for its gradients, and for its share of a baseline.
        """
        if len(x):
            return self.terms_of(x, y)
        blank, condition = x.new_zeros(1, *self.vae.shape), self.vae.condition
        with aside():
            terms = self.terms_of(
                blank, y if condition is None else condition.blank(1).to(x.device)
            )
        return Terms(*(term[:0] for term in terms))

    def terms_of(self, x: Tensor, y: Tensor) -> Terms:
        """What is maximised of data x and their labels."""
        return terms_of(self.vae, self.objective, self.estimator, x, y)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Always the true ELBO: exact samples, beta = 1."""
        x, y, _ = batch
        vae = self.vae.given(self.vae.own_y(y))
        bound = vae.elbo(x, check=batch_idx == 0)
        relaxed = None
        if self.estimator.relaxed:
            relaxed = self._terms(x, torch.full_like(y, -1) if vae.infers_labels else y).elbo
        codes = self.vae.latent.codes(bound.q)
        if codes is not None:
            codes = self.vae.latent.places_as_data(codes)
        self.metrics.update(bound, codes, relaxed)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self.validation_step(batch, batch_idx)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds plain tensors and plain types only, so that weights_only=True loads them."""
        checkpoint["config"] = self.config
        checkpoint["vae"] = blueprint(self.vae)
        checkpoint["processes"] = self.trainer.world_size
        checkpoint["threads"] = torch.get_num_threads()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.set_step(checkpoint["global_step"])


def condition_of(
    name: str, prior: bool, classes: Classes | None, attributes: Sequence[str] | None
) -> Condition:
    """The labels or the attributes of the data as a condition.

    Args:
        classes: how many there are, or their names.

    Raises:
        ValueError: the data has none.
    """
    if name == "labels" and isinstance(classes, int):
        return Labels(classes, prior)
    if name == "labels" and classes is not None:
        return Labels(len(classes), prior, classes)
    if name == "attributes" and attributes is not None:
        return Attributes(len(attributes), attributes, prior)
    raise ValueError(
        f"model.condition={name} needs data with {name}, and this has none: leave it out, or "
        "choose other data"
    )


notes_hooks_quickly(VAEModule)  # no decorator: the command line reads the constructor
