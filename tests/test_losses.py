"""Perceptual and adversarial losses: what they add to the ELBO, and what they leave alone."""

import copy
import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from oracles import z_scores
from tiny import gradient_draws, gradients, randomize
from torch import nn

import vae_lab
from vae_lab import VAE
from vae_lab.conditions import InferredLabels
from vae_lab.estimators import Exact, Reparameterization, ScoreFunction, VectorQuantization
from vae_lab.evaluation import distance as module
from vae_lab.evaluation.distance import FeatureDistance, structural_similarity
from vae_lab.evaluation.features import shipped
from vae_lab.latents import FSQ, Bernoulli, Gaussian
from vae_lab.levels import Levels
from vae_lab.likelihoods import Gaussian as Normal
from vae_lab.losses import Adversarial, PatchDiscriminator, Perceptual
from vae_lab.networks import MLP, Grid
from vae_lab.objectives import ELBO
from vae_lab.optimization import clip, parameter_groups

LIMIT = 4.5  # standard errors
SHAPE = (2, 6, 4)
SHAPES = [(1, 1, 1), (1, 2, 3), (3, 8, 8), (1, 28, 28), (3, 33, 20), (5, 96, 64)]
adversarial = partial(Adversarial, adversarial=0.7, start=0, channels=(4, 6))


def make(latent=None, condition=None, network=None):
    network = network or MLP((3,), "tanh")
    vae = VAE(SHAPE, network, latent or Gaussian(2), Normal(0.3), None, condition).double()
    return randomize(vae, 0.3)


def pictures(count=3, shape=SHAPE):
    return torch.rand(count, *shape, dtype=torch.float64)


def met(objective, vae, x, estimator=None):
    """An objective that has a discriminator's weights and averages of a step."""
    objective.double()(vae, estimator or Reparameterization(), x)
    if isinstance(objective, Adversarial):
        randomize(objective.discriminator, 0.5)
        objective(vae, estimator or Reparameterization(), x)
    vae.zero_grad(), objective.zero_grad()
    return objective.eval()


# The distance


NETWORKS = [None, "multiscale"]


@pytest.mark.parametrize("features", NETWORKS)
@pytest.mark.parametrize("shape", SHAPES)
def test_equal_pictures_are_at_no_distance_and_have_a_gradient(shape, features):
    found = FeatureDistance(features).double()
    x = pictures(2, shape)
    for flat in (x, torch.zeros_like(x), torch.ones_like(x)):
        y = flat.clone().requires_grad_()
        d = found(flat, y)
        (gradient,) = torch.autograd.grad(d.sum(), y)
        assert d.shape == (2,) and not d.any() and not gradient.any()
    one, other = (found(x, (x + scale * torch.randn_like(x))) for scale in (0.05, 0.5))
    assert (0 < one).all() and (one < other).all()
    assert features or (other <= 2).all()


@pytest.mark.parametrize("features", NETWORKS)
def test_the_distance_has_the_gradient_of_its_definition(features):
    x, y = pictures(2, (1, 8, 8))
    found = FeatureDistance(features).double()
    assert torch.autograd.gradcheck(found, (x, y.requires_grad_()), eps=1e-6, atol=1e-5)


def test_leading_axes_broadcast_and_every_channel_counts():
    found = FeatureDistance().double()
    x, y = pictures(2), pictures(10).unflatten(0, (5, 2))
    each = torch.stack([torch.stack([found(x[b], y[s, b]) for b in range(2)]) for s in range(5)])
    torch.testing.assert_close(found(x, y), each)
    by_channel = torch.stack([found(x[:, c, None], y[:, :, c, None]) for c in range(2)])
    torch.testing.assert_close(found(x, y), by_channel.mean(0))


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 20)])
def test_at_several_scales_errors_are_relative_to_the_picture(shape):
    x, y = pictures(2, (2, *shape))
    trunk, errors = copy.deepcopy(shipped().trunk).double(), []
    for size in (1, 0.5, 0.25):
        maps = [F.interpolate(p, scale_factor=size, mode="area") for p in (x, y)]
        maps = [p.flatten(0, 1).unsqueeze(1) for p in maps]  # each colour by itself
        for layer in (trunk[:4], trunk[4:8], trunk[8:11]):
            maps = [layer(p) for p in maps]
            a, b = (p.unflatten(0, (2, -1)) for p in maps)  # [B, C, F, h, w]
            lengths = ((d**2).sum(2).flatten(1).mean(1) for d in (a - b, a))
            errors.append(next(lengths) / (next(lengths) + 0.01))
    found = FeatureDistance("multiscale").double()
    torch.testing.assert_close(found(x, y), torch.stack(errors).mean(0))
    torch.testing.assert_close(found(x, y.expand(3, *y.shape))[1], found(x, y))


