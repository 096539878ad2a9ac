import contextlib
import os
import pty
import re
import subprocess
import sys
import threading
import time
import types
import warnings

import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from stand_ins import Model, batches, no_space, trainer

import vae_lab
from vae_lab.callbacks import (
    DeadCodesWarning,
    EarlyStopping,
    FiniteUpdates,
    LatentUse,
    Pictures,
    PosteriorCollapseWarning,
    Progress,
    StepSeed,
)
from vae_lab.estimators.baselines import MovingAverage
from vae_lab.latents import Categorical, Gaussian
from vae_lab.lightning.averaging import ExponentialAveraging
from vae_lab.storage import files

NAMES = ["interpolation.png", "reconstructions.png", "samples.png"]


def trained(*callbacks, **kwargs):
    """Weights after a short training that begins with an own global seed."""
    torch.manual_seed(0)
    model = Model()
    trainer(callbacks, **kwargs).fit(model, batches(), batches(2))
    return model.vae.image.detach()


def test_importing_the_library_imports_neither_lightning_nor_the_compiler():
    slow = {"pytorch_lightning", "torch._dynamo", "matplotlib", "hydra"}
    code = f"import sys, vae_lab, vae_lab.estimators; sys.exit(bool({slow} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# StepSeed


@pytest.mark.parametrize("every", [1, 2, 3])
@pytest.mark.parametrize("sanity", [0, 1])
def test_step_seed_hides_validation_from_training(every, sanity):
    weights = trained(StepSeed(1), check_val_every_n_epoch=every, num_sanity_val_steps=sanity)
    assert torch.equal(weights, trained(StepSeed(1), limit_val_batches=0))


def test_without_step_seed_validation_changes_training():
    assert not torch.equal(trained(), trained(check_val_every_n_epoch=3))


def test_step_seed_depends_on_the_seed():
    assert not torch.equal(trained(StepSeed(1)), trained(StepSeed(2)))


def test_training_noise_differs_between_batches_and_epochs():
    drawn = []

    class Draw(Model):
        def training_step(self, batch, batch_idx):
            drawn.append(torch.rand(()).item())
            return super().training_step(batch, batch_idx)

    trainer([StepSeed(1)]).fit(Draw(), batches(), batches(1))
    assert len(set(drawn)) == len(drawn) == 12


def test_validation_noise_differs_between_batches_not_epochs():
    model = Model()
    trainer([StepSeed(1)]).fit(model, batches(), batches(2))
    assert model.noise[:2] == model.noise[2:4] == model.noise[4:]
    assert model.noise[0] != model.noise[1]


def test_validation_and_test_have_noise_of_their_own():
    model, run = Model(), trainer([StepSeed(1)])
    run.validate(model, batches(1), verbose=False)
    run.test(model, batches(1), verbose=False)
    assert len(set(model.noise)) == 2


# Pictures


class Gallery(pl.callbacks.Callback, pl.loggers.logger.DummyLogger):
    """Stands for W&B's logger: remembers what it was sent."""

    def __init__(self):
        super().__init__()
        self.sent = []

    def log_image(self, key, images, step=None):
        for path in images:
            with Image.open(path) as image:
                image.verify()
        self.sent.append((key, step))


@pytest.mark.parametrize("every", [None, 1, 2])
def test_pictures_do_not_change_training(tmp_path, every):
    seeded = trained(StepSeed(1))
    assert torch.equal(trained(StepSeed(1), Pictures(tmp_path, every)), seeded)
    # Not because of StepSeed alone: the generators are put back.
    assert torch.equal(trained(Pictures(tmp_path, every)), trained())


def test_pictures_are_written(tmp_path):
    trained(Pictures(tmp_path / "run"))
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == NAMES


def test_pictures_without_validation_are_samples(tmp_path):
    trained(Pictures(tmp_path), limit_val_batches=0)
    assert [path.name for path in tmp_path.iterdir()] == ["samples.png"]


@pytest.mark.parametrize("every, steps", [(1, [4, 8, 12]), (2, [8, 12]), (None, [12])])
def test_pictures_frequency_and_loggers(tmp_path, every, steps):
    gallery = Gallery()
    trained(Pictures(tmp_path, every), logger=gallery)
    assert [step for key, step in gallery.sent if key == "images/samples"] == steps
    assert {key for key, _ in gallery.sent} == {f"images/{name[:-4]}" for name in NAMES}


