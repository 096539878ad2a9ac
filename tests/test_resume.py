"""Killed is not lost, and nobody can tell: a resumed run is bit for bit the uninterrupted one."""

import functools
import importlib
import os
import re
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from PIL import Image
from same_runs import differences, metrics, run_differences, state
from stand_ins import Model, batches, trainer
from torch.multiprocessing.spawn import ProcessException

import train as train_py
from datamodules.base import ImageDataModule
from tasks import build, fit
from tasks.resume import changes, transparency
from vae_lab.callbacks import Checkpointing
from vae_lab.storage.checkpoints import find_checkpoint, load_checkpoint, save_checkpoint

pytestmark = [pytest.mark.filterwarnings(f"ignore:{message}") for message in train_py.QUIET]

FOLDER = Path(__file__).parents[1] / "configs"
DATA = Path(__file__).parent / "data"
TINY = [
    *("trainer=cpu", "logger=csv", "callbacks={}", "trainer.enable_progress_bar=false"),
    *("trainer.limit_train_batches=4", "trainer.max_epochs=2", "trainer.log_every_n_steps=3"),
    *("network.hidden=[4]", "model.latents=3", "data.binarize=stochastic", "data.batch_size=20"),
    *("save.every_n_steps=1", "save.every_minutes=null"),
]


class Killed(BaseException):
    """The end of the process, for all that the run can know."""


class Killer(pl.Callback):
    """Counts the moments of a run, and ends it at one of them."""

    def __init__(self, moment=None, number=None):
        self.moment = moment
        self.number = number  # of a signal, instead
        self.count = 0

    def _next(self, *_, **__):
        self.count += 1
        if self.count == self.moment:
            if self.number is None:
                raise Killed
            os.kill(os.getpid(), self.number)

    on_train_start = on_train_epoch_start = on_train_batch_start = _next
    on_before_backward = on_before_optimizer_step = on_train_batch_end = _next
    on_validation_start = on_validation_batch_end = on_validation_end = _next
    on_save_checkpoint = on_train_epoch_end = on_train_end = _next


@functools.cache
def composed(lines):
    with initialize_config_dir(str(FOLDER), version_base="1.3"):
        other = any(line.startswith("network=") for line in lines)  # which has no `hidden`
        tiny = [line for line in TINY if not (other and line.startswith("network."))]
        return compose("train", [*tiny, *lines])


def train(folder, *lines, moment=None, resume=False, estimator=None, number=None):
    """Trains as train.py does, until killed. Returns how many moments there were."""
    config = composed(lines).copy()
    config.run_dir, config.estimator = str(folder), estimator
    pl.seed_everything(config.seed, verbose=False)
    datamodule, model = build.datamodule_and_model(config)
    trainer = build.trainer(config, model)
    killer = Killer(moment, number)
    trainer.callbacks.insert(0, killer)
    path = None
    if resume and (folder / "checkpoints").is_dir():
        path = find_checkpoint(folder, "last")
    trainer.loggers[0].rewind(load_checkpoint(path)["global_step"] if path else 0)
    try:
        trainer.fit(model, datamodule, ckpt_path=path, weights_only=True)
    except (Killed, ProcessException):
        assert moment is not None
    return killer.count


@pytest.mark.parametrize(
    "lines",
    [
        ["trainer.val_check_interval=2"],
        ["trainer.max_epochs=3", "trainer.max_steps=1000", "save.every_n_steps=null"],
        ["trainer.max_epochs=-1", "trainer.max_steps=11", "trainer.check_val_every_n_epoch=2"],
    ],
    ids=" ".join,
)
def test_killed_at_any_moment(tmp_path, lines):
    """Within an epoch and at its end, beside and in a validation, before and after a save."""
    moments = train(tmp_path / "whole", *lines)
    for moment in range(3, moments + 1, 11):  # has no common factor with a batch's moments
        folder = tmp_path / f"killed-{moment}"
        train(folder, *lines, moment=moment)
        train(folder, *lines, resume=True)
        assert not run_differences(tmp_path / "whole", folder)


