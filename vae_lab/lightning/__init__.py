"""The only place that uses parts of Lightning which a new version of it may change.

Each is a function or a class that says what it is for. Under a version of Lightning that is not in
`versions.KNOWN`, each does it in Lightning's own, public way. Two functions have no such way:
`begin_epoch_anew` and `ended_its_epoch` read what Lightning has written into a checkpoint.
"""

from ..optional import needs

with needs("train", __name__):
    from .averaging import ExponentialAveraging
    from .hook_names import notes_hooks_quickly
    from .progress import (
        accumulates,
        begin_epoch_anew,
        ended_its_epoch,
        place,
        validation_follows,
    )
    from .steps import count_epochs_once, shorten_steps
    from .wandb_runs import begin_offline, turn_off

__all__ = [
    "ExponentialAveraging",
    "accumulates",
    "begin_epoch_anew",
    "begin_offline",
    "count_epochs_once",
    "ended_its_epoch",
    "notes_hooks_quickly",
    "place",
    "shorten_steps",
    "turn_off",
    "validation_follows",
]
