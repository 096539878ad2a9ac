"""The one table of settings: what each of them is to a run.

A row stands for a setting, or for all that are below it: `data` for `data.val_size` as well, unless
that has a row of its own. What has no row makes a run what it is and needs no more to be said. A
new group of files, as `prior=NAME` was, is one row.
"""

from enum import Enum
from typing import Any, NamedTuple


class Role(Enum):
    """The kinds of settings, by what they decide."""

    MAKES = "what is trained: with another value it is another run"
    ENDS = "when training ends: a run may go on with another end"
    ASKS = "what train.py is asked for now, whatever a run was asked for"
    WATCHES = "what is kept and shown of a run"
    PLACES = "where something is read or written"
    WORKS = "how this machine goes about it, and what it does if something fails"
    DECIDED = "nothing that can be typed: the run's own code decides"


class Group(NamedTuple):
    """GROUP=NAME: one of the files in configs/GROUP is chosen.

    Attributes:
        several: GROUP=[NAME,NAME] chooses several.
        of_model: the model's constructor takes what the file names.
        spoken: an error's words may name a class of this group, which is shown as its file's name.
        own: its files have settings of the group's own, and do not only set those of others.
        optional: null, which chooses none of them, leaves it to another part: the default.
        of_data: this other part is the data, and no longer the model.
    """

    several: bool = False
    of_model: bool = False
    spoken: bool = False
    own: bool = True
    optional: bool = False
    of_data: bool = False


class Row(NamedTuple):
    """A row of the table.

    Attributes:
        role: what the setting decides.
        place: the value is a path, an address or the name of a model.
        positive: a number has to be above zero.
        decides_images: of the settings of `data`: another value makes other test images, and not
            only another draw of their noise.
        group: files to choose from.
        old: the value of a run that is older than the setting, if another one than its default.
        instead: what to type, where this cannot be typed.
    """

    role: Role = Role.MAKES
    place: bool = False
    positive: bool = False
    decides_images: bool = True
    group: Group | None = None
    old: Any = ...
    instead: str = ""


def _decided(instead: str) -> Row:
    return Row(Role.DECIDED, instead=instead)


ENDS, ASKS, WATCHES = Role.ENDS, Role.ASKS, Role.WATCHES
PLACES, WORKS = Role.PLACES, Role.WORKS
OF_MODEL = Group(of_model=True, spoken=True)
OF_ANOTHER = OF_MODEL._replace(optional=True)

