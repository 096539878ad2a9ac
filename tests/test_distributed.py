"""The same answer from one process, two and four (gloo, on the CPU)."""

import contextlib
import copy
import functools
import itertools
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import pytorch_lightning as pl
import stand_ins
import torch
import torch.distributed as dist
from hydra.utils import instantiate
from omegaconf import OmegaConf
from same_runs import differences, metrics
from test_train import ROOT, python, weights
from tiny import GRID_SHAPE, SHAPE, SMALL_GRID, Images, randomize
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.multiprocessing import start_processes
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

import train as train_py
from models import FSQVAE, LFQVAE, VQVAE, GaussianVAE, GumbelVAE, PoissonVAE, ReinforceVAE
from vae_lab import VAE
from vae_lab.callbacks import FiniteUpdates, StepSeed
from vae_lab.data import Batch
from vae_lab.distributed import all_sum, alone, each, rank, world_size
from vae_lab.estimators import LAX, ScoreFunction
from vae_lab.gradients import reference
from vae_lab.latents import CorrelatedGaussian, FlowGaussian
from vae_lab.likelihoods import Bernoulli
from vae_lab.losses import Adversarial, Perceptual
from vae_lab.networks import MLP
from vae_lab.objectives import ELBO, IWAE
from vae_lab.priors import Autoregressive, Flow, Mixture, Vamp
from vae_lab.seeding import derive_seed, seed_generators

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning"),
    *(pytest.mark.filterwarnings(f"ignore:{message}") for message in train_py.QUIET),
]

FILES = Path(__file__).parents[1] / "configs" / "estimator"
SIZES = (29, 1)  # of the batches: uneven parts, and then an image for one process alone
LATENTS = {
    "normal": functools.partial(GaussianVAE, latents=2),
    "categorical": functools.partial(GumbelVAE, latents=2, categories=3),
    "bits": functools.partial(GumbelVAE, latents=2, categories=None),
    "counts": functools.partial(PoissonVAE, latents=2),
}
OWN = {"gaussian_vae": GaussianVAE, "gumbel_vae": GumbelVAE, "poisson_vae": PoissonVAE} | {
    f"reinforce_vae-{baseline}": functools.partial(ReinforceVAE, baseline=baseline)
    for baseline in ("none", "moving_average", "learned", "leave_one_out")
}
OWN |= {
    "vq_vae": functools.partial(VQVAE, categories=3, dim=2, decay=0.5),
    "vq_vae-gradient": functools.partial(VQVAE, categories=3, dim=2, latents=2, decay=None),
    "vq_vae-shared": functools.partial(VQVAE, categories=3, dim=2, latents=2, shared=True),
    "vq_vae-residual": functools.partial(VQVAE, categories=3, dim=2, depth=2, decay=0.5),
    "fsq_vae": functools.partial(FSQVAE, levels=[3, 2]),
    "lfq_vae": functools.partial(LFQVAE, latents=3),
}

PRIORS = {
    "mixture": lambda: Mixture(3),
    "vamp": lambda: Vamp(3),
    "flow": lambda: Flow("coupling", 2, (5,)),
    "autoregressive": lambda: Autoregressive(8, 1, 2),
}
LOSSES = {
    "perceptual": Perceptual,
    "adversarial": functools.partial(Adversarial, start=0, channels=(3,)),
}

DRAWN = [
    *(("disarm", "bits ELBO"), ("rebar", "categorical ELBO"), ("gumbel_softmax", "bits IWAE")),
    *(("score_function", "categorical IWAE"), ("fini", "counts ELBO"), ("lax", "normal ELBO")),
]


