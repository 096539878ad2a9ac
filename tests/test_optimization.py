"""Our shorter step is Lightning's: the same run, bit for bit."""

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loops.optimization.automatic import _AutomaticOptimization
from same_runs import differences, run_differences, state
from test_resume import composed

import train as train_py
from tasks import build
from vae_lab.optimization import shorten_steps

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


def fit(folder, *lines, own=True, start=None):
    """Trains, with our step or with Lightning's. Returns what a callback sees."""
    config = composed(("model=gaussian_vae", *lines)).copy()
    config.run_dir = str(folder)
    pl.seed_everything(config.seed, verbose=False)
    datamodule, model = build.datamodule_and_model(config)
    trainer = build.trainer(config, model)
    if not own:
        trainer.fit_loop.epoch_loop.automatic_optimization = _AutomaticOptimization(trainer)
    seen = []
    trainer.callbacks.append(Witness(seen))
    trainer.loggers[0].rewind(0)
    trainer.fit(model, datamodule, ckpt_path=start, weights_only=True)
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
    lightnings = fit(tmp_path / "lightnings", *lines, own=False)
    run, calls = _AutomaticOptimization.run, []
    monkeypatch.setattr(
        _AutomaticOptimization, "run", lambda *args: calls.append(args) or run(*args)
    )
    ours = fit(tmp_path / "ours", *lines)
    assert ours == lightnings and {name for name, *_ in ours} == set(HOOKS)
    assert not run_differences(tmp_path / "ours", tmp_path / "lightnings")
    assert bool(calls) is not short


def test_one_step_goes_on_where_the_other_stopped(tmp_path):
    whole = fit(tmp_path / "whole")
    for first, second in ((True, False), (False, True)):
        folder = tmp_path / f"ours first {first}"
        start = fit(folder, "trainer.max_epochs=1", own=first)
        rest = fit(folder, own=second, start=folder / "checkpoints" / "last.ckpt")
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
    trainer = pl.Trainer(
        max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    shorten_steps(trainer)
    data = torch.utils.data.TensorDataset(torch.ones(4, 1))
    module = ByHand()
    before = module.layer.bias.item()
    trainer.fit(module, torch.utils.data.DataLoader(data))
    assert trainer.global_step == 4 and module.layer.bias.item() == pytest.approx(before - 0.4)


class Several(pl.LightningModule):
    """Its optimizer computes the loss several times a step."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)

    def training_step(self, batch, batch_idx):
        return self.layer(batch).square().mean()

    def configure_optimizers(self):
        return torch.optim.LBFGS(self.parameters())


@pytest.mark.filterwarnings("ignore:.*many workers", "ignore:.*logging interval")
def test_an_optimizer_that_computes_the_loss_has_lightnings_step(tmp_path):
    trainer = pl.Trainer(
        max_steps=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    shorten_steps(trainer)
    module = Several()
    before = module.layer.weight.clone()
    trainer.fit(module, torch.utils.data.DataLoader(torch.ones(4, 2), batch_size=4))
    assert trainer.global_step == 1 and not module.layer.weight.equal(before)