TABLE = {
    # the run
    "task": Row(ASKS),
    "run_dir": Row(PLACES, place=True),
    "checkpoint": Row(ASKS, place=True),
    "resume": Row(ASKS, place=True),
    "exact": Row(ASKS),
    "save": Row(WATCHES),
    "threads": Row(WORKS),  # the same as before unless exact=false; see tasks/fit.py
    "report": Row(WATCHES),
    "early_stopping": Row(ENDS, positive=True),
    "on_nonfinite": Row(WORKS),
    "max_skipped": Row(WORKS, positive=True),
    "init.encoder": Row(place=True),
    "init.posterior": Row(place=True),
    "init.decoder": Row(place=True),
    "init.model": Row(place=True, old=None),
    # the tasks
    "compare": Row(ASKS),
    "compare.images": Row(ASKS, positive=True),
    "evaluate": Row(ASKS),
    "evaluate.images": Row(ASKS, positive=True),
    "evaluate.samples": Row(ASKS, positive=True),
    "evaluate.ais_steps": Row(ASKS, positive=True),
    "evaluate.memory_gb": Row(ASKS, positive=True),
    "explore": Row(ASKS),
    "explore.images": Row(ASKS, positive=True),
    "sample": Row(ASKS),
    "sample.count": Row(ASKS, positive=True),
    "sample.out": Row(ASKS, place=True),
    "encode": Row(ASKS),
    "encode.out": Row(ASKS, place=True),
    "decode": Row(ASKS),
    "decode.file": Row(ASKS, place=True),
    "decode.out": Row(ASKS, place=True),
    "impute": Row(ASKS),
    "impute.samples": Row(ASKS, positive=True),
    "impute.out": Row(ASKS, place=True),
    # the groups, in the order in which they are shown
    "model": Row(group=Group()),
    "model.shape": _decided("it is that of the data"),
    "model.classes": _decided("it is that of the data"),
    "model.attributes": _decided("they are those of the data"),
    "model.depth": Row(old=1),
    "model.condition": Row(old=None),
    "model.condition_prior": Row(old=False),
    "model.latent": _decided("type latent=NAME, or model.latents=NUMBER for the model's own"),
    "data": Row(group=Group()),
    "data.root": Row(PLACES, place=True),
    "data.train": Row(PLACES, place=True),
    "data.val": Row(PLACES, place=True, decides_images=False),
    "data.test": Row(PLACES, place=True),
    "data.cache_dir": Row(PLACES, place=True, decides_images=False),
    "data.download": Row(PLACES, decides_images=False),
    "data.batch_size": Row(decides_images=False),
    "data.eval_batch_size": Row(WORKS, decides_images=False),
    "data.val_size": Row(decides_images=False),
    "data.seed": Row(decides_images=False),
    "data.labelled": Row(decides_images=False, old=None),
    "data.flip": Row(decides_images=False, old=False),
    "data.crop": Row(decides_images=False, old=None),
    "data.memory_gb": Row(WORKS, decides_images=False),
    "data.num_workers": Row(WORKS, decides_images=False),
    "data.on_corrupt": Row(decides_images=False),
    "data.background": Row(old="white"),
    "data.value_range": Row(old=None),
    "network": Row(group=Group(of_model=True)),
    "network.checkpointing": Row(WORKS),
    "network.negative_slope": Row(old=0.01),
    "latent": Row(group=Group(of_model=True, optional=True), old=None),
    "likelihood": Row(group=OF_ANOTHER._replace(of_data=True)),
    "objective": Row(group=OF_MODEL),
    "estimator": Row(group=OF_ANOTHER),
    "prior": Row(group=OF_ANOTHER, old=None),
    "trainer": Row(group=Group()),
    "trainer.max_epochs": Row(ENDS, positive=True),
    "trainer.max_steps": Row(ENDS, positive=True),
    "trainer.max_time": Row(ENDS),
    "trainer.accumulate_grad_batches": Row(positive=True),
    "trainer.gradient_clip_val": Row(positive=True),
    "trainer.log_every_n_steps": Row(WATCHES, positive=True),
    "trainer.check_val_every_n_epoch": Row(WATCHES, positive=True),
    "trainer.val_check_interval": Row(WATCHES, positive=True),
    "trainer.num_nodes": Row(positive=True),
    "trainer.limit_train_batches": Row(positive=True),
    "trainer.limit_val_batches": Row(WATCHES),
    "trainer.limit_test_batches": Row(WATCHES, positive=True),
    "trainer.num_sanity_val_steps": Row(WATCHES),
    "trainer.enable_progress_bar": Row(WATCHES),
    "trainer.profiler": Row(WATCHES),
    "trainer.detect_anomaly": Row(WORKS),
    "trainer.strategy.timeout": Row(WORKS),
    "trainer.logger": _decided("type logger=NAME, or [NAME,NAME]"),
    "trainer.callbacks": _decided("type callbacks=NAME, or callbacks.NAME=null to leave one out"),
    "trainer.plugins": _decided("train.py chooses them"),
    "trainer.default_root_dir": _decided("type run_dir=FOLDER"),
    "trainer.enable_checkpointing": _decided(
        "a run is always saved; when and how often is save.NAME=VALUE"
    ),
    "trainer.enable_model_summary": _decided("there is none"),
    "trainer.use_distributed_sampler": _decided("the data shards every batch itself"),
    "callbacks": Row(WATCHES, group=Group(several=True)),
    "logger": Row(WATCHES, group=Group(several=True)),
    "experiment": Row(group=Group(several=True, own=False)),
}

DECIDED = {name: row.instead for name, row in TABLE.items() if row.role is Role.DECIDED}
NAMING_PLACES = [name for name, row in TABLE.items() if row.place]
POSITIVE = [name for name, row in TABLE.items() if row.positive]
OLD = {name: row.old for name, row in TABLE.items() if row.old is not ...}
# In the order in which they are shown.
GROUPS = {name: row.group for name, row in TABLE.items() if row.group is not None}
OPTIONAL = [name for name, group in GROUPS.items() if group.optional]
OF_DATA = [name for name, group in GROUPS.items() if group.of_data]


def role_of(name: str) -> Role:
    """The role of a setting, by its own row of the table or by the next one above it."""
    while name and name not in TABLE:
        name = name.rpartition(".")[0]
    return TABLE[name].role if name else Role.MAKES


def names(role: Role) -> list[str]:
    """The settings that have this role, without those below them."""
    found = [name for name, row in TABLE.items() if row.role is role]
    return [name for name in found if name.rpartition(".")[0] not in found]


def below(group: str) -> dict[str, Row]:
    """The rows of a group's settings, by their names within it."""
    start = f"{group}."
    return {n.removeprefix(start): row for n, row in TABLE.items() if n.startswith(start)}