def test_a_full_disk_costs_the_pictures_and_not_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "write_durably", no_space)
    with pytest.warns(UserWarning, match="no pictures of step 12: cannot save .*: No space left"):
        trained(Pictures(tmp_path / "run", None))
    assert not (tmp_path / "run" / "samples.png").exists()


def test_pictures_go_to_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = pl.loggers.TensorBoardLogger(tmp_path / "tensorboard")
    trained(Pictures(tmp_path), logger=logger)
    events = EventAccumulator(logger.log_dir).Reload()
    assert sorted(events.Tags()["images"]) == [f"images/{name[:-4]}" for name in NAMES]


def test_pictures_are_comparable_over_epochs(tmp_path):
    class Still(Model):
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.0)

    def drawn(epochs):
        folder = tmp_path / str(epochs)
        trainer([Pictures(folder)], max_epochs=epochs).fit(Still(), batches(), batches(2))
        return [(folder / name).read_bytes() for name in NAMES]

    assert drawn(1) == drawn(3)


def test_pictures_restore_every_submodules_mode(tmp_path):
    class Frozen(Model):
        def on_train_epoch_start(self):
            self.vae.dropout.eval()

    model = Frozen()
    trainer([Pictures(tmp_path, None)], limit_val_batches=0).fit(model, batches(), batches(1))
    assert model.training and model.vae.training and not model.vae.dropout.training


def test_pictures_are_of_the_weights_that_are_measured(tmp_path, monkeypatch):
    """And so of the averaged ones, that a release has."""
    drawn, measured = [], []

    class Still:
        most = None

        def draw(self, vae, *_):
            drawn.append(vae.image.detach().clone())
            return []

    class Witness(pl.Callback):
        def on_validation_batch_start(self, trainer, module, *_):
            measured.append(module.vae.image.detach().clone())

    monkeypatch.setattr(vae_lab.callbacks.pictures, "figures_of", lambda shape: Still())
    trained(ExponentialAveraging(0.5), Pictures(tmp_path), Witness())
    assert len(drawn) == 3 and torch.equal(torch.stack(drawn), torch.stack(measured[::2]))


@pytest.mark.parametrize("setting", [{"every_n_epochs": 0}, {"images": 0}])
def test_pictures_refuse(tmp_path, setting):
    with pytest.raises(ValueError, match=f"{next(iter(setting))} must be positive.*, got 0"):
        Pictures(tmp_path, **setting)


# Progress

LINE = r"epoch {}  step {}  val/elbo -\d\.\d\d  [\d,]+ images/s  ETA \d:\d\d"


def test_progress_is_one_line_per_validation(capsys):
    trained(Progress(), progress=True, num_sanity_val_steps=1)
    lines = capsys.readouterr().out.splitlines()
    for line, epoch, step in zip(lines, ("1/3", "2/3", "3/3"), (4, 8, 12), strict=True):
        assert re.fullmatch(LINE.format(epoch, step), line)
    assert lines[-1].endswith("ETA 0:00")


def test_progress_counts_steps_where_epochs_have_no_end(capsys):
    trained(
        Progress(),
        progress=True,
        max_epochs=-1,
        max_steps=6,
        check_val_every_n_epoch=None,
        val_check_interval=3,
    )
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[:2] for line in lines] == [
        ["epoch 1", "step 3/6"],
        ["epoch 2", "step 6/6"],
    ]


def test_progress_does_not_guess_the_end(capsys):
    class StopAfterOne(pl.Callback):
        def on_validation_end(self, trainer, pl_module):
            trainer.should_stop = True

    trained(Progress(), StopAfterOne(), progress=True, max_epochs=-1)
    assert capsys.readouterr().out.endswith("ETA -:--\n")


@contextlib.contextmanager
def terminal(monkeypatch):
    """A terminal as sys.stdout, and the list that fills with what is written to it."""
    ours, theirs = pty.openpty()
    written = []
    reader = threading.Thread(target=drain, args=(ours, written))
    reader.start()  # a terminal that nobody reads from soon blocks
    with monkeypatch.context() as patch, os.fdopen(theirs, "w") as stdout:
        patch.setenv("TERM", "xterm")
        patch.setenv("COLUMNS", "160")
        patch.setattr(sys, "stdout", stdout)
        patch.setattr("rich._console", None)  # another test's, which was no terminal
        yield written
        assert sys.stdout is stdout  # rich puts something else there for a while
    reader.join()
    os.close(ours)


