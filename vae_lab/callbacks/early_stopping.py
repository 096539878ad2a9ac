"""Early stopping that waits for the KL warm-up."""

from typing import Any

import pytorch_lightning as pl


class EarlyStopping(pl.callbacks.EarlyStopping):
    """Stops when the monitored metric has not improved for `patience` validations in a row.

    Counting begins at `wait_steps` optimizer steps. While the KL weight still rises, the objective
    changes from step to step, so neither a bad nor a good value there says anything about the end:
    such validations use up no patience and set no best score.

    A NaN is left to `FiniteUpdates`, which ends the run with an error; Lightning's own check stops
    it as if it had finished.

    Args:
        monitor: A metric that validation logs.
        mode: "max" or "min".
        patience: Validations without an improvement.
        min_delta: The least change that is an improvement, in the metric's unit.
        wait_steps: Optimizer steps before counting; the end of the KL warm-up.
    """

    def __init__(
        self,
        monitor: str = "val/elbo",
        mode: str = "max",
        patience: int = 10,
        min_delta: float = 0.0,
        wait_steps: int = 0,
    ) -> None:
        if wait_steps < 0:
            raise ValueError(f"wait_steps must be non-negative, got {wait_steps}")
        super().__init__(
            monitor,
            min_delta,
            patience,
            mode=mode,
            check_finite=False,
            check_on_train_epoch_end=False,  # once per validation, however often that is
        )
        self.wait_steps = wait_steps

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """All but the patience, which is the config's: more of it lets a run go on."""
        super().load_state_dict(state_dict | {"patience": self.patience})

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """A run that had stopped has stopped, also if it was killed before its end."""
        trainer.should_stop = self.wait_count >= self.patience

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.global_step >= self.wait_steps:
            super().on_validation_end(trainer, pl_module)