class SharedNoise(TorchDispatchMode):
    """Draws for the whole batch, and gives this process the rows of its part.

    Everything random becomes a function of uniform numbers. The batch's axis is the one that is as
    long as the part: sizes are chosen so that no other is.
    """

    def __init__(self, seed, part, size):
        super().__init__()
        self.seed, self.part, self.size, self.count = seed, part, size, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if torch.Tag.nondeterministic_seeded not in function.tags:
            return function(*args, **(kwargs or {}))
        self.count += 1
        name = function.overloadpacket.__name__
        return getattr(self, name)(*args)

    def uniform(self, shape):
        generator = torch.Generator().manual_seed(derive_seed(self.seed, self.count))
        length, shape = len(range(self.size)[self.part]), list(shape)
        whole = length in (0, self.size)  # a part of no images trains on a blank one
        (axis,) = [0] if whole else [i for i, n in enumerate(shape) if n == length]
        shape[axis] = shape[axis] if whole else self.size
        noise = torch.rand(shape, generator=generator, dtype=torch.float64).clamp_min(1e-300)
        return noise if whole else noise.movedim(axis, 0)[self.part].movedim(0, axis)

    def rand(self, shape, **_):
        return self.uniform(shape)

    def randn(self, shape, **_):
        return torch.special.ndtri(self.uniform(shape))

    def normal_(self, x, mean=0.0, std=1.0):
        return x.copy_(mean + std * torch.special.ndtri(self.uniform(x.shape)))

    def exponential_(self, x):
        return x.copy_(-self.uniform(x.shape).log())

    def normal(self, mean, std):
        return mean + std * torch.special.ndtri(self.uniform(mean.shape))

    def bernoulli(self, p):
        return (self.uniform(p.shape) < p).to(p)

    def multinomial(self, p, num_samples, *_):
        images = len(range(self.size)[self.part]) or 1
        cdf = p.cumsum(-1).reshape(images, -1, 1, p.shape[-1])  # rows are (image, variable)
        noise = self.uniform((*cdf.shape[:2], num_samples, 1))
        return (noise > cdf).sum(-1).reshape(len(p), num_samples)

    def poisson(self, rate):
        cdf = torch.special.gammaincc(torch.arange(1.0, 60.0).to(rate), rate.unsqueeze(-1))
        return (self.uniform(rate.shape).unsqueeze(-1) > cdf).sum(-1).to(rate)