def test_its_network_is_a_constant():
    objective = Perceptual()
    assert not [*objective.parameters()] and not objective.distance.state_dict()
    copied = copy.deepcopy(objective).double().train()
    (network,) = copied.distance._constant
    assert next(network.parameters()).dtype == torch.float64 and not network.training
    assert next(objective.distance._constant[0].parameters()).dtype == torch.float32


@pytest.fixture
def vgg(monkeypatch):
    """VGG16 with random weights."""
    import torchvision

    torch.manual_seed(0)
    made = torchvision.models.vgg16(weights=None)
    monkeypatch.setattr("torchvision.models.vgg16", lambda weights: made)


def test_lpips_is_torchmetrics(vgg):
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity as LPIPS

    x, y = torch.rand(2, 3, 3, 40, 33).unbind()
    theirs = LPIPS("vgg", reduction="mean", normalize=True)
    before = torch.get_rng_state()
    found = FeatureDistance("lpips")
    assert torch.equal(torch.get_rng_state(), before)
    torch.testing.assert_close(found(x, y).mean(), theirs(x, y))
    for shape in [(1, 8, 8), (2, 20, 40), (3, 32, 32)]:
        x = torch.rand(2, *shape)
        y = x.clone().requires_grad_()
        d = found(x, y)
        d.sum().backward()
        assert not d.any() and y.grad.isfinite().all() and (found(x, 1 - x) > 0).all()
    assert not Perceptual(features="lpips").state_dict()


