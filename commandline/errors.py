"""The errors that the user can mend, and the one line that says how."""

import functools
import re
from collections.abc import Iterable

import torch
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from .places import files
from .quoting import as_typed
from .settings import GROUPS, NAMING_PLACES

KNOWN = (ValueError, OSError, ImportError, FloatingPointError, MisconfigurationException)
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")
NOT_FINITE = (  # what torch says of NaN probabilities
    "probability tensor contains either",
    "invalid multinomial distribution",
    "Expected p_in >= 0",
    "invalid Poisson rate",
)
FAMILIES = ("Bernoulli", "Gaussian")  # also what a q is called
LOST = ("Connection closed by peer", "Connection reset by peer", "Timed out waiting")


def explain(error: Exception, config: DictConfig) -> str | None:
    """One line for a mistake, a limit of the machine or a service that failed.

    Empty where another process of the run says it. None for anything else: that is a fault of the
    code, whose traceback somebody has to see.
    """
    text = as_chosen(" ".join(str(error).split()), _places(config))
    if text.endswith("(in model)"):  # whose estimator cannot train its latent
        text = text.replace("; use one of", "; type estimator=NAME, use one of")
    if isinstance(error, MemoryError) or _says(error, OUT_OF_MEMORY):
        return _less_memory(config, text)
    if isinstance(error, FloatingPointError) and rank_zero_only.rank:
        return ""  # all processes stop with it, the first has said so
    if _says(error, ("DataLoader worker",)):
        return _fewer_workers(config, text)
    if isinstance(error, KNOWN) or type(error).__module__.startswith("wandb"):
        return text
    if _says(error, NOT_FINITE):
        return (
            f"the model's probabilities are not finite, as an update was too large ({text}): type "
            "a lower model.optimizer.lr, or trainer.gradient_clip_val=1"
        )
    if _says(error, ("Could not determine home directory",)):
        return "this user has no home folder: set HOME, or type whole paths, as data.root=/..."
    return lost(error)


def lost(error: Exception, folder: str | None = None) -> str | None:
    """One line, if the error is that another process has ended; with the folder of the run, what
    to type to go on."""
    if not isinstance(error, torch.distributed.DistError) and not _says(error, LOST):
        return None
    again = "" if folder is None else f"; to go on, type {as_typed('resume', folder)}"
    again += " with the same settings" if again else ""
    said = " ".join(str(error).split()).partition(". ")[0]
    left = "its error, if it left one, stands above"
    return f"another process of this run was lost; {left}{again} ({said})"


def as_chosen(text: str, places: Iterable[str] = ()) -> str:
    """The library's text, with its classes' names replaced by those that one types for them.

    Paths and values stay what they are, and so do the places that were typed.
    """
    names = _typed_names()
    cls = rf"(?<![\w/=.'\"~-])({'|'.join(names)})(?![\w/=-]|\.\w)"
    left = [re.escape(place) for place in places if any(name in place for name in names)]
    return re.sub("|".join([*left, cls]), lambda found: names.get(found[1], found[0]), text)


def _places(config: DictConfig) -> list[str]:
    found = [
        OmegaConf.select(config, key, throw_on_resolution_failure=False) for key in NAMING_PLACES
    ]
    return [str(place) for place in found if place]


@functools.cache
def _typed_names() -> dict[str, str]:
    """The name to type for each class that has exactly one file in configs/."""
    groups = [name for name, group in GROUPS.items() if group.spoken]
    found = [pair for group in groups for pair in files(group).items()]
    classes = [OmegaConf.load(file)._target_.rpartition(".")[2] for _, file in found]
    pairs = zip(classes, found, strict=True)
    return {c: name for c, (name, _) in pairs if classes.count(c) == 1 and c not in FAMILIES}


def _fewer_workers(config: DictConfig, text: str) -> str:
    workers = config.data.get("num_workers", 0)
    return (
        f"a process that reads the data was lost ({text.partition('. ')[0]}), often for lack of "
        f"memory: type less than data.num_workers={workers}; with 0 there are none"
    )


def _says(error: Exception, parts: tuple[str, ...]) -> bool:
    return isinstance(error, RuntimeError) and any(part in str(error) for part in parts)


def _less_memory(config: DictConfig, text: str) -> str:
    reason = text.partition(". ")[0] or "no more memory"
    if config.task == "evaluate":
        budget = config.evaluate.memory_gb
        return (
            f"{reason}: with evaluate.memory_gb={budget:g} an evaluation does not fit; type "
            f"evaluate.memory_gb={budget / 4:g}"
        )
    size, rest = config.data.batch_size, config.data.eval_batch_size
    times = config.trainer.accumulate_grad_batches
    return (
        f"{reason}: with data.batch_size={size} a step does not fit; type "
        f"data.batch_size={max(size // 2, 1)} trainer.accumulate_grad_batches={2 * times} for the "
        f"same step in halves, or if it was a validation, less than data.eval_batch_size={rest}"
    )
