"""`python -m commandline.estimator_table`: the README's table, from what the estimators declare."""

from hydra.utils import get_class
from omegaconf import OmegaConf

from .places import CONFIGS

HEADER = ("`estimator=`", "for", "unbiased", "needs df/dz", "evaluations of f", "source")
FAMILIES = {"Distribution": "any", "OneHotCategorical": "categorical", "Quantized": "nearest codes"}


def table() -> str:
    """One row an estimator, in Markdown."""
    files = sorted((CONFIGS / "estimator").glob("*.yaml"))
    rows = [_row(file.stem, OmegaConf.load(file)._target_) for file in files]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (HEADER, ["---"] * 6, *rows))


def _row(name: str, target: str) -> tuple[str, ...]:
    cls = get_class(target)
    families = [FAMILIES.get(family.__name__, family.__name__) for family in cls.families]
    unbiased = {True: "yes", False: "no"}.get(cls.unbiased, f"for {cls.unbiased}")
    differentiable = "yes" if cls.needs_differentiable else "no"
    where = ", ".join(families)
    return (f"`{name}`", where, unbiased, differentiable, cls.evaluations, cls.source)


if __name__ == "__main__":
    print(table())
