"""How long `vae_lab.fit` takes on a table of 5,000 rows and 30 columns, in a fresh process.

python benchmarks/fit_seconds.py [--rounds 3]

The import is included. User seconds are those of all cores together: what another program takes of
the machine lengthens the wall's time only.
"""

import argparse
import resource
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

FIT = """
import numpy as np
import vae_lab

rng = np.random.default_rng(0)
z = rng.normal(size=(5000, 5))
x = np.tanh(z @ rng.normal(size=(5, 30))) + 0.1 * rng.normal(size=(5000, 30))
vae = vae_lab.fit(x, progress=False)
best = max(row["val/elbo"] for row in vae.history)
print(f"{len(vae.history)} epochs, val/elbo {best:.2f}", end=", ")
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    for _ in range(parser.parse_args().rounds):
        began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-c", FIT], cwd=ROOT, check=True)
        used = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before.ru_utime
        print(f"{time.perf_counter() - began:.1f} s, {used:.1f} user seconds")


if __name__ == "__main__":
    main()