def test_lpips_that_cannot_be_had(monkeypatch):
    def offline(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr("torchmetrics.image.lpip.LearnedPerceptualImagePatchSimilarity", offline)
    with pytest.raises(FileNotFoundError, match="VGG16 .*no route to host.*features=null takes"):
        FeatureDistance("lpips")
    monkeypatch.setitem(__import__("sys").modules, "torchmetrics.image.lpip", None)
    with pytest.raises(ImportError, match="pip install torchmetrics torchvision"):
        FeatureDistance("lpips")
    with pytest.raises(ValueError, match="features must be None, multiscale or lpips, got 'vgg'"):
        Perceptual(features="vgg")
    assert module.EPS > 0


@pytest.mark.parametrize("shape", [(1, 6, 8), (3, 24, 17)])
def test_ssim_is_torchmetrics(shape):
    from torchmetrics.functional.image import structural_similarity_index_measure as ssim

    x = pictures(3, shape)
    y = (x + 0.2 * torch.randn_like(x)).clamp(0, 1)
    theirs = ssim(x, y, data_range=1.0, reduction="none")
    torch.testing.assert_close(structural_similarity(x, y), theirs)
    torch.testing.assert_close(structural_similarity(x, x), torch.ones_like(theirs))
    assert (structural_similarity(x, y) < 0.99).all()
    with pytest.raises(ValueError, match=r"SSIM needs 6 x 6 pixels, got \[5, 12\]"):
        structural_similarity(pictures(1, (1, 5, 12)), pictures(1, (1, 5, 12)))


# The objectives

BOTH = [Perceptual, adversarial]


@pytest.mark.parametrize("objective", BOTH)
def test_the_logged_terms_are_those_of_the_elbo(objective):
    vae, x = make(Bernoulli(3)), pictures()
    found = met(objective(beta=0.5), vae, x, Exact())(vae, Exact(), x)
    plain = ELBO(beta=0.5)(vae, Exact(), x)
    for name in ("elbo", "reconstruction", "kl"):
        torch.testing.assert_close(getattr(found, name), getattr(plain, name))
    assert (found.objective - plain.objective).abs().min() > 1e-3


def expected(vae, x, objective):
    """E_q of what is added to log p(x|z), by enumeration, [B]."""
    q = vae.encode(x)
    z = vae_lab.distributions.support(q)
    mean = vae.likelihood.mean(vae.decode(z))
    gain = -objective.perceptual.value * math.prod(SHAPE) * objective.distance(x, mean)
    if isinstance(objective, Adversarial):
        own, other = objective.squared_norms
        logit = objective.discriminator(mean).mean(-1)
        gain = gain + objective.adversarial * (own / other).sqrt() * logit
    return (q.log_prob(z).exp() * gain).sum(0)


@pytest.mark.parametrize("objective", BOTH)
def test_value_and_gradient_are_those_of_the_expectation(objective):
    vae, x = make(Bernoulli(3)), pictures()
    objective = met(objective(), vae, x, Exact())
    wanted = ELBO()(vae, Exact(), x).objective + expected(vae, x, objective)
    torch.testing.assert_close(objective(vae, Exact(), x).objective, wanted)
    parameters = [p for p in vae.parameters() if p.requires_grad]
    exact = torch.cat([g.flatten() for g in torch.autograd.grad(wanted.mean(), parameters)])
    torch.testing.assert_close(gradients(objective, vae, Exact(), x), exact)
    draws = gradient_draws(objective, vae, ScoreFunction(2), x, repeats=40, copies=15)
    assert z_scores(draws, exact).abs().max() < LIMIT


@pytest.mark.parametrize("objective", BOTH)
def test_labels_that_are_inferred(objective):
    """Two levels, of which the lower one decodes."""
    vae, x = make(Bernoulli(2), InferredLabels(3)), pictures()
    estimator = Levels(Exact(), Exact())
    objective = met(objective(), vae, x, estimator)
    found, plain = (o(vae, estimator, x) for o in (objective, ELBO()))
    torch.testing.assert_close(found.elbo, plain.elbo)
    q = vae.infer(x).q
    labels = vae_lab.distributions.support(q)
    each = [expected(vae.settled(y), x, objective) for y in labels]
    more = (q.log_prob(labels).exp() * torch.stack(each)).sum(0)
    torch.testing.assert_close(found.objective, plain.objective + more)


@pytest.mark.parametrize("estimator", [Reparameterization(2), ScoreFunction(2)])
def test_one_backward_pass_is_two(estimator):
    """The discriminator's gradient is that of its own loss, and the model leaves none in it."""
    vae, x = make(), pictures()
    objective = met(adversarial(), vae, x).train()
    discriminator = objective.discriminator
    torch.manual_seed(3)
    (-objective(vae, estimator, x).objective.mean()).backward()
    found = [p.grad for p in discriminator.parameters()]
    torch.manual_seed(3)
    z = vae.encode(x).rsample((2,))
    made = vae.likelihood.mean(vae.decode(z)).detach()
    loss = F.relu(1 - discriminator(x)).mean() + F.relu(1 + discriminator(made)).mean()
    torch.testing.assert_close(objective.logged(), {"discriminator_loss": loss.detach()})
    wanted = torch.autograd.grad(loss, [*discriminator.parameters()])
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b)


def test_the_models_gradient_leaves_none_in_the_discriminator():
    vae, x = make(), pictures()
    objective = met(adversarial(), vae, x)  # in evaluation mode it is not trained
    objective(vae, Reparameterization(), x).objective.sum().backward()
    assert all(p.grad is None for p in objective.discriminator.parameters())
    assert all(p.grad is not None for p in vae.parameters() if p.requires_grad)


def of_the_discriminator(objective, vae, x):
    """What the discriminator adds to the model's gradient."""
    torch.manual_seed(3)
    whole = gradients(objective, vae, Reparameterization(), x)
    torch.manual_seed(3)
    return whole - gradients(Perceptual().double(), vae, Reparameterization(), x)