class Step(nn.Module):
    """What DDP wraps."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, batch, number):
        return self.model.training_step(batch, number)


def images(shape):
    """29 of them, the last white."""
    striped = torch.arange(28 * math.prod(shape)).reshape(28, *shape) % 3 == 0
    return torch.cat([striped, torch.ones(1, *shape)]).double()


FLAT = {"network": MLP((4,), "tanh"), "shape": SHAPE}
GRID = {"network": SMALL_GRID, "shape": GRID_SHAPE}


def make(cls, objective=ELBO, name=None, place=FLAT):
    torch.manual_seed(5)
    file = FILES / f"{name}.yaml"
    model = cls(
        **place,
        likelihood=Bernoulli(),
        objective=objective(),
        estimator=name and instantiate(OmegaConf.load(file), _convert_="all"),
        optimizer=functools.partial(torch.optim.Adam, lr=0.01),
    )
    return randomize(model.double())


@functools.cache
def models():
    """Every estimator with every latent and bound that take it, and every model with its own."""
    found = {(name, "its own"): make(cls) for name, cls in OWN.items()}
    for name in sorted(path.stem for path in FILES.glob("*.yaml")):
        for latent, cls in LATENTS.items():
            for objective in (ELBO, IWAE):
                with contextlib.suppress(ValueError):
                    found[name, f"{latent} {objective.__name__}"] = make(cls, objective, name)
    for name, prior in PRIORS.items():
        with_prior = functools.partial(GaussianVAE, latents=2, prior=prior())
        found["prior", f"{name} normal"] = make(with_prior)
        if name != "flow":
            with_prior = functools.partial(ReinforceVAE, latents=2, categories=3, prior=prior())
            found["prior", f"{name} categorical"] = make(with_prior)
    for flow in ("coupling", "autoregressive"):
        bent = FlowGaussian(2, flow, transforms=2, hidden=(5,), context=3)
        found["flow_gaussian", flow] = make(functools.partial(GaussianVAE, latent=bent))
    correlated = functools.partial(GaussianVAE, latent=CorrelatedGaussian(2))
    found["correlated_gaussian", "flat"] = make(correlated)
    for name, cls in OWN.items():
        found[name, "its own on a grid"] = make(cls, place=GRID)
    for name, place in (("flat", FLAT), ("grid", GRID)):
        balanced = functools.partial(ELBO, aggregate_kl=3.0)
        for model in ("gumbel_vae", "vq_vae", "fsq_vae", "lfq_vae"):
            found["aggregate_kl", f"{model} {name}"] = make(OWN[model], balanced, place=place)
        for loss, objective in LOSSES.items():
            for model in ("gaussian_vae", "reinforce_vae-learned", "fsq_vae"):
                found[loss, f"{model} {name}"] = make(OWN[model], objective, place=place)
    return found


def share(size):
    return slice(size * rank() // world_size(), size * (rank() + 1) // world_size())


def train(model, shard=False):
    """The gradient of every step [steps, P], and what the model then is, with its buffers."""
    model = copy.deepcopy(model)
    model.trainer = SimpleNamespace(world_size=world_size())
    step, gradients = Step(model), []
    if shard:
        axes = ("data_parallel", "tensor_parallel")  # of Lightning: copies, shares
        model._device_mesh = init_device_mesh("cpu", (1, world_size()), mesh_dim_names=axes)
        model.configure_model()
    elif world_size() > 1:
        step = DistributedDataParallel(step)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for number, size in enumerate(SIZES):
        optimizer.zero_grad()
        x = images(model.vae.shape)[-size:][share(size)]
        with SharedNoise(number, share(size), size):
            loss = step(Batch(x, None, size), number)
        loss.backward()
        gradients.append(vector(p.grad for p in model.parameters() if p.grad is not None))
        optimizer.step()
    return torch.stack(gradients), vector(model.state_dict().values())


def vector(tensors):
    return torch.cat([getattr(t, "full_tensor", lambda t=t: t)().flatten() for t in tensors])


@functools.cache
def by_one():
    return {case: train(model) for case, model in models().items()}


def train_all(expected, shard):
    """How far this process is from one that trains alone, relatively; or what it failed with."""
    found = {}
    for case, model in models().items():
        try:
            pairs = zip(train(model, shard), expected[case], strict=True)
            found[case] = max(((a - b).norm() / b.norm()).item() for a, b in pairs)
        except Exception as error:
            found[case] = f"{type(error).__name__}: {error}"
    return found


def draws(repeats=60):
    """Means and variances of gradients, each process with noise of its own on the same image."""
    found, size = {}, 8
    for case in DRAWN:
        model = copy.deepcopy(models()[case]).eval()  # a moving average's place would matter
        model.trainer = SimpleNamespace(world_size=world_size())
        parameters = [p for p in model.vae.parameters() if p.requires_grad]
        x, gradients = images(SHAPE)[:1].expand(size // world_size(), *SHAPE), []
        for repeat in range(repeats):
            seed_generators(derive_seed(repeat, rank()))
            loss = model.training_step(Batch(x, None, size), 0)
            gradients.append(vector(torch.autograd.grad(loss, parameters)))
        drawn = all_sum(torch.stack(gradients)) / world_size()  # [repeats, P]
        found[case] = drawn.mean(0), drawn.var(0) / repeats
    return found


def process(index, count, folder, work, *arguments):
    """One of `count` processes; what `work` returns goes into a file."""
    torch.set_num_threads(1)
    meeting = f"file://{folder}/{work.__name__}-{count}"
    dist.init_process_group("gloo", meeting, rank=index, world_size=count)
    torch.save(work(*arguments), folder / f"{work.__name__}-{index}.pt")
    dist.destroy_process_group()


def in_processes(count, folder, work, *arguments):
    """What `work` returns in each process."""
    start_processes(process, (count, folder, work, *arguments), count, start_method="fork")
    return [torch.load(folder / f"{work.__name__}-{i}.pt") for i in range(count)]


@pytest.fixture(
    scope="module", params=[pytest.param("two", marks=pytest.mark.slow), "four", "two, sharded"]
)
def trained(request, tmp_path_factory):
    """How far every process of a group is from one that trained alone."""
    count, shard = 4 if request.param == "four" else 2, "sharded" in request.param
    return in_processes(count, tmp_path_factory.mktemp("work"), train_all, by_one(), shard)


def test_the_gradient_and_the_state_of_every_estimator(trained):
    """With the same noise for the same image; also where a process has no image."""
    for of_process in trained:
        found = {k: v for k, v in of_process.items() if "cannot be sharded" not in str(v)}
        wrong = {k: v for k, v in found.items() if isinstance(v, str) or not v < 1e-12}
        assert of_process.keys() == models().keys() and not wrong


def test_gradients_with_noise_of_their_own(tmp_path):
    together = in_processes(4, tmp_path, draws)[0]
    for case, (mean, variance) in draws().items():
        other_mean, other_variance = together[case]
        z = (mean - other_mean) / (variance + other_variance).sqrt().clamp_min(1e-12)
        assert z.abs().max() < 5, case
        assert 0.6 < other_variance.sum() / variance.sum() < 1.6, case  # 4 if the noise is the same


def left_out(objective, scaler):
    """Is a step whose gradient is finite; the objective is the last process's own."""
    weight = nn.Parameter(torch.zeros(2))
    weight.grad = torch.ones(2)
    callback = FiniteUpdates("unused", "skip")
    callback._terms = [torch.tensor([objective if rank() else -1.0, 1.0, 1.0, 1.0, 8.0])]
    plugin = SimpleNamespace(scaler=scaler)
    trainer = SimpleNamespace(precision_plugin=plugin, global_step=0, current_epoch=0)
    callback.on_before_optimizer_step(trainer, None, torch.optim.SGD([weight], fused=True))
    return callback._stopped.item()


