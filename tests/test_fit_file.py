"""The file of vae_lab.fit, and Ctrl-C: a training goes on from it bit for bit."""

import signal

import pytest
from small_fits import X, same, small

from vae_lab import VAE
from vae_lab.estimators import ScoreFunction, VectorQuantization
from vae_lab.fitting import saving
from vae_lab.fitting.training import Training
from vae_lab.latents import Categorical, Codebook, Gaussian
from vae_lab.likelihoods import Gaussian as Normal
from vae_lab.objectives import ELBO
from vae_lab.schedules import Linear as LinearSchedule
from vae_lab.schedules import Staircase


@pytest.fixture(autouse=True)
def ctrl_c():
    """As in a shell; what runs in the background of one ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Killed(Exception):
    pass


def at_step(monkeypatch, number, act):
    """Something that happens in a step of training."""
    step = Training._step

    def acting(self, batch):
        step(self, batch)
        if self.at.step == number:
            act()

    monkeypatch.setattr(Training, "_step", acting)


def kill():
    raise Killed


CONTINUED = {
    "gaussian": {},
    "codes": {
        "latent": Categorical(2, 3),
        "estimator": ScoreFunction(2, "learned"),
        "objective": ELBO(LinearSchedule(0, 1, 10)),
    },
    "averaged": {"ema": 0.9, "likelihood": Normal(0.3, learned=True), "patience": 2},
    "codes that begin anew": {
        "latent": Codebook(2, 6, temperature=0.0, revive=0.9),
        "estimator": VectorQuantization(),
        "ema": 0.9,
    },
    "best early": {"lr": 0.3, "lr_decay": "none", "lr_warmup_steps": 0},
    "without validation": {"val_size": 0, "estimator": "rebar", "latent": Categorical(2, 3)},
}


@pytest.mark.parametrize("step", [4, 6, 7])  # in the middle of an epoch, and at its end
@pytest.mark.parametrize("settings", CONTINUED.values(), ids=CONTINUED)
@pytest.mark.parametrize("end", ["ctrl-c", "killed"])
def test_a_file_goes_on_bit_for_bit(tmp_path, monkeypatch, capsys, settings, step, end):
    settings = settings | {"epochs": 4}
    whole, file = small(X, **settings), tmp_path / "model.ckpt"
    with monkeypatch.context() as patch:
        if end == "ctrl-c":
            at_step(patch, step, lambda: signal.raise_signal(signal.SIGINT))
            part = small(X, file=file, **settings)
            assert (
                f"interrupted in epoch {step // 3 + (step % 3 > 0)} of 4"
                in (capsys.readouterr().err)
                or step == 6
            )
        else:
            patch.setattr(saving, "SAVE_SECONDS", -1.0)
            at_step(patch, step, kill)
            with pytest.raises(Killed):
                small(X, file=file, **settings)
            part = VAE.from_pretrained(file)
    assert part.state_dict().keys() == whole.state_dict().keys()
    resumed = small(X, file=file, **settings)
    assert same(resumed, whole) and resumed.history == whole.history
    assert same(VAE.from_pretrained(file), whole)
    monkeypatch.setattr(Training, "_step", kill)  # a training that has ended takes none
    assert same(small(X, file=file, **settings), whole)


def test_ctrl_c_gives_the_best_model_so_far(monkeypatch, capsys):
    at_step(monkeypatch, 5, lambda: signal.raise_signal(signal.SIGINT))
    vae = small(X, epochs=10)
    assert len(vae.history) == 1 and not vae.training
    assert "interrupted in epoch 2 of 10: the best model so far" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_ctrl_c_raises(monkeypatch):
    def twice():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    at_step(monkeypatch, 5, twice)
    with pytest.raises(KeyboardInterrupt):
        small(X, epochs=10)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"lr": 0.1}, "lr 0.003 -> 0.1"),
        ({"seed": 1}, "seed 0 -> 1"),
        ({"epochs": 9}, "epochs 2 -> 9"),
        ({"batch_size": 10}, "batch_size 20 -> 10"),
        ({"lr_decay": Staircase(1.0, 0.1, 3, 2)}, "lr_decay 'cosine' -> 'Staircase"),
        ({"latent": Gaussian(3)}, "latent {.*3.*}"),
        ({"estimator": "sticking_the_landing"}, "estimator .Repara.* -> .StickingTheLanding"),
        ({"x": X.flip(0)}, "x '.*' -> '"),
    ],
)
def test_a_file_of_other_settings_is_refused(tmp_path, changed, line):
    small(X, file=tmp_path / "a.ckpt")
    before = (tmp_path / "a.ckpt").read_bytes()
    with pytest.raises(ValueError, match=f"a.ckpt was trained with other settings: .*{line}") as e:
        small(**{"x": X, "file": tmp_path / "a.ckpt"} | changed)
    assert "\n" not in str(e.value) and (tmp_path / "a.ckpt").read_bytes() == before


@pytest.mark.parametrize("decay", ["none", Staircase(1.0, 0.1, 3, 2)])
def test_more_epochs_at_a_rate_that_does_not_know_the_end_go_on(tmp_path, decay):
    settings = {"lr_decay": decay, "file": tmp_path / "a.ckpt"}
    small(X, **settings)
    more = small(X, **settings | {"epochs": 5, "patience": 9})
    assert same(more, small(X, lr_decay=decay, epochs=5))


def test_a_file_of_something_else_is_refused_and_neighbours_stay(tmp_path):
    for name in ("a-1.ckpt", "a.txt"):
        (tmp_path / name).write_text("mine")
    small(X, file=tmp_path / "a.ckpt")
    assert (tmp_path / "a-1.ckpt").read_text() == "mine"
    for name in ("a-1.ckpt", "a.txt"):
        with pytest.raises(ValueError, match=f"{name} is not a readable checkpoint"):
            small(X, file=tmp_path / name)
    with pytest.raises(OSError, match="cannot save .*no/folder: .*name a file"):
        (tmp_path / "no").write_text("")
        small(X, file=tmp_path / "no" / "folder")
