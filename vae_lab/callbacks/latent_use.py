"""Warnings by name for latents that the model does not use."""

import warnings
from typing import cast

import pytorch_lightning as pl

from ..evaluation.diagnosis import MIN_CODES, MIN_KL, diagnose, own_temperature, sizes
from .training import Training


class PosteriorCollapseWarning(UserWarning):
    """q(z|x) is the prior for every x: the decoder ignores z."""


class DeadCodesWarning(UserWarning):
    """A discrete latent uses few of its categories."""


WARNINGS: dict[str, type[UserWarning]] = {
    "posterior collapse": PosteriorCollapseWarning,
    "dead codes": DeadCodesWarning,
}


class LatentUse(pl.Callback):
    """Warns once each of posterior collapse and of dead codes, from the metrics of validation.

    Collapsed is a model whose `val/kl` is below `min_kl` or that has no active unit. Its codes are
    dead where `val/code_perplexity` P lies so low that :math:`(P - 1) / (K - 1)` is below
    `min_codes`: 0 is one code used of K, 1 all alike; that fewer than K data, at all their places,
    use few codes says nothing. The diagnoses, and what to type, are those of
    :mod:`vae_lab.evaluation.diagnosis`.

    Args:
        patience: validations in a row that have to agree.
        min_kl: in nats a datum.
        min_codes: a fraction.
    """

    def __init__(
        self, patience: int = 3, min_kl: float = MIN_KL, min_codes: float = MIN_CODES
    ) -> None:
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
        names = ("kl", "active_units", "active_channels", "code_perplexity")
        numbers = {n: metrics[f"val/{n}"].item() for n in names if f"val/{n}" in metrics}
        module = cast(Training, pl_module)
        latent, seen = module.vae.latent, module.metrics.count.item() * trainer.world_size
        if latent.categories is not None and seen * latent.num_places < latent.categories:
            numbers.pop("code_perplexity", None)
        numbers |= sizes(latent) | own_temperature(pl_module)
        for found in diagnose(numbers, "val/", self.min_kl, self.min_codes):
            if found.name in WARNINGS:
                message = f"{found.because}; {found.advice}"
                self._count(WARNINGS[found.name], found.level != "fine", message)

    def _count(self, kind: type[Warning], found: bool, message: str) -> None:
        self._counts[kind] = self._counts.get(kind, 0) + 1 if found else 0
        if self._counts[kind] >= self.patience and kind not in self._warned:
            self._warned.add(kind)
            warnings.warn(f"{message} ({self.patience} validations in a row)", kind, stacklevel=1)
