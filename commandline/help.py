"""The text of `python train.py --help`."""

import textwrap

from .places import CONFIGS
from .settings import GROUPS
from .settings_table import choices, leaves, listed

WIDTH = 100
OTHER = (*GROUPS, "hydra")  # what train.yaml has beside the settings of the run

NONE = "your own, each a class and a file; see docs/extending.md"

USAGE = """\
python train.py [TASK] [GROUP=NAME ...] [SETTING=VALUE ...]

    python train.py model=gumbel_vae data=fashion_mnist      train, test, release and report a model
    python train.py resume=auto                              go on with a run that was interrupted
    python train.py task=evaluate checkpoint=runs/NAME       measure a model; A,B,C: several
    python train.py task=explore checkpoint=runs/NAME        edit its latents in a browser
    python train.py -m seed=0,1,2 model.latents=10,20        a sweep over all combinations
    python train.py model=poisson_vae --cfg job              show all settings of that run
"""


def text() -> str:
    """Usage, the groups with their names, and the settings of the run."""
    groups = [f"{group:<12}{listed(choices(group)) or NONE}" for group in GROUPS]
    every = leaves(CONFIGS / "train.yaml", "")
    rows = [s for s in every if s.name.partition(".")[0] not in OTHER]
    typed = [f"{row.name}={row.default}" if row.default else row.name for row in rows]
    width = max(map(len, typed)) + 2
    lines = [f"{t:<{width}}{row.meaning}" for t, row in zip(typed, rows, strict=True)]
    return "\n".join(
        [
            USAGE,
            "GROUP=NAME",
            *map(_indented, groups),
            "\nSETTING=VALUE, with its default; a setting of a group is typed GROUP.SETTING=VALUE",
            *(_indented(line, width) for line in lines),
            "\nEvery setting of every group is explained in docs/settings.md.",
        ]
    )


def _indented(line: str, hanging: int = 12) -> str:
    wrapped = textwrap.wrap(
        line, WIDTH - 4, subsequent_indent=" " * hanging, break_on_hyphens=False
    )
    return textwrap.indent("\n".join(wrapped), "    ")