def test_its_gradient_does_not_depend_on_the_discriminators_scale():
    vae, x = make(), pictures()
    objective = met(adversarial(), vae, x)
    found = []
    for scale in (1.0, 10.0):
        scaled = copy.deepcopy(objective).train()
        with torch.no_grad():
            for p in scaled.discriminator.layers[-1].parameters():
                p *= scale
        scaled.squared_norms.zero_()
        for _ in range(2):  # of the first one come the averages
            torch.manual_seed(4)
            scaled(vae, Reparameterization(), x)
        found.append(of_the_discriminator(scaled.eval(), vae, x))
    torch.testing.assert_close(*found)
    assert found[0].norm() > 1e-3


def test_the_adaptive_weight_makes_the_gradients_as_long_as_it_says():
    """With respect to what the decoder gives."""
    vae, x = make(), pictures()
    objective = adversarial(perceptual=0.0).double()
    met(objective, vae, x)
    objective.train().squared_norms.zero_()
    params = vae.decode(torch.randn(1, 3, 2)).detach().requires_grad_()
    level = vae.infer(x)
    at = level._replace(observed=level.observed._replace(decode=lambda z: params))
    for _ in range(2):
        objective._ratio = objective.squared_norms[0].sqrt() / objective.squared_norms[1].sqrt()
        objective._squares = []
        terms = objective._terms(at, Reparameterization())
        objective._move_on(objective._squares[0])
    log_px = vae.likelihood.log_prob(params, x)
    (own,) = torch.autograd.grad(log_px.sum(), params)
    (both,) = torch.autograd.grad(terms.objective.sum(), params)
    torch.testing.assert_close((both - own).norm(), 0.7 * own.norm())


def test_the_decoder_sees_it_from_its_step_on_and_it_is_trained_from_the_first():
    vae, x = make(), pictures()
    objective = met(adversarial(start=5), vae, x)
    schedule = vae_lab.schedules.schedules(objective)["adversarial_weight"]
    schedule.set_step(4)
    assert not of_the_discriminator(objective, vae, x).any()
    objective.train()(vae, Reparameterization(), x).objective.sum().backward()
    assert nn.utils.get_total_norm([p.grad for p in objective.discriminator.parameters()]) > 0
    schedule.set_step(5)
    assert of_the_discriminator(objective.eval(), vae, x).any()


@pytest.mark.parametrize("objective", BOTH)
def test_a_datum_does_not_notice_its_batch(objective):
    vae, x = make(FSQ([3, 2])), pictures(4)
    objective = met(objective(), vae, x, VectorQuantization())
    vae.eval()  # in training it is whitened by the batch
    together = objective(vae, VectorQuantization(), x)
    alone = [objective(vae, VectorQuantization(), x[i : i + 1]) for i in range(4)]
    for whole, parts in zip(together, zip(*alone, strict=True), strict=True):
        torch.testing.assert_close(whole, torch.cat(parts))


@pytest.mark.parametrize("objective", BOTH)
def test_weights_of_16_bits_leave_its_networks_in_32(objective):
    vae, x = make(), pictures()
    objective = met(objective(), vae, x).bfloat16().train()
    objective(vae.bfloat16(), Reparameterization(), x.bfloat16()).objective.sum().backward()
    trained = [*vae.encoder.parameters(), *vae.decoder.parameters(), *objective.parameters()]
    assert all(p.grad.isfinite().all() for p in trained)
    assert all(t.dtype == torch.float32 for t in objective.state_dict().values())


def test_a_discriminator_without_a_slope_adds_nothing():
    vae, x = make(), pictures()
    objective = met(adversarial(), vae, x).train()
    objective.squared_norms.copy_(torch.tensor([4.0, 0.0]))
    assert objective(vae, Reparameterization(), x).objective.isfinite().all()
    assert objective._ratio == 0