def drain(descriptor, written):
    with contextlib.suppress(OSError):  # how Linux says that the other end is closed
        while data := os.read(descriptor, 4096):
            written.append(data.decode(errors="replace"))


HIDE, SHOW = "\x1b[?25l", "\x1b[?25h"


def test_progress_on_a_terminal_is_a_bar_and_lines(monkeypatch):
    with terminal(monkeypatch) as written:
        trained(Progress(), progress=True)
    text = "".join(written)
    assert re.search(r"epoch 1/3 .*1/4.* train/elbo -\d\.\d\d  [\d,]+ images/s  ETA", text)
    assert len(re.findall(LINE.format(r"\d/3", r"\d+"), text)) == 3
    assert text.count(HIDE) == text.count(SHOW) == 1
    assert text.index("epoch 1/3") < text.index("0/4") and "0/100" not in text


def test_progress_gives_the_terminal_back_after_an_error(monkeypatch):
    class Fail(Model):
        def training_step(self, batch, batch_idx):
            if batch_idx == 2:
                raise ZeroDivisionError
            return super().training_step(batch, batch_idx)

    with terminal(monkeypatch) as written, pytest.raises(ZeroDivisionError):
        trainer([Progress()], progress=True).fit(Fail(), batches(), batches(1))
    text = "".join(written)
    assert text.rindex(SHOW) > text.rindex(HIDE)


def test_progress_redraws_at_most_ten_times_a_second(monkeypatch):
    began = time.monotonic()
    with terminal(monkeypatch) as written:
        trainer([Progress()], progress=True, max_epochs=100).fit(Model(), batches(2), batches(1))
    # The first frame, and one more with each of the 100 lines, are not counted.
    redrawn = "".join(written).count("/2") - 101
    assert redrawn <= 10 * (time.monotonic() - began) + 2


# EarlyStopping


class Worse(Model):
    """Falls with every validation."""

    def validation_step(self, batch, batch_idx):
        self.log("val/elbo", -float(self.global_step), batch_size=16)


@pytest.mark.parametrize("wait_steps, epochs", [(0, 3), (4, 3), (5, 4), (20, 7)])
def test_early_stopping_waits(wait_steps, epochs):
    stop = EarlyStopping(patience=2, wait_steps=wait_steps)
    run = trainer([stop], max_epochs=10)
    run.fit(Worse(), batches(), batches(1))
    assert run.current_epoch == epochs
    assert stop.best_score == -max(wait_steps + -wait_steps % 4, 4)  # the first that counted


def test_early_stopping_refuses_a_negative_wait():
    with pytest.raises(ValueError, match="wait_steps must be non-negative, got -1"):
        EarlyStopping(wait_steps=-1)


# FiniteUpdates


class Spoilt(Model):
    """The loss of the steps in `bad` is spoilt; the host looks at the end of an epoch only."""

    def __init__(self, bad=(6,), value="nan", fused=True):
        super().__init__()
        self.bad, self.value, self.fused = bad, float(value), fused
        self.estimator = MovingAverage()
        self.after = []  # weights and optimizer state after every step

    def training_step(self, batch, batch_idx):
        latest = self.latest
        loss = super().training_step(batch, batch_idx)
        self.latest = latest
        if self.trainer.global_step + 1 in self.bad:
            loss = loss * self.value
            self.batch_terms[3] = self.value
        self.estimator(loss.detach().reshape(1), None)
        return loss

    def on_train_batch_end(self, outputs, batch, batch_idx):
        state = self.optimizers().state_dict()["state"].get(0, {})
        state = {k: v.clone() for k, v in state.items()} | {"weight": self.vae.image.clone()}
        self.after.append(state | {"average": self.estimator.average.clone()})

    def on_train_epoch_end(self):
        self.latest = {"train/elbo": -1.0}

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.01, fused=self.fused)


