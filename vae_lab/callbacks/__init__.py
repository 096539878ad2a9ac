"""Lightning callbacks. `import vae_lab` does not import them, nor Lightning."""

from .early_stopping import EarlyStopping
from .finite import FiniteLoss
from .gradient_probe import GradientProbe
from .pictures import Pictures
from .progress import Progress
from .step_seed import StepSeed

__all__ = ["EarlyStopping", "FiniteLoss", "GradientProbe", "Pictures", "Progress", "StepSeed"]
