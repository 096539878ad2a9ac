"""The optimizer as Lightning wants it: its learning rate at every step, and after a resume."""

from typing import Any

import pytorch_lightning as pl
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from vae_lab.optimization import Decay, rate_factor


def scheduled(
    optimizer: Optimizer, warmup_steps: int, decay: Decay, trainer: pl.Trainer
) -> dict[str, Any]:
    """The optimizer with a learning rate that moves at every step, as Lightning wants them."""
    factor = rate_factor(warmup_steps, decay, lambda: trainer.estimated_stepping_batches)
    scheduler = {"scheduler": LambdaLR(optimizer, factor), "interval": "step"}
    return {"optimizer": optimizer, "lr_scheduler": scheduler}


def take_settings(trainer: pl.Trainer, fresh: Optimizer) -> None:
    """Gives the trainer's optimizer the settings of a fresh one.

    Those are the config's; the state that was loaded may have brought others.
    """
    scheduler = trainer.lr_scheduler_configs[0].scheduler
    scheduler.base_lrs = [group["lr"] for group in fresh.param_groups]
    [factor, *_] = scheduler.lr_lambdas
    groups = zip(trainer.optimizers[0].param_groups, fresh.param_groups, strict=True)
    for group, new in groups:
        settings = {name: value for name, value in new.items() if name != "params"}
        rate = new["lr"] * factor(scheduler.last_epoch)
        group |= settings | {"initial_lr": new["lr"], "lr": rate}