def finite(folder, **settings):
    return FiniteUpdates(folder / "debug.ckpt", **settings)


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("fused", [True, False])
def test_a_bad_step_stops_the_run_before_it(tmp_path, value, fused):
    model = Spoilt(value=value, fused=fused)
    message = (
        rf"^gradient norm is \S+, train/kl is {value} at step 6, epoch 1, batch 1 \(lr 0.01, "
        r"train/objective .*\); the weights are in .*/debug.ckpt; try a lower "
    )
    with pytest.raises(FloatingPointError, match=message):
        trainer([finite(tmp_path)]).fit(model, batches(), batches(1))
    saved = torch.load(tmp_path / "debug.ckpt", weights_only=True)
    assert torch.equal(saved["state_dict"]["vae.image"], model.after[4]["weight"])
    assert not torch.equal(model.after[3]["weight"], model.after[4]["weight"])
    assert all(equal(state, model.after[4]) for state in model.after[4:])


def test_a_bad_validation_is_none_that_could_be_left_out(tmp_path):
    """Whatever on_nonfinite says: so nobody is told to type it."""
    callback, run = finite(tmp_path, action="skip"), trainer([])
    run.fit(Model(), batches(), batches(1))
    with pytest.raises(FloatingPointError, match=r"lr, or trainer.gradient_clip_val=1$"):
        callback._check({"val/elbo": float("nan")}, run, run.lightning_module)


@pytest.mark.parametrize("fused", [True, False])
def test_a_bad_step_is_left_out(tmp_path, fused):
    model, callback = Spoilt(bad=(1, 6, 7), fused=fused), finite(tmp_path, action="skip")
    with pytest.warns(UserWarning, match="^gradient norm is nan, train/kl is nan at step 1: left"):
        trainer([callback]).fit(model, batches(), batches(1))
    assert callback.skipped == 3
    assert not (tmp_path / "debug.ckpt").exists()
    for step in (6, 7):
        assert equal(model.after[step - 1], model.after[step - 2])
    moved = [not equal(a, b) for a, b in zip(model.after, model.after[1:], strict=False)]
    assert moved.count(False) == 2 and model.after[-1]["step"] == 9
    assert model.after[-1]["average"].isfinite()


@pytest.mark.parametrize("bad", [True, False])
def test_under_a_grad_scaler_the_terms_are_judged(tmp_path, bad):
    """It leaves out a gradient that overflows, which is no fault."""

    class Overflowing(Spoilt):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            self.batch_terms[3] = float("nan") if bad and batch_idx == 2 else 1.0
            return loss

    run = trainer([finite(tmp_path)], max_epochs=1, limit_val_batches=0)
    run.precision_plugin.scaler = object()
    error = pytest.raises(FloatingPointError, match="train/kl is nan at step 3, epoch 0, batch 2")
    with error if bad else contextlib.nullcontext():
        run.fit(Overflowing(bad=(4,)), batches(), batches(1))


def test_too_many_bad_steps_stop_the_run(tmp_path):
    model, callback = Spoilt(bad=(2, 6, 7)), finite(tmp_path, action="skip", limit=2)
    message = "train/kl is nan at step 6, epoch 1, batch 1 .*, skipped updates 3"
    with pytest.warns(UserWarning), pytest.raises(FloatingPointError, match=message):
        trainer([callback]).fit(model, batches(), batches(1))


def test_skipped_updates_are_logged_and_resumed(tmp_path):
    logged = []

    class Logger(pl.loggers.logger.DummyLogger):
        def log_metrics(self, metrics, step=None):
            logged.append((step, metrics.get("train/skipped_updates")))

    run = trainer([finite(tmp_path, action="skip")], logger=Logger())
    with pytest.warns(UserWarning):
        run.fit(Spoilt(bad=(2, 6)), batches(), batches(1))
    assert [row for row in logged if row[1]] == [(5, 1), (9, 2)]
    run.save_checkpoint(tmp_path / "last.ckpt")
    callback = finite(tmp_path, action="skip")
    again = trainer([callback], max_epochs=4)
    again.fit(
        Spoilt(bad=(13,)),
        batches(),
        batches(1),
        ckpt_path=tmp_path / "last.ckpt",
        weights_only=True,
    )
    assert callback.skipped == 3


def test_accumulated_batches_are_left_out_together(tmp_path):
    model, callback = Spoilt(bad=(2,)), finite(tmp_path, action="skip")
    with pytest.warns(UserWarning, match="train/kl is nan at step 2"):
        trainer([callback], accumulate_grad_batches=2).fit(model, batches(), batches(1))
    assert callback.skipped == 1
    assert equal(model.after[3], model.after[1]) and not equal(model.after[5], model.after[3])