@pytest.mark.parametrize("objective", BOTH)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_16_bits_it_is_near_what_it_is_in_32(objective, dtype):
    torch.manual_seed(0)
    shape = (3, 16, 16)
    vae = VAE(shape, Grid((4, 6)), Gaussian(2), Normal(0.1)).eval()
    x, objective = torch.rand(3, *shape), objective().train()
    with torch.no_grad():
        vae.output_bias += 0.5
    found = []
    for enabled in (False, True):
        fresh = copy.deepcopy(objective)
        with torch.autocast("cpu", dtype, enabled=enabled):
            for _ in range(2):
                torch.manual_seed(1)
                vae.zero_grad()
                terms = fresh(vae, Reparameterization(), x)
        terms.objective.sum().backward()
        found.append(vae.output_bias.grad)
        assert terms.objective.dtype == torch.float32
        assert all(p.grad.isfinite().all() for p in fresh.parameters())
    assert torch.cosine_similarity(*(g.flatten() for g in found), dim=0) > 0.99


@pytest.mark.parametrize("objective", BOTH)
def test_compiled_equals_eager(objective):
    vae, x = make(), pictures()
    objective = met(objective(), vae, x)
    compiled = copy.deepcopy(objective)
    compiled.compile(backend="eager")
    torch.manual_seed(3)
    one = gradients(objective, vae, Reparameterization(), x)
    torch.manual_seed(3)
    torch.testing.assert_close(gradients(compiled, vae, Reparameterization(), x), one)


# Training

X = torch.rand(60, 1, 8, 8, generator=torch.Generator().manual_seed(0))
QUICK = {"network": MLP((8,)), "latent": Gaussian(2), "likelihood": "gaussian"}
QUICK |= {"epochs": 2, "batch_size": 20, "progress": False}
SMALL = Adversarial(start=2, channels=(4, 6))


def weights(vae):
    return torch.cat([p.flatten() for p in vae.parameters()])


@pytest.mark.parametrize(
    "plain", [Perceptual(perceptual=0), Adversarial(perceptual=0, adversarial=0)]
)
def test_without_weight_a_run_is_the_elbos(plain):
    vae, elbo = (vae_lab.fit(X, objective=o, **QUICK) for o in (plain, "elbo"))
    assert torch.equal(weights(vae), weights(elbo)) and vae.history == elbo.history
    assert not [*plain.parameters()]


def test_the_first_weights_are_those_of_the_elbo():
    firsts = []
    for objective in (ELBO, Adversarial, Perceptual):
        shipped.cache_clear()  # as in a new process
        torch.manual_seed(0)
        objective()
        firsts.append(torch.rand(3))
    assert torch.equal(*firsts[:2]) and torch.equal(*firsts[1:])


@pytest.mark.parametrize("objective", ["perceptual", "adversarial", SMALL])
def test_it_trains_by_its_name(objective):
    vae = vae_lab.fit(X, objective=objective, **QUICK)
    assert all(math.isfinite(row["val/elbo"]) for row in vae.history)
    assert not torch.equal(weights(vae), weights(vae_lab.fit(X, **QUICK)))


@pytest.mark.parametrize("objective", [Perceptual(), SMALL])
def test_the_newest_weights_are_those_of_the_model(objective):
    """The best val/elbo is of another one, and says nothing of what is maximised."""
    wild = QUICK | {"epochs": 8, "lr": 0.3, "lr_decay": "none", "objective": objective}
    wild["patience"] = 1
    vae = vae_lab.fit(X, val=X[:20], **wild)
    elbos = [row["val/elbo"] for row in vae.history]
    assert elbos[-1] < max(elbos)
    assert len(elbos) == 8
    del wild["patience"]
    assert torch.equal(weights(vae), weights(vae_lab.fit(X, val_size=0, **wild)))


def test_an_interrupted_training_goes_on_bit_for_bit(tmp_path, monkeypatch):
    whole = vae_lab.fit(X, objective=SMALL, **QUICK)
    run = vae_lab.fitting.training.Training.run

    def early(training, pause):
        return run(training, lambda t: pause(t) or t.at.step >= 4)

    with monkeypatch.context() as patch:
        patch.setattr(vae_lab.fitting.training.Training, "run", early)
        vae_lab.fit(X, objective=SMALL, file=tmp_path / "a.ckpt", **QUICK)
    resumed = vae_lab.fit(X, objective=SMALL, file=tmp_path / "a.ckpt", **QUICK)
    assert torch.equal(weights(resumed), weights(whole))
    resumed.save_pretrained(tmp_path / "release")
    names = VAE.from_pretrained(tmp_path / "release").state_dict()
    assert not [name for name in names if "discriminator" in name]


