"""What starts many runs, or one on many machines."""

import os
import re
import shlex
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import yaml
from same_runs import metrics
from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

from commandline.check import check
from tasks.table import TASKS

ROOT = Path(__file__).parents[1]
SMOKE = ["experiment=smoke", "network=linear", "callbacks.pictures=null"]
SRUN = """#!/usr/bin/env bash
for i in 0 1; do SLURM_PROCID=$i SLURM_LOCALID=$i "$@" & done
wait -n && wait -n
"""
SLURM = {
    **{"SLURM_JOB_ID": "5", "SLURM_JOB_NAME": "vae_lab", "SLURM_NODELIST": "localhost"},
    **{"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_NNODES": "1", "SLURM_NODEID": "0"},
    **{"SLURM_SUBMIT_DIR": str(ROOT), "PYTHON": sys.executable, "MASTER_PORT": "29431"},
}


def sbatch(folder, *arguments):
    """The job script, with a stand-in for srun that starts its tasks here."""
    srun = folder / "srun"
    srun.write_text(SRUN)
    srun.chmod(0o755)
    return subprocess.run(
        ["bash", str(ROOT / "scale" / "slurm.sbatch"), *arguments],
        env=os.environ | SLURM | {"PATH": f"{folder}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.slow
def test_the_job_script(tmp_path):
    ended = sbatch(tmp_path, *SMOKE, "trainer.accelerator=cpu", f"run_dir={tmp_path}/x")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("GumbelVAE on Digits: 8 steps") == 1
    assert (tmp_path / "x" / "release").is_dir()
    assert sbatch(tmp_path, *SMOKE).returncode == 2


def test_the_wandb_sweep():
    """What an agent would type."""
    sweep = yaml.safe_load((ROOT / "scale" / "wandb_sweep.yaml").read_text())
    for end in ("min", "max"):
        ends = {"min": 0, "max": -1}
        chosen = {
            name: {"value": values[ends[end]] if (values := rule.get("values")) else rule[end]}
            for name, rule in sweep["parameters"].items()
        }
        known = create_sweep_command_args({"args": chosen})
        [config] = check([*sweep["command"][3:-1], *known["args_no_hyphens"]])
        assert config.model.latents == chosen["model.latents"]["value"]


@pytest.mark.filterwarnings("ignore")  # Optuna 2's own
def test_an_optuna_sweep(run, tmp_path):
    rate = "model.optimizer.lr=interval(0.001,0.1)"
    options = ["hydra/sweeper=optuna", "hydra.sweeper.n_trials=3", "hydra.sweeper.n_jobs=1"]
    run("-m", *options, "hydra.sweeper.direction=maximize", rate, *SMOKE, "run_dir=x")
    best = yaml.safe_load((tmp_path / "runs" / "optimization_results.yaml").read_text())
    found = [float(metrics(tmp_path / "x" / n)[-1]["test/elbo"]) for n in "012"]
    assert best["best_value"] == pytest.approx(max(found))


ENDS = "train.py: the sweep ends: {} of 4 trials failed"
OPTUNA = ["hydra/sweeper=optuna", "hydra.sweeper.n_trials=4", "hydra.sweeper.n_jobs=1"]


@pytest.mark.filterwarnings("ignore")  # Optuna 2's own
@pytest.mark.parametrize(
    ("rate", "fails", "said"),
    [
        (0.0, [1], ["train.py: it fails"]),
        (0.5, [0, 2], ["train.py: it fails"] * 2),
        (0.5, [0, 1, 2], ["train.py: it fails"] * 3 + [ENDS.format(3)]),
        (1.0, range(4), ["train.py: it fails"] * 4 + [ENDS.format(4)]),
    ],
)
def test_failed_trials_are_counted_over_the_study(run, monkeypatch, capfd, rate, fails, said):
    trials = iter(range(4))
    pytest.importorskip("optuna").logging.disable_default_handler()  # it keeps an earlier stderr

    def fit(config):
        if next(trials) in fails:
            raise ValueError("it fails")
        return 1.0

    monkeypatch.setitem(TASKS, "fit", fit)
    lines = [
        *OPTUNA,
        f"hydra.sweeper.max_failure_rate={rate}",
        "model.optimizer.lr=interval(0.001,0.1)",
    ]
    ends = pytest.raises(SystemExit) if len(fails) > 4 * rate or len(fails) == 4 else nullcontext()
    with ends as caught:
        run("-m", *lines)
    assert caught is None or caught.value.code == 2
    lines = capfd.readouterr().err.splitlines()
    assert [line for line in lines if "A new study created" not in line] == said


@pytest.mark.slow
def test_jobs_of_submitit(tmp_path):
    """Here as processes; on a cluster `hydra/launcher=submitit_slurm`."""
    line = ["-m", "hydra/launcher=submitit_local", "hydra.launcher.timeout_min=5", "seed=3,4"]
    command = [sys.executable, str(ROOT / "train.py"), *line, *SMOKE, "run_dir=x"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert ended.returncode == 0, ended.stderr
    assert all((tmp_path / "x" / n / "release").is_dir() for n in "01")


@pytest.mark.slow
@pytest.mark.parametrize(("rate", "count"), [(0.0, 1), (0.5, 2), (1.0, 3)])
def test_failed_trials_in_other_processes(tmp_path, rate, count):
    """Three of three fail, in batches of two: the sweep ends in one line."""
    command = [
        *(sys.executable, str(ROOT / "train.py"), "-m", "hydra/sweeper=optuna", *SMOKE),
        *("hydra/launcher=submitit_local", "hydra.sweeper.n_trials=3", "hydra.sweeper.n_jobs=2"),
        *(f"hydra.sweeper.max_failure_rate={rate}", "data.batch_size=choice(100000,200000)"),
    ]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=200)
    lines = [line for line in ended.stderr.splitlines() if "A new study created" not in line]
    assert (ended.returncode, len(lines)) == (2, 1), ended.stderr
    assert lines[0].startswith(
        f"train.py: the sweep ends: {count} of 3 trials failed, and said why"
    )


def test_the_lines_of_the_documentation_are_understood():
    text = (ROOT / "docs" / "scale.md").read_text()
    lines = re.findall(r"train\.py ([^`\n]*?)(?:  +#|`|$)", text.replace("\\\n", " "), re.M)
    assert len(lines) > 5
    for line in lines:
        check(shlex.split(line))
