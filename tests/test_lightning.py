"""What we do by Lightning's private parts is what Lightning does: the same run, bit for bit."""

from contextlib import contextmanager
from unittest import mock

import pytest
import pytorch_lightning as pl
import torch
import wandb
from pytorch_lightning.loops.optimization.automatic import _AutomaticOptimization
from same_runs import differences, run_differences, state
from stand_ins import Model, batches, trainer
from test_resume import composed

import train as train_py
from models.base import VAEModule
from tasks import build
from vae_lab import lightning
from vae_lab.lightning import versions
from vae_lab.loggers import begin, wandb_logger

pytestmark = [pytest.mark.filterwarnings(f"ignore:{message}") for message in train_py.QUIET]

HOOKS = (
    "on_train_batch_start",
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_train_batch_end",
)


class Witness(pl.Callback):
    """Writes down every call of a step, with the gradients' and the weights' sums."""

    def __init__(self, seen):
        def hook(name):
            return lambda trainer, module, *rest: seen.append(self.note(name, module, rest))

        for name in HOOKS:
            setattr(self, name, hook(name))

    def note(self, name, module, rest):
        sums = [sum(p.sum().item() for p in module.parameters())]
        sums += [sum(p.grad.sum().item() for p in module.parameters() if p.grad is not None)]
        loss = [x["loss"].item() for x in rest if isinstance(x, dict)]
        return name, module._current_fx_name, module.global_step, *sums, *loss


@contextmanager
def publicly(*parts):
    """These modules of vae_lab.lightning take Lightning's version for one that is not known."""
    with pytest.MonkeyPatch.context() as patch:
        for part in parts:
            patch.setattr(f"vae_lab.lightning.{part}.is_known", lambda: False)
        if "hook_names" in parts:
            patch.delattr(VAEModule, "__setattr__")
        yield


def fit(folder, *lines, public=(), start=None):
    """Trains, with `public` parts in Lightning's own way. Returns what a callback sees."""
    with publicly(*public):
        return _fit(folder, *lines, start=start)


def _fit(folder, *lines, start):
    config = composed(("model=gaussian_vae", *lines)).copy()
    config.run_dir = str(folder)
    pl.seed_everything(config.seed, verbose=False)
    datamodule, model = build.datamodule_and_model(config)
    run = build.trainer(config, model)
    seen = []
    run.callbacks.append(Witness(seen))
    run.loggers[0].rewind(0)
    run.fit(model, datamodule, ckpt_path=start, weights_only=True)
    return seen


@pytest.mark.parametrize(
    ("lines", "short"),
    [
        ((), True),
        (("model=reinforce_vae", "ema=0.9"), True),
        (("trainer.gradient_clip_val=0.01",), True),
        (("trainer.accumulate_grad_batches=3",), False),
        (("trainer.precision=bf16-mixed",), False),
        (("trainer.profiler=simple",), False),
    ],
    ids=str,
)
def test_a_run_is_the_same(tmp_path, monkeypatch, lines, short):
    lightnings = fit(tmp_path / "lightnings", *lines, public=["steps", "averaging"])
    run, calls = _AutomaticOptimization.run, []
    monkeypatch.setattr(
        _AutomaticOptimization, "run", lambda *args: calls.append(args) or run(*args)
    )
    ours = fit(tmp_path / "ours", *lines)
    assert ours == lightnings and {name for name, *_ in ours} == set(HOOKS)
    assert not run_differences(tmp_path / "ours", tmp_path / "lightnings")
    assert bool(calls) is not short
    profiled = "trainer.profiler=simple" in lines
    assert (tmp_path / "ours" / "fit-profile.txt").is_file() is profiled


EVERY = [
    "trainer.val_check_interval=2",
    "trainer.max_epochs=3",
    "trainer.check_val_every_n_epoch=2",
]
PARTS = ("steps", "progress", "hook_names")


@pytest.mark.parametrize("lines", [EVERY, ["trainer.max_steps=7", "save.every_n_steps=2"]], ids=str)
@pytest.mark.parametrize("parts", [*((part,) for part in PARTS), PARTS], ids=" ".join)
def test_each_part_has_a_public_way(tmp_path, parts, lines):
    """That saves at the same moments, as a checkpoint before a validation would be seen."""
    ours = fit(tmp_path / "ours", *lines)
    assert fit(tmp_path / "lightnings", *lines, public=parts) == ours
    assert not run_differences(tmp_path / "ours", tmp_path / "lightnings")


class Follows(pl.Callback):
    """After every batch: what the parts say of the place and of the coming validation."""

    def __init__(self):
        self.said, self.validated = [], []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        told = [lightning.place(trainer), lightning.validation_follows(trainer)]
        with publicly("progress"):
            assert [lightning.place(trainer), lightning.validation_follows(trainer)] == told
        loop = trainer.fit_loop
        assert lightning.accumulates(trainer, batch_idx) == loop._should_accumulate()
        assert told[0].begun == batch_idx + 1 == told[0].batches
        self.said.append(told[1])
        self.validated.append(False)

    def on_validation_start(self, trainer, module):
        if self.validated:
            self.validated[-1] = True


