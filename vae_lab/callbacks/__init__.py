"""Lightning callbacks. `import vae_lab` does not import them, nor Lightning."""

from ..optional import needs

with needs("train", __name__):
    from .checkpointing import Checkpointing, DurableIO, Interrupted
    from .early_stopping import EarlyStopping
    from .finite import FiniteUpdates
    from .gradient_probe import GradientProbe
    from .latent_use import DeadCodesWarning, LatentUse, PosteriorCollapseWarning
    from .metrics_log import MetricsLog
    from .pictures import Pictures
    from .progress import Progress
    from .step_seed import StepSeed

__all__ = [
    "Checkpointing",
    "DeadCodesWarning",
    "DurableIO",
    "EarlyStopping",
    "FiniteUpdates",
    "GradientProbe",
    "Interrupted",
    "LatentUse",
    "MetricsLog",
    "Pictures",
    "PosteriorCollapseWarning",
    "Progress",
    "StepSeed",
]