def test_killed_at_any_moment_with_data_of_ones_own(tmp_path):
    """Which is read from its file, in units that are learned; values are missing."""
    x = torch.randn(140, 3, generator=torch.Generator().manual_seed(0))
    x[::9, 1] = float("nan")
    np.save(tmp_path / "x.npy", x.numpy())
    lines = ["data=arrays", f"data.train={tmp_path / 'x.npy'}", "data.binarize=none"]
    lines += ["data.memory_gb=0", "data.num_workers=0", "model=gaussian_vae"]
    moments = train(tmp_path / "whole", *lines)
    for moment in range(3, moments + 1, 11):
        folder = tmp_path / f"killed-{moment}"
        train(folder, *lines, moment=moment)
        train(folder, *lines, resume=True)
        assert not run_differences(tmp_path / "whole", folder)


LIMITS = {
    "trainer.max_steps=6": "trainer.max_steps=-1",  # within the second epoch
    "early_stopping=1": "early_stopping=50",
}


@pytest.mark.filterwarnings("ignore::vae_lab.callbacks.PosteriorCollapseWarning")
@pytest.mark.parametrize("accumulated", [1, 3])
@pytest.mark.parametrize("limit", LIMITS)
def test_a_run_that_came_to_its_end_goes_on(tmp_path, limit, accumulated):
    """With the batches that it had left of its epoch; and no batch of a step is lost."""
    epochs = 3 * accumulated
    lines = [f"trainer.max_epochs={epochs}", "trainer.val_check_interval=1", "model.optimizer.lr=1"]
    lines += ["save.every_n_steps=null", "trainer.log_every_n_steps=1"]
    lines += [f"trainer.accumulate_grad_batches={accumulated}"]
    train(tmp_path / "whole", *lines, LIMITS[limit])
    train(tmp_path / "limited", *lines, limit)
    steps = state(tmp_path / "whole")["global_step"]
    assert 0 < state(tmp_path / "limited")["global_step"] < steps
    train(tmp_path / "limited", *lines, LIMITS[limit], resume=True)
    found = run_differences(tmp_path / "whole", tmp_path / "limited")
    assert not [d for d in found if re.match(r"metrics|(last|best)\.(?!config|callbacks)", d)]


@pytest.mark.filterwarnings("ignore::vae_lab.callbacks.PosteriorCollapseWarning")
def test_a_run_that_stopped_early_has_stopped(tmp_path):
    """Killed at its end, it does not go on."""
    lines = ["trainer.max_epochs=3", "trainer.val_check_interval=1", "model.optimizer.lr=1"]
    moments = train(tmp_path / "whole", *lines, "early_stopping=1")
    train(tmp_path / "killed", *lines, "early_stopping=1", moment=moments)
    train(tmp_path / "killed", *lines, "early_stopping=1", resume=True)
    assert not run_differences(tmp_path / "whole", tmp_path / "killed")
    assert state(tmp_path / "killed")["global_step"] < 12


def killed_twice(tmp_path, *lines, moment=None):
    """At this moment of the run, and at the same of what was then left of it."""
    moments = train(tmp_path / "whole", *lines)
    moment = moment or moments // 3
    train(tmp_path / "killed", *lines, moment=moment)
    train(tmp_path / "killed", *lines, moment=moment, resume=True)
    train(tmp_path / "killed", *lines, resume=True)


def names(group):
    return sorted(p.stem for p in (FOLDER / group).glob("*.yaml") if not p.stem.startswith("_"))


STATE = [
    *(["model=" + name] for name in names("model")),
    *(["model=reinforce_vae", f"model.baseline={b}"] for b in ("moving_average", "learned")),
    ["model.lr_decay=cosine", "model.lr_warmup_steps=3", "objective=elbo_cyclical"],
    ["trainer.accumulate_grad_batches=3", "ema=0.9"],  # the last step of an epoch is of one batch
    ["trainer.precision=64-true", "ema=0.9"],
    ["trainer.precision=bf16-mixed", "model.learn_prior=true"],
    ["early_stopping=1", "trainer.val_check_interval=1", "trainer.gradient_clip_val=1"],
    ["trainer.max_epochs=-1", "trainer.max_steps=7", "save.every_n_steps=3"],
    ["model=vq_vae", "model.categories=16", "model.revive=0.9", "ema=0.9"],  # codes begin anew
    ["model=vq_vae", "model.categories=8", "model.depth=3", "model.revive=0.9", "ema=0.9"],
    ["save.every_n_steps=null"],
    ["data.flip=true", "data.crop=0.7"],
    ["network=grid", "network.channels=[4]", "ema=0.9", "trainer.precision=bf16-mixed"],
    [
        *("network=grid", "network.channels=[4]", "model=fsq_vae", "trainer.precision=bf16-mixed"),
        *("objective=adversarial", "objective.start=3", "objective.channels=[4,6]"),
        *("objective.discriminator_lr=0.01", "trainer.gradient_clip_val=1"),
    ],
    [
        *(
            "network=grid",
            "network.channels=[4]",
            "network.checkpointing=true",
            "channels_last=true",
        ),
        *("model=reinforce_vae", "model.baseline=learned", "model.likelihood_lr=0.01"),
        "likelihood=discretized_logistic",
    ],
]


