"""What all models share: a VAE, an estimator, an objective, an optimizer, as a LightningModule."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Literal, cast

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.nn.utils import clip_grad_norm_, clip_grad_value_
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from vae_lab import VAE, threads
from vae_lab.data import Batch
from vae_lab.description import blueprint
from vae_lab.distributed import aside
from vae_lab.estimators import Estimator
from vae_lab.latents import Latent
from vae_lab.likelihoods import Likelihood
from vae_lab.metrics import BoundMetrics, Window
from vae_lab.networks import Network
from vae_lab.objectives import Objective, Terms
from vae_lab.schedules import schedules


class VAEModule(pl.LightningModule):
    """Trains a :class:`vae_lab.VAE`: maximises an objective with an estimator's gradient.

    Args:
        shape: of one image, (C, H, W).
        latent: the family of q(z|x) and of the prior.
        network: the encoder and decoder.
        likelihood: p(x|z).
        objective: what is maximised.
        estimator: how it is differentiated.
        optimizer: makes the optimizer from groups of parameters.
        estimator_lr: the learning rate of the estimator's own parameters (baselines, control
            variates); None: the optimizer's.
        lr_warmup_steps: the learning rate rises linearly over so many steps.
        lr_decay: after the warm-up the learning rate stays (none), or falls along a cosine to zero
            at the end of training.

    Attributes:
        own_estimator_settings: arguments of a subclass that only its own choice of estimator uses.
    """

    own_estimator_settings: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        *,
        shape: tuple[int, int, int],
        latent: Latent,
        network: Network,
        likelihood: Likelihood,
        objective: Objective,
        estimator: Estimator,
        optimizer: Callable[..., Optimizer],
        estimator_lr: float | None = None,
        lr_warmup_steps: int = 0,
        lr_decay: Literal["none", "cosine"] = "none",
    ) -> None:
        super().__init__()
        if estimator is None:  # `estimator: null` in the config: the model's own
            raise ValueError(
                f"estimator must be an Estimator, got None: {type(self).__name__}'s constructor "
                "has to pass on its own choice, as in estimator=estimator or Reparameterization()"
            )
        if lr_warmup_steps < 0:
            raise ValueError(f"lr_warmup_steps must not be negative, got {lr_warmup_steps}")
        if lr_decay not in ("none", "cosine"):
            raise ValueError(f"lr_decay must be none or cosine, got {lr_decay!r}")
        self.vae = VAE(shape, network, latent, likelihood)
        self.estimator = estimator
        self.objective = objective
        self.optimizer = optimizer
        self.estimator_lr = estimator_lr
        self.lr_warmup_steps = lr_warmup_steps
        self.lr_decay = lr_decay
        self.config: dict[str, Any] = {}  # of the run, in plain types; kept in its checkpoints
        self.latest: dict[str, float] = {}  # the training metrics last read off the device
        self.batch_terms: Tensor | None = None  # of the last batch: sums of its terms, and count
        self._dry_run()
        self.schedules = schedules(self)
        self._metrics = self._bound_metrics()
        self._window = Window()

    def _dry_run(self) -> None:
        """A step on blank images: what does not fit fails here, and lazy layers get their shape."""
        self.eval()  # leaves moving averages alone
        with torch.random.fork_rng(devices=[]):
            self.objective(self.vae, self.estimator, torch.zeros(2, *self.vae.shape))
        self.train()
        self.optimizer(self._parameter_groups())

    def _bound_metrics(self) -> BoundMetrics:
        latent = self.vae.latent
        # Trained at points that it will not meet again: beside the true ELBO, show the one it sees.
        return BoundMetrics(latent.num_variables, latent.categories, self.estimator.relaxed)

    def __setattr__(self, name: str, value: Any) -> None:
        # Lightning notes here which hook runs, fifty times a step; Module's own way takes 2 us.
        if name == "_current_fx_name":
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    def setup(self, stage: str) -> None:
        """Starts a fresh decoder at the data's mean; one that was loaded has a bias of its own."""
        mean = getattr(self.trainer.datamodule, "train_mean", None)
        if stage == "fit" and mean and not self.vae.output_bias.any():
            self.vae.initialize_bias(mean())

    def configure_model(self) -> None:
        """Shards the trunks where the strategy has a mesh of devices (FSDP2)."""
        if self.device_mesh is None or isinstance(self, FSDPModule):
            return
        for module in (self.vae.encoder, self.vae.decoder, self):
            fully_shard(module, mesh=self.device_mesh)  # [machines: copies, processes: shares]
        for step in ("training_step", "validation_step", "test_step"):
            register_fsdp_forward_method(self, step)  # gathers what no trunk holds

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = self.optimizer(self._parameter_groups())
        scheduler = LambdaLR(optimizer, lambda step: self._lr_factor(step))
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def _parameter_groups(self) -> list[dict[str, Any]]:
        model = [*self.vae.parameters(), *self.objective.parameters()]
        groups: list[dict[str, Any]] = [{"params": [p for p in model if p.requires_grad]}]
        if own := list(self.estimator.parameters()):
            rate = {} if self.estimator_lr is None else {"lr": self.estimator_lr}
            # Decay would pull a control variate's weight to 0 and its temperature to 1.
            groups.append({"params": own, "weight_decay": 0.0, **rate})
        return groups

    def _lr_factor(self, step: int) -> float:
        warmup = self.lr_warmup_steps
        if step < warmup:
            return (step + 1) / warmup
        if self.lr_decay == "none":
            return 1.0
        steps = self.trainer.estimated_stepping_batches
        if not math.isfinite(steps):
            return 1.0
        fraction = (step - warmup) / max(steps - warmup, 1)
        return 0.5 * (1 + math.cos(math.pi * min(fraction, 1.0)))

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Lightning's would refuse a fused optimizer in bfloat16 too, where no GradScaler is, and
        fail where a step that is left out has no gradients."""
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        found = [p for p in parameters if p.grad is not None]
        if gradient_clip_val and found:
            clip = clip_grad_value_ if gradient_clip_algorithm == "value" else clip_grad_norm_
            clip(found, gradient_clip_val)

    def on_train_start(self) -> None:
        """Gives the optimizer the config's settings, where its loaded state has brought others."""
        fresh = self.optimizer(self._parameter_groups()).param_groups
        scheduler = self.trainer.lr_scheduler_configs[0].scheduler
        scheduler.base_lrs = [group["lr"] for group in fresh]
        factor = self._lr_factor(scheduler.last_epoch)
        for group, new in zip(self.trainer.optimizers[0].param_groups, fresh, strict=True):
            settings = {name: value for name, value in new.items() if name != "params"}
            group |= settings | {"initial_lr": new["lr"], "lr": new["lr"] * factor}

    def on_fit_start(self) -> None:
        threads.use()  # Lightning has set it, where there are several processes

    def on_train_epoch_start(self) -> None:
        self._window.resume()

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        self.set_step(self.trainer.global_step)
        if batch_idx == 0:
            self.vae.likelihood.check(batch[0])

    def set_step(self, step: int) -> None:
        """Moves the temperature, beta and all other schedules to this step."""
        for schedule in self.schedules.values():
            schedule.set_step(step)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        x, _, size = batch  # [B, C, H, W] of the `size` images that all processes have together
        with self._gathered():
            terms = self._terms(x)
        self.batch_terms = self._window.add(terms, size)
        # DDP averages the gradients of the processes, which may not have equally many images.
        return terms.objective.sum() * (-self.trainer.world_size / size)

    @contextmanager
    def _gathered(self) -> Iterator[None]:
        """Keeps a sharded model together where an estimator takes derivatives of its own."""
        if isinstance(self, FSDPModule):
            self.set_reshard_after_backward(False)
        yield
        if isinstance(self, FSDPModule):
            self.set_reshard_after_backward(True)

    def _terms(self, x: Tensor) -> Terms:
        """The objective's terms; also where a short last batch leaves this process no images.

        It takes part in the backward pass all the same, with a blank image of weight zero: the
        others wait for its gradients, and for its share of a baseline.
        """
        if len(x):
            return self.objective(self.vae, self.estimator, x)
        blank = x.new_zeros(1, *self.vae.shape)
        with aside():
            terms = self.objective(self.vae, self.estimator, blank)
        return Terms(*(term[:0] for term in terms))

    def configure_callbacks(self) -> list[pl.Callback]:
        return [_TrainingLog()]

    def _log_training(self) -> None:
        metrics = self._window.read(tuple(f"train/{name}" for name in Terms._fields))
        for name, schedule in self.schedules.items():
            metrics[f"train/{name}"] = schedule.at(max(self.trainer.global_step - 1, 0))
        metrics["lr"] = self.trainer.optimizers[0].param_groups[0]["lr"]
        self.latest = metrics
        self.write(metrics)

    def write(self, metrics: dict[str, float]) -> None:
        """To the loggers, at the number of steps done; `self.log` is slower and one behind."""
        for logger in self.loggers:
            row = metrics | {"epoch": self.trainer.current_epoch}
            logger.log_metrics(row, step=self.trainer.global_step)

    def _write_split(self, split: str) -> None:
        metrics = {f"{split}/{name}": value for name, value in self._metrics.compute().items()}
        if split == "val":  # for the callbacks that monitor them; log_dict takes 8 ms for each
            self.trainer.callback_metrics.update(metrics)
        else:
            self.log_dict(metrics, logger=False)
        self.write({name: value.item() for name, value in metrics.items()})

    def on_validation_start(self) -> None:
        self._window.pause()
        self._metrics.reset()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Always the true ELBO: exact samples, beta = 1."""
        bound = self.vae.elbo(batch[0], check=batch_idx == 0)
        relaxed = None
        if self.estimator.relaxed:
            relaxed = self._terms(batch[0]).elbo
        self._metrics.update(bound, self.vae.latent.codes(bound.q), relaxed)

    def on_validation_epoch_end(self) -> None:
        self._write_split("val")

    def on_validation_end(self) -> None:
        self._window.resume()

    def on_test_start(self) -> None:
        self._metrics.reset()

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self.validation_step(batch, batch_idx)

    def on_test_epoch_end(self) -> None:
        self._write_split("test")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds plain tensors and plain types only, so that weights_only=True loads them."""
        checkpoint["config"] = self.config
        checkpoint["vae"] = blueprint(self.vae)
        checkpoint["window"] = self._window.state_dict()
        checkpoint["processes"] = self.trainer.world_size
        checkpoint["threads"] = torch.get_num_threads()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._window.load_state_dict(checkpoint["window"], self.device)
        self.set_step(checkpoint["global_step"])


class _TrainingLog(pl.Callback):
    """Logs training. A hook of the module's would come after that of the callback that saves: what
    is logged at a step could be missing after a resume."""

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if (batch_idx + 1) % trainer.log_every_n_steps == 0 or trainer.is_last_batch:
            cast(VAEModule, pl_module)._log_training()
