"""How well missing entries of a table are filled, beside what else fills them.

python benchmarks/imputation.py [--seeds 0 1 2 3 4] [--tables wine] [--out FILE.csv]

Of tables that come with scikit-learn a fifth of the entries is removed at random. Each method gets
what is left, rows and all, and nothing else. The error is the root mean square over the removed
entries, in standard deviations of their columns: that of the mean is about 1.
"""

import argparse
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from sklearn.datasets import load_breast_cancer, load_wine  # noqa: E402
from sklearn.exceptions import ConvergenceWarning  # noqa: E402
from sklearn.experimental import enable_iterative_imputer  # noqa: E402, F401
from sklearn.impute import IterativeImputer  # noqa: E402

import vae_lab  # noqa: E402
from benchmarks.turns import write  # noqa: E402

TABLES = {"breast_cancer": load_breast_cancer, "wine": load_wine}
REMOVED = 0.2  # of the entries
HELD_OUT = 0.1  # of those that are left, to choose the number of components
ROUNDS, TOLERANCE = 300, 1e-4  # of the fill by components
SAMPLES = 1000  # of z, of each row


def mean(x: np.ndarray) -> np.ndarray:
    return np.where(np.isnan(x), np.nanmean(x, 0), x)


def by_components(x: np.ndarray, count: int) -> np.ndarray:
    """Fills by principal components of the standardised table, again and again until it stays."""
    loc, scale = np.nanmean(x, 0), np.nanstd(x, 0)
    known = (x - loc) / scale
    filled = np.nan_to_num(known)
    for _ in range(ROUNDS):
        centre = filled.mean(0)
        u, s, v = np.linalg.svd(filled - centre, full_matrices=False)
        low_rank = (u[:, :count] * s[:count]) @ v[:count] + centre
        new = np.where(np.isnan(known), low_rank, known)
        settled = np.abs(new - filled).max() < TOLERANCE
        filled = new
        if settled:
            break
    return filled * scale + loc


def pca(x: np.ndarray) -> np.ndarray:
    """As many components as fill held-out entries best."""
    hidden = ~np.isnan(x) & (np.random.default_rng(0).random(x.shape) < HELD_OUT)
    less = np.where(hidden, np.nan, x)
    errors = [error(x, by_components(less, k), hidden) for k in range(1, x.shape[1])]
    return by_components(x, 1 + int(np.argmin(errors)))


def iterative(x: np.ndarray) -> np.ndarray:
    """scikit-learn's: each column from all others by Bayesian ridge regression, in turn."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return IterativeImputer(random_state=0).fit_transform(x)


def by_vae(x: np.ndarray) -> np.ndarray:
    """All by default, but for the number of samples."""
    model = vae_lab.fit(x, progress=False)
    return model.impute(x.astype(np.float32), num_samples=SAMPLES).cpu().double().numpy()


METHODS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "mean": mean,
    "pca": pca,
    "iterative_imputer": iterative,
    "vae_lab": by_vae,
}


def error(x: np.ndarray, filled: np.ndarray, removed: np.ndarray) -> float:
    """Root mean square over the removed entries, in deviations of the columns."""
    return float(np.sqrt(np.square((filled - x) / np.nanstd(x, 0))[removed].mean()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=[*TABLES])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=[*METHODS])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "imputation.csv")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for table in options.tables:
        x = TABLES[table]().data
        for method in options.methods:
            errors = []
            for seed in options.seeds:
                removed = np.random.default_rng(seed).random(x.shape) < REMOVED
                filled = METHODS[method](np.where(removed, np.nan, x))
                errors.append(error(x, filled, removed))
            row: dict[str, Any] = {"table": table, "rows": len(x), "columns": x.shape[1]}
            row |= {"method": method, "rmse": round(float(np.mean(errors)), 4)}
            row |= {f"seed_{s}": round(e, 4) for s, e in zip(options.seeds, errors, strict=True)}
            rows.append(row)
            print(rows[-1], flush=True)
    write(rows, options.out)


if __name__ == "__main__":
    main()