@pytest.mark.parametrize("lines", STATE, ids=" ".join)
def test_state_is_restored(tmp_path, lines):
    killed_twice(tmp_path, *lines)
    assert not run_differences(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.filterwarnings("ignore::vae_lab.callbacks.PosteriorCollapseWarning")
def test_an_average_is_validated_at_the_temperature_of_its_step(tmp_path):
    """Also between two batches of a step."""
    lines = ["model=gumbel_vae", "model.temperature.steps=4", "ema=0.5"]
    lines += ["trainer.accumulate_grad_batches=2", "trainer.val_check_interval=1"]
    moments = train(tmp_path / "whole", *lines)
    for moment in range(moments // 2, moments // 2 + 12, 3):
        folder = tmp_path / f"killed at {moment}"
        train(folder, *lines, moment=moment)
        train(folder, *lines, resume=True)
        assert not run_differences(tmp_path / "whole", folder)


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_two_processes(tmp_path):
    """With an uneven last batch, a baseline of both, and numbers that only one of them has."""
    lines = ["trainer.strategy=ddp_fork", "trainer.devices=2", "trainer.limit_train_batches=null"]
    lines += ["data.batch_size=399", "model=reinforce_vae", "model.baseline=moving_average"]
    lines += ["data.flip=true", "data.crop=0.7"]
    killed_twice(tmp_path, *lines, moment=17)  # within the third batch
    assert not run_differences(tmp_path / "whole", tmp_path / "killed")


def test_pictures_that_are_read_when_needed(tmp_path):
    """What the processes have read ahead is not taken for trained on."""
    for number in range(90):
        path = tmp_path / "pictures" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.linear_gradient("L").resize((9, 9)).rotate(4 * number).save(path)
    lines = ["data=image_folder", f"data.root={path.parent}", "data.image_size=8"]
    lines += ["data.channels=1", "data.memory_gb=0", "data.num_workers=2"]
    lines += ["data.flip=true", "data.crop=0.7"]
    killed_twice(tmp_path, *lines, moment=13)
    assert not run_differences(tmp_path / "whole", tmp_path / "killed")


def test_settings_that_a_run_is_older_than_are_no_change():
    new = OmegaConf.to_container(composed(("data=image_folder", "data.root=x")))
    newer = ("background", "value_range", "flip", "crop")
    known = {k: v for k, v in new["data"].items() if k not in newer}
    old = new | {"data": known}
    assert changes(old, new) == []
    assert "now laid over white" in transparency(known) and not transparency(new["data"])
    black = new | {"data": new["data"] | {"background": "black"}}
    assert changes(old, black) == ['data.background "white" -> "black"']
    old["init"] = {k: v for k, v in new["init"].items() if k != "strict"}
    del old["latent"]
    assert changes(old, new) == []
    old["network"] = {k: v for k, v in new["network"].items() if k != "negative_slope"}
    assert changes(old, new) == []
    assert "latent.latents absent -> 20" in changes(old, new | {"latent": {"latents": 20}})


def model_for(estimator):
    """The first model that takes the estimator, if it then has a state."""
    for name in ("gaussian_vae", "gumbel_vae", "poisson_vae", "reinforce_vae", "vq_vae"):
        config = composed((f"model={name}", "trainer.max_epochs=1")).copy()
        config.estimator = estimator
        try:
            _, model = build.datamodule_and_model(config)
        except ValueError:
            continue
        return name if model.estimator.state_dict() else None
    return None


def test_estimators_with_a_state(tmp_path):
    tried = set()
    for name in names("estimator"):
        estimator = OmegaConf.load(FOLDER / "estimator" / f"{name}.yaml")
        if model := model_for(estimator):
            lines, folder = (f"model={model}", "trainer.max_epochs=1"), tmp_path / name
            moments = train(folder / "whole", *lines, estimator=estimator)
            moment = moments * 2 // 3
            train(folder / "killed", *lines, moment=moment, estimator=estimator)
            train(folder / "killed", *lines, resume=True, estimator=estimator)
            assert not run_differences(folder / "whole", folder / "killed")
            tried.add(name)
    assert tried >= {"double_cv", "lax", "rebar", "relax"}


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_real_kills(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(FOLDER.parent / "benchmarks")
    monkeypatch.setattr(sys, "argv", ["kills.py", "--kills=3"])
    monkeypatch.chdir(tmp_path)  # and back
    importlib.import_module("kills").main()
    assert "3 of 3 kills survived" in capsys.readouterr().out


def without_position(self, state):
    """What a datamodule that saves no position would do."""


def test_the_position_matters(tmp_path, monkeypatch):
    """A negative control: the comparison sees what goes wrong without one of the recipe's parts."""
    moments = train(tmp_path / "whole")
    train(tmp_path / "killed", moment=moments // 3)
    monkeypatch.setattr(ImageDataModule, "load_state_dict", without_position)
    train(tmp_path / "killed", resume=True)
    found = run_differences(tmp_path / "whole", tmp_path / "killed")
    assert {"last.state_dict.vae.head.weight", "metrics.3.train/elbo"} <= set(found)


FREQUENCIES = [
    ["trainer.val_check_interval=1"],
    ["trainer.limit_val_batches=0"],
    ["trainer.log_every_n_steps=1"],
    ["save.every_n_steps=null"],
    ["callbacks=default", "callbacks.pictures.every_n_epochs=1", "callbacks.pictures.images=1"],
]


def test_what_is_looked_at_changes_nothing(tmp_path):
    """How often there is a validation, a logged number, a checkpoint or a picture."""
    train(tmp_path / "plain")
    plain = state(tmp_path / "plain")
    for i, lines in enumerate(FREQUENCIES):
        train(tmp_path / str(i), *lines)
        looked_at = state(tmp_path / str(i))
        for part in ("state_dict", "optimizer_states", "lr_schedulers"):
            assert not list(differences(plain[part], looked_at[part], f"{lines} {part}"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_stop_it_saves_first(tmp_path, capsys, number):
    """At the end of the step that it is in, and not between batches whose gradients are summed."""
    lines = ["trainer.accumulate_grad_batches=2", "save.every_n_steps=null"]
    moments = train(tmp_path / "whole", *lines)
    handlers = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    for moment in range(5, moments - 1, 13):
        folder = tmp_path / f"stopped-{moment}"
        with pytest.raises(SystemExit) as caught:
            train(folder, *lines, moment=moment, number=number)
        assert caught.value.code == 128 + number
        said = capsys.readouterr().err.splitlines()[-1]
        step = load_checkpoint(folder / "checkpoints" / "last.ckpt")["global_step"]
        assert said.startswith(f"{number.name} at step {step}: the last whole checkpoint is")
        assert said.endswith(f"to go on, type resume={folder}")
        train(folder, *lines, resume=True)
        whole = state(tmp_path / "whole"), metrics(tmp_path / "whole")
        assert not list(differences(whole, (state(folder), metrics(folder))))
    assert handlers == [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]


def test_asked_twice_it_leaves_at_once(tmp_path):
    class Impatient(Killer):
        def on_train_batch_start(self, *_):
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
            raise AssertionError("still there")

    fitted = trainer([Impatient(), Checkpointing(tmp_path)], enable_checkpointing=True)
    with pytest.raises(SystemExit):
        fitted.fit(Model(), batches(), batches(1))
    assert not list(tmp_path.iterdir())


@pytest.fixture
def run(tmp_path, monkeypatch):
    """train.py in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
        train_py.main()

    return run


SMOKE = ["experiment=smoke", "network=linear", "callbacks.pictures=null", "trainer=cpu"]


def refused(run, capsys, *arguments):
    """The one line that a run ends with."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        run(*arguments)
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_auto_is_right_at_any_time(run, tmp_path, capsys):
    """A job script always types the same line."""
    line = [*SMOKE, "run_dir=x", "resume=auto"]
    run(*line)
    assert "no checkpoint in x, a new run begins" in capsys.readouterr().out
    run(*line)
    assert capsys.readouterr().out == "x is finished; to go on, raise trainer.max_epochs\n"
    run(*line, "trainer.max_epochs=3")
    assert "resuming x at step 8 from x/checkpoints/last.ckpt" in capsys.readouterr().out
    said = refused(run, capsys, *line, "seed=1")
    assert "cannot go on exactly with other settings: seed 0 -> 1" in said


def test_the_number_of_threads_is_the_runs(run, capsys):
    """As the last bits of a sum are."""
    run(*SMOKE, "run_dir=x", "threads=2")
    assert torch.get_num_threads() == 1  # the next run's
    more = ["resume=x", "trainer.max_epochs=3"]
    said = refused(run, capsys, *more, "threads=3")
    assert "cannot go on exactly with other settings: threads 2 -> 3" in said
    run(*more)
    assert load_checkpoint(Path("x/checkpoints/last.ckpt"))["threads"] == 2
    run(*more[:1], "trainer.max_epochs=4", "threads=3", "exact=false")
    assert load_checkpoint(Path("x/checkpoints/last.ckpt"))["threads"] == 3


def test_auto_without_a_folder_takes_the_newest_unfinished_run_like_it(
    run, tmp_path, capsys, monkeypatch
):
    def killed(*_):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(fit, "_test", killed)  # trained, but not released
        for seed in (1, 2, 3):
            with pytest.raises(Killed):
                run(*SMOKE, f"seed={seed}", "resume=auto")
    assert capsys.readouterr().out.count("no unfinished run with these settings in runs/") == 3
    run(*SMOKE, "seed=2", "resume=auto")
    assert "resuming runs/" in capsys.readouterr().out
    run(*SMOKE, "seed=2", "resume=auto")
    assert "no unfinished run with these settings in runs/" in capsys.readouterr().out
    assert len(list((tmp_path / "runs").iterdir())) == 4


def test_other_settings_are_refused_or_take_effect(run, tmp_path, capsys):
    run(*SMOKE, "run_dir=x", "trainer.max_epochs=1", "save.every_n_steps=3", "save.keep=3")
    middle = "resume=x/checkpoints/last-1.ckpt"  # step 3 of 4
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    others = ["model.optimizer.lr=0.1", "data.batch_size=40", "model.optimizer.weight_decay=0.5"]
    line = refused(run, capsys, middle, *others)
    assert (
        "data.batch_size 50 -> 40, model.optimizer.lr 0.001 -> 0.1, model.optimizer.weight_" in line
    )
    assert before == {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    run(middle, *others, "exact=false")
    assert "resuming x at step 3 from x/checkpoints/last.ckpt" in capsys.readouterr().out
    last = load_checkpoint(tmp_path / "x" / "checkpoints" / "last.ckpt")
    assert last["global_step"] == 3 + 4  # a whole epoch
    assert last["lr_schedulers"][0]["base_lrs"] == [0.1]
    assert last["optimizer_states"][0]["param_groups"][0]["weight_decay"] == 0.5
    assert last["config"]["data"]["batch_size"] == 40
    run("resume=x", "trainer.max_epochs=2")  # from there on exactly
    assert load_checkpoint(tmp_path / "x" / "checkpoints" / "last.ckpt")["global_step"] == 11


def test_another_number_of_processes_is_refused(run, tmp_path, capsys):
    run(*SMOKE, "run_dir=x")
    path = tmp_path / "x" / "checkpoints" / "last.ckpt"
    save_checkpoint(load_checkpoint(path) | {"processes": 2}, path)
    assert "other settings: processes 2 -> 1; leave" in refused(run, capsys, "resume=x")


def test_a_damaged_checkpoint_is_skipped_or_refused(run, tmp_path, capsys):
    run(*SMOKE, "run_dir=x")
    before = metrics(tmp_path / "x")
    path = tmp_path / "x" / "checkpoints" / "last.ckpt"
    path.write_bytes(path.read_bytes()[:-100])
    line = refused(run, capsys, "resume=x/checkpoints/last.ckpt")
    assert line.endswith("cut off); the newest whole checkpoint there is x/checkpoints/last-1.ckpt")
    run("resume=x")
    assert "resuming x at step 4 from x/checkpoints/last-1.ckpt" in capsys.readouterr().out
    assert metrics(tmp_path / "x") == before


def test_where_a_resumed_run_goes_is_never_guessed(run, tmp_path, capsys):
    run(*SMOKE, "run_dir=x")
    line = refused(run, capsys, "resume=x", "run_dir=y")
    assert line.endswith("resume=x goes on in x: leave out run_dir=y")
    (tmp_path / "x" / "checkpoints" / "last.ckpt").rename(tmp_path / "mine.ckpt")
    assert "type run_dir=..." in refused(run, capsys, "resume=mine.ckpt")
    run("resume=mine.ckpt", "run_dir=y", "trainer.max_epochs=3")
    assert (tmp_path / "y" / "release").is_dir()


@pytest.mark.parametrize("version", sorted(DATA.glob("*/checkpoint*")), ids=lambda p: p.name)
def test_checkpoints_of_released_versions_go_on(run, tmp_path, capsys, version):
    """Of `experiment=smoke model=gaussian_vae network=linear model.latents=2 ema=0.9`."""
    shutil.copytree(version, tmp_path / "x")
    run("resume=x", "trainer.max_epochs=2")
    assert ("kept no sha256" in capsys.readouterr().out) == version.name.endswith("without-digest")
    assert state(tmp_path / "x")["global_step"] == 8
    assert (tmp_path / "x" / "release").is_dir()


def test_training_that_has_gone_further_is_not_cut(run, tmp_path, capsys):
    run(*SMOKE, "run_dir=x")
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    line = refused(run, capsys, "resume=x", "trainer.max_epochs=1")
    assert "has trained for 2 epochs, more than trainer.max_epochs=1: type a larger" in line
    steps = state(tmp_path / "x")["global_step"]
    line = refused(run, capsys, "resume=x", "trainer.max_steps=1")
    assert f"has trained for {steps} steps, more than trainer.max_steps=1: type a larger" in line
    assert before == {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}


def test_the_checkpoint_that_a_run_goes_on_from_is_its_newest(run, tmp_path, capsys, monkeypatch):
    """Also if it is killed before it has saved another."""

    def killed(*_, **__):
        raise Killed

    run(*SMOKE, "run_dir=x", "save.every_n_steps=1", "save.keep=9")
    whole = state(tmp_path / "x"), metrics(tmp_path / "x")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(pl.Trainer, "fit", killed)
        run("resume=x/checkpoints/last-2.ckpt")
    assert "resuming x at step 6 from x/checkpoints/last.ckpt" in capsys.readouterr().out
    run("resume=x")
    assert "resuming x at step 6 from x/checkpoints/last.ckpt" in capsys.readouterr().out
    assert not list(differences(whole, (state(tmp_path / "x"), metrics(tmp_path / "x"))))

    (tmp_path / "elsewhere").mkdir()
    for name in ("mine", "last"):
        shutil.copy(tmp_path / "x/checkpoints/best.ckpt", tmp_path / f"elsewhere/{name}.ckpt")
    run("resume=elsewhere/mine.ckpt", "run_dir=y", "exact=false", "model.optimizer.lr=0.1")
    assert sorted(p.name for p in (tmp_path / "elsewhere").iterdir()) == ["last.ckpt", "mine.ckpt"]


def test_a_task_has_the_settings_of_today(run, tmp_path):
    """Version 0.1 knew no compare.evaluations."""
    shutil.copytree(DATA / "0.1" / "checkpoint", tmp_path / "x")
    few = ["estimators=[reparameterization]", "repeats=2", "reference_repeats=2", "images=5"]
    run("task=compare", "checkpoint=x", "run_dir=c", *(f"compare.{line}" for line in few))
    assert (tmp_path / "c" / "compare.csv").is_file()
