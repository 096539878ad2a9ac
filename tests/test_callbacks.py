import contextlib
import os
import pty
import re
import subprocess
import sys
import threading
import time

import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from stand_ins import Model, batches, trainer

from vae_lab.callbacks import EarlyStopping, FiniteLoss, Pictures, Progress, StepSeed

NAMES = ["interpolation.png", "reconstructions.png", "samples.png"]


def trained(*callbacks, **kwargs):
    """Weights after a short training that begins with an own global seed."""
    torch.manual_seed(0)
    model = Model()
    trainer(callbacks, **kwargs).fit(model, batches(), batches(2))
    return model.vae.image.detach()


def test_importing_the_library_imports_no_lightning():
    code = "import sys, vae_lab; sys.exit('pytorch_lightning' in sys.modules)"
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
    redrawn = "".join(written).count("/2") - 100  # each of the 100 lines draws the bar once again
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


# FiniteLoss


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_finite_loss_names_term_step_and_circumstances(value):
    class Bad(Model):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            if self.global_step == 5:
                self.latest = {**self.latest, "train/kl": float(value)}
            return loss

    message = rf"^train/kl is {value} at step 6, epoch 1 \(lr 0.01, gradient norm \S+, train/elbo "
    with pytest.raises(RuntimeError, match=message):
        trainer([FiniteLoss()]).fit(Bad(), batches(), batches(1))


def test_finite_loss_notices_what_was_read_after_the_last_batch():
    class Late(Model):
        def on_train_epoch_end(self):
            self.latest = {"train/elbo": float("nan")}

    with pytest.raises(RuntimeError, match="train/elbo is nan at step 4, epoch 1"):
        trainer([FiniteLoss()], max_epochs=1).fit(Late(), batches(), batches(1))


def test_finite_loss_checks_validation():
    class Bad(Model):
        def validation_step(self, batch, batch_idx):
            self.log("val/elbo", torch.tensor(float("nan")), batch_size=16)

    with pytest.raises(RuntimeError, match="val/elbo is nan at step 4, epoch 0"):
        trainer([EarlyStopping(), FiniteLoss()]).fit(Bad(), batches(), batches(1))


def test_finite_loss_is_silent_and_changes_nothing():
    assert torch.equal(trained(FiniteLoss()), trained())
