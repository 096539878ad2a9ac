"""Warnings by name for latents that the model does not use."""

import warnings
from typing import cast

import pytorch_lightning as pl

from ..latents import Latent
from ..vae import VAE


class PosteriorCollapseWarning(UserWarning):
    """q(z|x) is the prior for every x: the decoder ignores z."""


class DeadCodesWarning(UserWarning):
    """Of the categories of a discrete latent few are ever used."""


class LatentUse(pl.Callback):
    """Warns once each of posterior collapse and of dead codes, from the metrics of validation.

    Collapsed is a model whose `val/kl` is below `min_kl` or that has no active unit. Its codes are
    dead where `val/code_perplexity` P lies so low that :math:`(P - 1) / (K - 1)` is below
    `min_codes`: 0 is one code used of K, 1 all alike.

    Args:
        patience: validations in a row that have to agree.
        min_kl: in nats a datum.
        min_codes: a fraction.
    """

    def __init__(self, patience: int = 3, min_kl: float = 0.1, min_codes: float = 0.1) -> None:
        super().__init__()
        if patience < 1 or min_kl < 0 or min_codes < 0:
            raise ValueError(
                "patience must be at least 1, min_kl and min_codes not negative, got "
                f"{patience}, {min_kl} and {min_codes}"
            )
        self.patience, self.min_kl, self.min_codes = patience, min_kl, min_codes
        self._counts: dict[type[Warning], int] = {}
        self._warned: set[type[Warning]] = set()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        metrics = trainer.callback_metrics
        if trainer.sanity_checking or not trainer.is_global_zero or "val/kl" not in metrics:
            return
        kl, active = metrics["val/kl"].item(), int(metrics["val/active_units"])
        latents, categories = _sizes(cast(VAE, pl_module.vae).latent)
        self._count(
            PosteriorCollapseWarning,
            kl < self.min_kl or not active,
            f"val/kl is {kl:.3g} nats, {active} of {latents} latent variables are active; type "
            "objective=elbo_warmup (its beta rises from 0), a lower objective.beta, or "
            "objective.free_bits=0.1",
        )
        if categories is not None:
            perplexity = metrics["val/code_perplexity"].item()
            self._count(
                DeadCodesWarning,
                (perplexity - 1) / (categories - 1) < self.min_codes,
                f"of {categories} categories a latent variable uses {perplexity:.3g} "
                "(val/code_perplexity); type a higher model.temperature, a lower "
                "model.optimizer.lr, or fewer model.categories",
            )

    def _count(self, kind: type[Warning], found: bool, message: str) -> None:
        self._counts[kind] = self._counts.get(kind, 0) + 1 if found else 0
        if self._counts[kind] >= self.patience and kind not in self._warned:
            self._warned.add(kind)
            warnings.warn(f"{message} ({self.patience} validations in a row)", kind, stacklevel=1)


def _sizes(latent: Latent) -> tuple[int, int | None]:
    """L, and K where there are codes."""
    codes = latent.codes(latent.prior())
    return latent.event_shape[0], None if codes is None else codes.shape[-1]