def test_a_checkpoint_looks_first(tmp_path):
    class Save(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            trainer.save_checkpoint(tmp_path / "last.ckpt")

    with pytest.raises(FloatingPointError, match="at step 3, epoch 0, batch 2"):
        trainer([Save(), finite(tmp_path)]).fit(Spoilt(bad=(3,)), batches(), batches(1))
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 2


def test_a_metric_that_is_not_finite_stops_the_run(tmp_path):
    class Bad(Model):
        def validation_step(self, batch, batch_idx):
            self.log("val/elbo", torch.tensor(float("nan")), batch_size=16)

    with pytest.raises(FloatingPointError, match="val/elbo is nan at step 4, epoch 0"):
        trainer([EarlyStopping(), finite(tmp_path)]).fit(Bad(), batches(), batches(1))


def test_a_metric_that_was_read_after_the_last_batch_stops_the_run(tmp_path):
    class Late(Model):
        def on_train_epoch_end(self):
            self.latest = {"train/elbo": float("nan")}

    with pytest.raises(FloatingPointError, match="train/elbo is nan at step 4, epoch 1"):
        trainer([finite(tmp_path)], max_epochs=1).fit(Late(), batches(), batches(1))


@pytest.mark.parametrize("fused", [True, False])
def test_finite_updates_change_nothing(tmp_path, fused):
    def after(*callbacks):
        torch.manual_seed(0)
        model = Spoilt(bad=(), fused=fused)
        trainer(callbacks).fit(model, batches(), batches(1))
        return model.after[-1]

    assert equal(after(finite(tmp_path)), after())


def test_finite_updates_refuse(tmp_path):
    with pytest.raises(ValueError, match="action must be stop or skip, got 'go on'"):
        finite(tmp_path, action="go on")
    with pytest.raises(ValueError, match="limit must be at least 1, got 0"):
        finite(tmp_path, limit=0)


# LatentUse


class Unused(Model):
    """Logs for each validation its (KL, active units, perplexity)."""

    def __init__(self, values, latent, data):
        super().__init__()
        self.values, self.vae.latent = iter(values), latent
        self.metrics = types.SimpleNamespace(count=torch.tensor(data))

    def validation_step(self, batch, batch_idx):
        names = ("val/kl", "val/active_units", "val/code_perplexity")
        values = map(float, next(self.values))
        self.log_dict(dict(zip(names, values, strict=True)), batch_size=16)


def warned(values, latent, data=512, **settings):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run = trainer([LatentUse(**settings)], max_epochs=len(values))
        run.fit(Unused(values, latent, data), batches(1), batches(1))
    return [(w.category, str(w.message)) for w in caught if w.category in NAMED]


NAMED = (PosteriorCollapseWarning, DeadCodesWarning)
FINE, COLLAPSED, NO_UNIT, DEAD = (9, 5, 100), (0.09, 5, 512), (0.2, 0, 512), (9, 5, 40)


@pytest.mark.parametrize(
    ("values", "kinds"),
    [
        ([FINE] * 4, []),
        ([COLLAPSED] * 2 + [FINE] + [COLLAPSED] * 2, []),
        ([FINE] + [COLLAPSED, NO_UNIT, COLLAPSED] * 3, [PosteriorCollapseWarning]),
        ([DEAD] * 4, [DeadCodesWarning]),
        ([DEAD, FINE] * 3, []),
    ],
)
def test_latents_that_are_not_used_are_named_once(values, kinds):
    assert [kind for kind, _ in warned(values, Categorical(5, 512))] == kinds


def test_the_warnings_say_what_to_type():
    [(_, message)] = warned([COLLAPSED], Categorical(5, 512), patience=1)
    assert message.startswith("val/kl is 0.09 nats, 5 of 5 latent variables are active; type ")
    [(_, message)] = warned([DEAD], Categorical(5, 512), patience=1)
    assert message.startswith("of 512 categories a latent variable uses 40 (val/code_perplexity)")


def test_few_data_do_not_tell_which_codes_are_dead():
    assert warned([DEAD] * 3, Categorical(5, 512), data=511) == []
    assert warned([COLLAPSED] * 3, Categorical(5, 512), data=1) != []


def test_continuous_latents_have_no_codes():
    assert warned([DEAD] * 3, Gaussian(5)) == []


def test_latent_use_refuses():
    with pytest.raises(ValueError, match="patience must be at least 1, .* got 0, 0.1 and 0.1"):
        LatentUse(patience=0)