@pytest.mark.parametrize("scaler", [None, "of float16"])
@pytest.mark.parametrize("objective, expected", [(-1.0, False), (-torch.inf, True)])
def test_all_processes_leave_out_the_same_steps(tmp_path, objective, expected, scaler):
    assert in_processes(2, tmp_path, left_out, objective, scaler) == [expected, expected]


def with_no_data():
    """The buffers of each stateful estimator; only the first process has data."""
    found = []
    for estimator in (ScoreFunction(2, "moving_average"), ScoreFunction(2, "learned"), LAX((4,))):
        torch.manual_seed(1)
        loc = torch.zeros(0 if rank() else 3, 2, requires_grad=True)
        q = torch.distributions.Independent(torch.distributions.Normal(loc, 1.0), 1)
        estimator(q, lambda z: z.square().sum(-1), context=torch.zeros(len(loc), 1))
        found.append(vector(estimator.buffers()))
    return torch.cat(found)


def test_a_process_without_data_has_the_same_averages(tmp_path):
    first, second = in_processes(2, tmp_path, with_no_data)
    assert torch.equal(first, second) and torch.equal(first, with_no_data()) and first.any()


def measured_by_the_first():
    """A gradient whose objective has sums over all processes, though the others wait for nobody."""
    vae, x = make(LATENTS["categorical"]).vae, images(SHAPE)[:4]
    if rank():
        return None
    with alone():
        return reference(vae, ELBO(aggregate_kl=1.0), x).gradient, world_size()


def test_what_one_process_measures_needs_no_other(tmp_path):
    (gradient, count), other = in_processes(2, tmp_path, measured_by_the_first)
    assert other is None and count == 1
    assert torch.equal(gradient, measured_by_the_first()[0])


class Equal(pl.Callback):
    """Looks from process to process: the same weights at the end, other noise on the way."""

    def on_train_batch_start(self, trainer, model, batch, batch_idx):
        if trainer.global_step == 0:
            assert len(each(torch.rand(())).unique()) == 4

    def on_train_end(self, trainer, model):
        state = model.state_dict(), trainer.optimizers[0].state_dict()
        states = [None] * 4
        dist.all_gather_object(states, state)
        assert trainer.global_step == 200
        assert not [place for other in states for place in differences(state, other)]