def test_its_discriminator_has_a_learning_rate_and_a_limit_of_its_own():
    vae, x = make(), pictures()
    objective = adversarial(discriminator_lr=0.3, discriminator_clip=1e-3)
    met(objective, vae, x).train()
    groups = parameter_groups(vae, objective, Reparameterization())
    assert [group.get("lr") for group in groups] == [None, 0.3]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    objective(vae, Reparameterization(), x).objective.mean().backward()
    norms = [nn.utils.get_total_norm([p.grad for p in g["params"]]) for g in groups]
    assert norms[1] > 1e-2
    for value, model in ((None, norms[0]), (norms[0].item() / 2, norms[0] / 2)):
        clip(optimizer, value)
        found = [nn.utils.get_total_norm([p.grad for p in g["params"]]) for g in groups]
        torch.testing.assert_close(found[0], model, rtol=1e-3, atol=0)
        torch.testing.assert_close(found[1].item(), 1e-3, rtol=1e-3, atol=0)
    (group,) = adversarial(discriminator_clip=None).parameter_groups()
    assert set(group) == {"params"}


@pytest.mark.parametrize("cls", [Perceptual, Adversarial])
@pytest.mark.parametrize(
    ("x", "likelihood", "line"),
    [
        (torch.rand(20, 4), Normal(), r"needs pictures .*, got data of shape \[4\]: use ELBO"),
        (
            X,
            Normal(standardize=True),
            r"needs .*, got data of shape \[1, 8, 8\] in any unit: use ELBO, or pass bytes, as ",
        ),
    ],
)
def test_what_is_no_picture_is_refused(cls, x, likelihood, line):
    with pytest.raises(ValueError, match=f"{cls.__name__} {line}"):
        vae_lab.fit(x, objective=cls(), **QUICK | {"likelihood": likelihood})


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: Perceptual(perceptual=-1), "perceptual must not be negative, got -1"),
        (
            lambda: Adversarial(adversarial=-0.5),
            "adversarial must be finite and not negative, got -0.5",
        ),
        (lambda: Adversarial(start=-1), "start must be a number of steps, got -1"),
        (
            lambda: Adversarial(channels=[]),
            r"channels must be a non-empty sequence of positive .*\[\]",
        ),
        (lambda: Adversarial(channels=32), "channels must be a non-empty sequence of positive "),
        (lambda: Adversarial(adversarial=math.inf), "adversarial must be finite and not negative"),
        (lambda: Adversarial(start=1.5), "start must be a number of steps, got 1.5"),
        (lambda: Adversarial(perceptual=math.inf), "perceptual must be finite, got inf"),
        (lambda: Adversarial(discriminator_lr=0), "discriminator_lr must be positive, got 0"),
        (lambda: Adversarial(discriminator_clip=-1), "discriminator_clip must be positive, got -1"),
        (lambda: PatchDiscriminator()(X[..., :7]), "3 layers needs pictures of 8 x 8 .*got 8 x 7"),
        (lambda: FeatureDistance()(X[0, 0], X[0, 0]), r"\[\*, C, H, W\], got \[8, 8\]"),
    ],
)
def test_refusals(make, line):
    with pytest.raises(ValueError, match=line):
        make()


def test_prints_as_the_call_that_makes_it():
    for objective in (Perceptual(perceptual=0.5), SMALL):
        assert repr(eval(repr(objective))) == repr(objective)


def test_early_stopping_has_nothing_to_wait_for(run, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run("objective=perceptual", "early_stopping=2", f"run_dir={tmp_path / 'run'}")
    said = capsys.readouterr().err
    assert "early_stopping=2 waits for a better val/elbo, which perceptual does not look" in said
    assert said.count("\n") == 1 and not (tmp_path / "run").exists()
