"""Prints the lines and tables of the tasks, from the first process only."""

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.utilities.rank_zero import rank_zero_only
from rich.console import Console
from rich.table import Column, Table

say = rank_zero_only(print)


def tested(trainer: pl.Trainer, *arguments: Any, **options: Any) -> dict[str, float]:
    return dict(*trainer.test(*arguments, verbose=False, **options))


@rank_zero_only
def table(title: str, metrics: dict[str, float]) -> None:
    say(title)
    made = Table("metric", Column("value", justify="right"))
    for name, value in metrics.items():
        made.add_row(name, f"{value:.2f}")
    Console().print(made)
