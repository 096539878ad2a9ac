"""log p(x) of rows that no training has seen, beside that of a Gaussian with all covariances.

pip install statsmodels vega_datasets
python benchmarks/table_density.py [--tables seattle_weather] [--out FILE.csv]

Values that a file has rounded get uniform noise of the width of the rounding, so that all columns
have densities, and nobody gains by a narrow peak at each round number. Then log p(x) of the noisy
row is, in the mean, a lower bound on that of the rounded one. In nats, in the units of the file.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.distributions import MultivariateNormal

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import vae_lab  # noqa: E402
from benchmarks.turns import write  # noqa: E402

TEST = 0.2  # of the rows
SAMPLES = 1000  # of z, of each row


def seattle_weather() -> np.ndarray:
    from vega_datasets import data

    frame = data.seattle_weather()[["precipitation", "temp_max", "temp_min", "wind"]]
    return frame.to_numpy(float)


def fair() -> np.ndarray:
    """A survey of marriages, without how often there were affairs, which is mostly zero."""
    from statsmodels.datasets import fair

    return fair.load_pandas().data.drop(columns="affairs").to_numpy(float)


TABLES: dict[str, Callable[[], np.ndarray]] = {
    "seattle_weather": seattle_weather,
    "fair": fair,
}


def dequantized(x: np.ndarray, seed: int) -> np.ndarray:
    """Each column with uniform noise as wide as the least difference of two of its values."""
    steps = [np.diff(np.unique(column.round(9))).min() for column in x.T]
    return x + np.array(steps) * (np.random.default_rng(seed).random(x.shape) - 0.5)


def gaussian(train: torch.Tensor, test: torch.Tensor) -> torch.Tensor:
    """The one of the highest likelihood."""
    train, test = train.double(), test.double()
    return MultivariateNormal(train.mean(0), train.T.cov(correction=0)).log_prob(test)


def vae(train: torch.Tensor, test: torch.Tensor) -> torch.Tensor:
    """All by default; the importance-weighted bound."""
    return vae_lab.fit(train, progress=False).cpu().log_likelihood(test, SAMPLES)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=[*TABLES])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "table_density.csv")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for table in options.tables:
        for seed in options.seeds:
            torch.manual_seed(seed)
            x = torch.from_numpy(dequantized(TABLES[table](), seed)).float()
            x = x[torch.randperm(len(x))]
            test, train = x[: int(TEST * len(x))], x[int(TEST * len(x)) :]
            began = time.perf_counter()
            log_px = vae(train, test)
            seconds = time.perf_counter() - began
            plain = gaussian(train, test)
            row = {"table": table, "rows": len(x), "columns": x.shape[1], "seed": seed}
            row |= {"gaussian": round(plain.mean().item(), 3)}
            row |= {"vae_lab": round(log_px.mean().item(), 3)}
            gain = log_px - plain
            row |= {"gain": round(gain.mean().item(), 3)}
            row |= {"standard_error": round((gain.std() / len(gain) ** 0.5).item(), 3)}
            rows.append(row | {"seconds": round(seconds)})
            print(rows[-1], flush=True)
    write(rows, options.out)


if __name__ == "__main__":
    main()