@pytest.mark.parametrize("every", [{}, {"check_val_every_n_epoch": 2}, {"val_check_interval": 2}])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_the_place_is_lightnings(every, accumulate):
    follows = Follows()
    run = trainer([follows], max_epochs=4, accumulate_grad_batches=accumulate, **every)
    run.fit(Model(), batches(), batches(1))
    assert follows.said == follows.validated and any(follows.said)


def test_a_validation_by_steps_is_foreseen():
    follows = Follows()
    run = trainer([follows], max_epochs=3, check_val_every_n_epoch=None, val_check_interval=3)
    run.fit(Model(), batches(), batches(1))
    assert follows.said == follows.validated == [i % 3 == 2 for i in range(12)]


def test_the_installed_version_is_known(monkeypatch):
    assert versions.is_known()
    for version, known in {"2.6.9": True, "2.60.0": False, "2.7.0": False, "3.0": False}.items():
        monkeypatch.setattr(pl, "__version__", version)
        assert versions.is_known() is known


def test_an_unknown_version_keeps_its_own_loop_and_class():
    with publicly("steps", "hook_names"):
        run = trainer()
        loop = run.fit_loop.epoch_loop
        lightning.shorten_steps(run)
        lightning.count_epochs_once(run)
        assert run.fit_loop.epoch_loop is loop
        assert "_iteration_based_training" not in vars(run.fit_loop)
        assert "__setattr__" not in vars(lightning.notes_hooks_quickly(type("Own", (Model,), {})))
    quick = lightning.notes_hooks_quickly(type("Own", (Model,), {}))()
    quick._current_fx_name, quick.layer = "training_step", torch.nn.Linear(1, 1)
    assert quick._current_fx_name == "training_step" and "layer" in quick._modules


def test_an_unknown_version_turns_wandb_off_all_the_same(tmp_path):
    logger = wandb_logger(str(tmp_path))
    logger._experiment = run = mock.create_autospec(wandb.Run, instance=True)
    run.log.side_effect = ConnectionResetError("its process is gone")
    with publicly("wandb_runs"), pytest.warns(UserWarning, match="nothing more") as warned:
        logger.log_metrics({"a": 1.0}, 3)
        logger.log_metrics({"a": 1.0}, 4)
    assert len(warned) == 1 and run.log.call_count == 1


def test_an_unknown_version_cannot_go_offline(tmp_path, monkeypatch):
    logger = wandb_logger(str(tmp_path))
    monkeypatch.setattr(wandb, "init", mock.Mock(side_effect=wandb.errors.CommError("no server")))
    with publicly("wandb_runs"), pytest.raises(ValueError, match="type logger.wandb.mode=offline"):
        begin(logger)


def test_one_step_goes_on_where_the_other_stopped(tmp_path):
    whole = fit(tmp_path / "whole")
    for first, second in (((), PARTS), (PARTS, ())):
        folder = tmp_path / f"public first {first}"
        start = fit(folder, "trainer.max_epochs=1", public=first)
        rest = fit(folder, public=second, start=folder / "checkpoints" / "last.ckpt")
        assert start + rest == whole
        assert not list(differences(state(tmp_path / "whole"), state(folder)))


class ByHand(pl.LightningModule):
    """Takes its steps itself."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(self.layer(batch[0]).sum())
        optimizer.step()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.mark.filterwarnings("ignore:.*many workers", "ignore:.*logging interval")
def test_a_module_that_steps_by_hand_has_lightnings_loop(tmp_path):
    run = trainer(max_epochs=1)
    lightning.shorten_steps(run)
    data = torch.utils.data.TensorDataset(torch.ones(4, 1))
    module = ByHand()
    before = module.layer.bias.item()
    run.fit(module, torch.utils.data.DataLoader(data))
    assert run.global_step == 4 and module.layer.bias.item() == pytest.approx(before - 0.4)


class Several(pl.LightningModule):
    """Its optimizer computes the loss several times a step."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)

    def training_step(self, batch, batch_idx):
        return self.layer(batch).square().mean()

    def configure_optimizers(self):
        return torch.optim.LBFGS(self.parameters())


@pytest.mark.filterwarnings("ignore:.*many workers")
def test_an_optimizer_that_computes_the_loss_has_lightnings_step(tmp_path):
    run, module = trainer(max_steps=1, default_root_dir=tmp_path), Several()
    lightning.shorten_steps(run)
    before = module.layer.weight.clone()
    run.fit(module, torch.utils.data.DataLoader(torch.ones(4, 2), batch_size=4))
    assert run.global_step == 1 and not module.layer.weight.equal(before)