def test_two_hundred_steps_leave_the_processes_equal():
    place = FLAT | {"shape": Images.shape}
    model = make(functools.partial(ReinforceVAE, baseline="learned"), place=place).float()
    options = {"strategy": "ddp_fork", "devices": 4, "max_steps": 200, "max_epochs": -1}
    trainer = stand_ins.trainer([StepSeed(0), Equal()], **options)
    trainer.fit(model, Images(batch_size=5))  # of the last batch's one image, three have nothing


RUN = [
    *("experiment=smoke", "callbacks.pictures=null", "model.latents=2"),
    *("model.categories=3", "trainer.accelerator=cpu", "trainer.enable_progress_bar=false"),
]
WHOLE_EPOCHS = [
    *("data.binarize=stochastic", "data.batch_size=294", "trainer.limit_train_batches=null"),
    *("trainer.accumulate_grad_batches=2", "estimator=exact"),  # which has no noise
]
NOISY = ("val/elbo", "val/reconstruction", "test/elbo", "test/reconstruction")


def assert_same_metrics(folder, other, without=()):
    found = [
        [{k: float(v) for k, v in row.items() if k not in without} for row in metrics(path)]
        for path in (folder, other)
    ]
    assert {"train/objective", "val/code_perplexity", "val/active_units"} <= {
        *itertools.chain(*found[0])
    }
    assert all(a == pytest.approx(b, 1e-4) for a, b in zip(*found, strict=True))


def test_runs(run, tmp_path):
    """Data order and binarisation, accumulation over a short last batch, metrics."""
    for count in (1, 2, 4):
        many = ["trainer.strategy=ddp_fork", f"trainer.devices={count}", f"run_dir=x{count}"]
        run("network=linear", *RUN, *WHOLE_EPOCHS, *many)
        assert_same_metrics(tmp_path / "x1", tmp_path / f"x{count}", NOISY)


def test_runs_on_arrays(run, tmp_path):
    """In units that every process learns; read from a file, and some values are missing."""
    x = torch.randn(410, 3, generator=torch.Generator().manual_seed(0)) * 30
    x[::9, 1] = float("nan")
    np.save(tmp_path / "x.npy", x.numpy())
    lines = ["data=arrays", f"data.train={tmp_path / 'x.npy'}", "data.memory_gb=0"]
    lines += ["data.num_workers=0", "data.batch_size=147", "trainer.limit_train_batches=null"]
    for count in (1, 2):
        many = ["trainer.strategy=ddp_fork", f"trainer.devices={count}", f"run_dir=x{count}"]
        run("network=linear", *RUN, *lines, "estimator=exact", *many)
    assert_same_metrics(tmp_path / "x1", tmp_path / "x2", NOISY)


GRID_RUN = ["network=grid", "network.channels=[4,6]", "network.attention=true"]


@pytest.mark.slow
@pytest.mark.parametrize("network", [["network=linear"], GRID_RUN], ids=["linear", "grid"])
def test_shares_of_a_model(run, tmp_path, network):
    """As it is typed: FSDP trains as DDP does, says it once, and what it saves is whole."""
    for strategy in ("ddp", "fsdp"):
        line = [f"trainer={strategy}", f"run_dir={strategy}", "estimator=rebar", *network]
        line = [*line, *RUN, "trainer.devices=2"]
        ended = python(tmp_path, str(ROOT / "train.py"), *line)
        assert ended.returncode == 0, ended.stderr
        assert "Warning" not in ended.stderr and ended.stdout.count("test/elbo ") == 1
        assert [int(row["step"]) for row in metrics(tmp_path / strategy)] == [2, 4, 6, 8]
        assert VAE.from_pretrained(tmp_path / strategy).sample(1).isfinite().all()
    assert_same_metrics(tmp_path / "ddp", tmp_path / "fsdp")
    torch.testing.assert_close(weights(tmp_path / "ddp"), weights(tmp_path / "fsdp"))
    run("task=test", "checkpoint=fsdp", "trainer=cpu")  # in one process
