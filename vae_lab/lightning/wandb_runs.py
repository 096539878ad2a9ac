"""The W&B run that Lightning's logger holds, where something is wrong over there."""

from typing import Any

from pytorch_lightning.loggers import WandbLogger

from .versions import is_known


def begin_offline(logger: WandbLogger) -> bool:
    """Begins the logger's run offline, whatever mode it was made with.

    Returns:
        Was that possible; Lightning has no public way, so not with an unknown version.
    """
    if is_known():
        logger._wandb_init["mode"] = "offline"
        logger.experiment  # noqa: B018  it is made by being looked at
    return is_known()


def turn_off(logger: WandbLogger) -> None:
    """Lets the logger do nothing from here on; W&B is to be torn down before.

    With an unknown version of Lightning its methods are replaced, and the run that it holds stays.
    """
    import wandb

    if is_known():
        logger._wandb_init["mode"] = "disabled"
        logger._experiment = wandb.init(mode="disabled")
        return
    for name in ("log_hyperparams", "log_metrics", "log_image"):
        setattr(logger, name, _nothing)


def _nothing(*_: Any, **__: Any) -> None:
    pass
