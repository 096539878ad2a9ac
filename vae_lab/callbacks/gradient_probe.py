"""The quality of the encoder's gradient while the model trains."""

import csv
from pathlib import Path
from typing import Any, cast

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_warn

from .. import figures
from ..distributed import alone
from ..gradients import bound_samples, check_random, encoder_gradients, reference, statistics
from ..lightning import accumulates
from ..seeding import derive_seed, seed_generators
from .pictures import forked_generators
from .training import Training, write


class GradientProbe(pl.Callback):
    """Measures bias, variance, signal-to-noise ratio and cosine of the encoder's gradient.

    They are logged as `gradient/...` and drawn as `gradients.png` at the end. The reference is
    exact where the latent's support is small enough, else a long average, whose own noise
    `gradient/bias_noise` includes: a bias is one if it stands above that. Training does not notice,
    but for the time, which counts in the logged speed.

    Args:
        folder: where the figure goes.
        every_n_steps: optimizer steps between measurements.
        images: images of the training batch that are used.
        repeats: estimates of the gradient in one measurement.
        reference_repeats: the length of the average that serves as the reference.
        max_states: the largest support that is enumerated instead.
        seed: of the noise in the measurement.
    """

    def __init__(
        self,
        folder: str | Path,
        every_n_steps: int = 200,
        images: int = 32,
        repeats: int = 32,
        reference_repeats: int = 100,
        max_states: int = 4096,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if every_n_steps < 1 or images < 1 or repeats < 2 or reference_repeats < 2:
            raise ValueError(
                "every_n_steps and images must be at least 1 and repeats at least 2, got "
                f"{every_n_steps}, {images}, {repeats} and {reference_repeats}"
            )
        self.folder = Path(folder)
        self.every_n_steps = every_n_steps
        self.images = images
        self.repeats = repeats
        self.reference_repeats = reference_repeats
        self.max_states = max_states
        self.seed = seed
        self._measured_at = -1

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        check_random(cast(Training, pl_module).vae)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Measure, every so many steps."""
        step = trainer.global_step
        due = step % self.every_n_steps == 0 and step != self._measured_at
        if not due or accumulates(trainer, batch_idx) or not trainer.is_global_zero:
            return
        self._measured_at = step
        with forked_generators(pl_module.device), torch.enable_grad(), alone():
            seed_generators(derive_seed(self.seed, "gradient_probe", step))
            x, y = (part[: self.images] for part in batch[:2])
            metrics = self._measure(cast(Training, pl_module), x, y)
        write(trainer, {f"gradient/{name}": value for name, value in metrics.items()})

    def _measure(self, module: Training, x: torch.Tensor, y: torch.Tensor) -> dict[str, float]:
        """The gradient for q(z|x), given the labels where the model is conditional."""
        vae, objective = module.vae.of_data(x, y), module.objective
        estimator = module.estimator.below
        samples = bound_samples(objective, estimator)
        truth = reference(vae, objective, x, samples, self.reference_repeats, self.max_states)
        gradients = encoder_gradients(vae, objective, estimator, x, self.repeats)
        return vars(statistics(gradients, truth))

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw what was logged, a resumed run's past included."""
        path = self.folder.parent / "metrics.csv"
        if trainer.is_global_zero and path.is_file():
            with path.open(newline="") as file:
                rows = list(csv.DictReader(file))
            try:
                figures.gradients(rows, self.folder / "gradients.png")
            except OSError as error:  # of a full disk
                rank_zero_warn(f"no gradients.png: {error.strerror}")
