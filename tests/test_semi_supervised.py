"""Labels that are latent variables where they are not known: M2."""

import pytest
import torch
from oracles import z_scores
from tiny import SHAPE, binary_images, randomize

from datamodules.digits import Digits
from datamodules.rows import hide_labels
from models import SemiSupervisedVAE
from vae_lab import VAE
from vae_lab.conditions import InferredLabels, Labels
from vae_lab.data import Batch, Prepare, TensorLoader
from vae_lab.data.stream import Tensors
from vae_lab.distributions import OneHotCategorical, support
from vae_lab.estimators import Exact, Reparameterization, ScoreFunction, catalog
from vae_lab.evaluation import evaluate
from vae_lab.evaluation.evidence import enumerated, importance_weighted
from vae_lab.latents import Bernoulli, Gaussian
from vae_lab.levels import Levels
from vae_lab.likelihoods import Bernoulli as Pixels
from vae_lab.metrics import LabelMetrics
from vae_lab.networks import MLP
from vae_lab.objectives import ELBO, IWAE, MonteCarloELBO
from vae_lab.optimization import label_weight

CLASSES = 3
LIMIT = 4.5  # standard errors, of hundreds of parameters
MIXED = torch.tensor([2, -1, 0, -1])
HIDDEN = torch.full((4,), -1)
Q = OneHotCategorical(logits=torch.zeros(2, CLASSES))
OF_LABELS = [cls for cls in catalog() if cls.accepts(Q) and cls.single_sample]


def semi(latent, prior=False):
    condition = InferredLabels(CLASSES, prior)
    vae = VAE(SHAPE, MLP((3,), "tanh"), latent, Pixels(), None, condition).double()
    return randomize(vae, 0.8)


def log_q_y(vae, x):
    return vae.condition.classify(vae.condition.features(vae.seen(x)))  # [B, K]


def elbo_by_hand(vae, x, y):
    """Sums over all labels and all bits, [B]; with log p(y) of what is known."""
    total, log_q = 0, log_q_y(vae, x)
    log_py = -torch.tensor(CLASSES).double().log()
    for label in range(CLASSES):
        given = vae.given(torch.full((len(x),), label), x)
        q, p = given.encode(x), given.p_z()
        z = support(q)
        log_w = given.log_px_z(x, z) + p.log_prob(z) - q.log_prob(z)
        elbo = (q.log_prob(z).exp() * log_w).sum(0)
        log_qy = log_q[:, label]
        unknown = log_qy.exp() * (elbo + log_py - log_qy)
        total = total + torch.where(y < 0, unknown, (y == label) * (elbo + log_py))
    return total


def gradient(value, vae):
    """Of all parameters, as one vector."""
    parameters = [p for p in vae.parameters() if p.requires_grad]
    found = torch.autograd.grad(value, parameters)
    return torch.cat([g.flatten() for g in found])


# The bound


@pytest.mark.parametrize("prior", [False, True])
@pytest.mark.parametrize("y", [None, HIDDEN, MIXED, MIXED.clamp_min(0)], ids=str)
@pytest.mark.parametrize("objective", [ELBO(), MonteCarloELBO()], ids=lambda o: type(o).__name__)
def test_the_bound_and_its_gradient_are_the_sum_over_labels(objective, y, prior):
    vae, x = semi(Bernoulli(2), prior), binary_images(4)
    terms = objective(vae, Exact(), x, y)
    wanted = elbo_by_hand(vae, x, HIDDEN if y is None else y)
    torch.testing.assert_close(terms.elbo, wanted)
    torch.testing.assert_close(terms.objective, wanted)
    torch.testing.assert_close(gradient(terms.objective.sum(), vae), gradient(wanted.sum(), vae))


def test_all_labels_known_is_the_conditional_bound_and_the_chance_of_a_label():
    vae, x, y = semi(Bernoulli(2)), binary_images(4), MIXED.clamp_min(0)
    conditional = VAE(SHAPE, MLP((3,), "tanh"), Bernoulli(2), Pixels(), None, Labels(CLASSES))
    state = {n: v for n, v in vae.state_dict().items() if not n.startswith("condition.")}
    conditional.double().load_state_dict(state)
    found = ELBO()(vae, Exact(), x, y).elbo
    wanted = ELBO()(conditional, Exact(), x, y).elbo - torch.tensor(CLASSES).double().log()
    torch.testing.assert_close(found, wanted)


def test_what_elbo_measures_is_the_bound_whatever_is_known():
    vae, x = semi(Bernoulli(1)), binary_images(4)
    for y in (None, MIXED):
        bound = vae.elbo(x, 20_000, y=y)
        wanted = elbo_by_hand(vae, x, HIDDEN if y is None else y)
        assert (bound.elbo - wanted).abs().max() < 0.1
        total = bound.reconstruction - bound.kl.sum(-1) - bound.label_kl
        torch.testing.assert_close(bound.elbo, total)


@pytest.mark.parametrize("prior", [False, True])
def test_the_evidence_is_the_sum_over_labels(prior):
    vae, x = semi(Bernoulli(2), prior), binary_images(4)
    joint = []
    for label in range(CLASSES):
        given = vae.given(label)
        z = support(given.encode(x))
        log_joint = given.log_px_z(x, z) + given.p_z().log_prob(z)
        joint.append(log_joint.logsumexp(0) - torch.tensor(CLASSES).double().log())
    joint = torch.stack(joint)
    torch.testing.assert_close(enumerated(vae, x), joint.logsumexp(0))
    torch.testing.assert_close(enumerated(vae.given(MIXED.clamp_min(0)), x)[0], joint[2, 0])
    assert (importance_weighted(vae, x, 30_000).bound - joint.logsumexp(0)).abs().max() < 0.2
    assert (vae.elbo(x, 2000).elbo < joint.logsumexp(0) + 0.1).all()


# Estimators


@pytest.mark.parametrize("make", OF_LABELS, ids=lambda make: make.__name__)
def test_every_estimator_of_labels_is_exact_or_unbiased_where_it_says_so(make):
    vae, x, y, copies = semi(Bernoulli(1)), binary_images(4), MIXED, 300
    estimator = Levels(make().double(), Exact())
    wanted = gradient(elbo_by_hand(vae, x, y).mean(), vae)
    many, known = x.repeat(copies, 1, 1, 1), y.repeat(copies)
    draws = []
    for _ in range(30):
        terms = ELBO()(vae, estimator, many, known)
        draws.append(gradient(terms.objective.mean(), vae))
        assert terms.elbo.isfinite().all()
    draws = torch.stack(draws)
    assert draws.isfinite().all()
    if estimator.first.unbiased is True:
        assert z_scores(draws, wanted).abs().max() < LIMIT


def test_a_classifier_learns_nothing_of_a_bound_whose_labels_are_known():
    vae, x = semi(Gaussian(2)), binary_images(4)
    for estimator in (Exact(), ScoreFunction(2)):
        levels = Levels(estimator, Reparameterization())
        value = ELBO()(vae, levels, x, MIXED.clamp_min(0)).objective.sum()
        (found,) = torch.autograd.grad(value, vae.condition.head.weight)
        assert not found.any()


def test_a_bound_of_many_samples_refuses_labels_that_are_latent():
    with pytest.raises(ValueError, match="IWAE takes all levels of z as one joint"):
        IWAE()(semi(Bernoulli(2)), Exact(), binary_images(4))


# The labels


def test_the_most_probable_label_stands_in_for_one_that_is_not_known():
    vae, x = semi(Gaussian(2)), binary_images(4)
    best = log_q_y(vae, x).argmax(-1)
    assert torch.equal(vae.classify(x), best)
    torch.testing.assert_close(vae.reconstruct(x), vae.reconstruct(x, y=best))
    mixed = torch.where(MIXED < 0, best, MIXED)
    torch.testing.assert_close(vae.reconstruct(x, y=MIXED), vae.reconstruct(x, y=mixed))
    with pytest.raises(ValueError, match="it needs y"):
        vae.decode(torch.zeros(4, 2))


def test_accuracy_counts_those_that_have_a_label():
    vae, x = semi(Gaussian(2)), binary_images(4)
    best = vae.classify(x)
    metrics = LabelMetrics(2, None, False)
    metrics.update(vae.elbo(x), None, None)
    y = best.clone()
    y[0], y[1] = (best[0] + 1) % CLASSES, -1
    metrics.update_labels(best, y)
    found = metrics.compute()
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert found["elbo"] == pytest.approx(found["reconstruction"] - found["kl"])
    metrics.reset()
    metrics.update(vae.elbo(x), None, None)
    metrics.update_labels(best, HIDDEN)
    assert "accuracy" not in metrics.compute()


def test_accuracy_is_measured_beside_the_bound():
    vae, x = semi(Gaussian(2)).float(), binary_images(60).float()
    y = vae.classify(x)
    y[:15] = (y[:15] + 1) % CLASSES
    found = evaluate(vae, [(x, y)], samples=20).metrics
    assert found["accuracy"].value == pytest.approx(0.75)
    assert found["kl"].value == pytest.approx(
        found["reconstruction"].value - found["elbo"].value, abs=1e-3
    )


# Data and command


def test_equally_many_labels_of_each_class_are_known_and_always_the_same():
    labels = torch.arange(3).repeat_interleave(torch.tensor([50, 30, 20]))
    data = Tensors(torch.zeros(100, 1, 2, 2, dtype=torch.uint8), labels)
    hidden = hide_labels(data, 10, seed=1).labels
    assert torch.equal(hidden[hidden >= 0], labels[hidden >= 0])
    assert hidden[hidden >= 0].bincount().tolist() == [4, 3, 3]
    assert torch.equal(hidden, hide_labels(data, 10, seed=1).labels)
    assert not torch.equal(hidden, hide_labels(data, 10, seed=2).labels)
    with pytest.raises(ValueError, match="labelled=63 are 21 of each class, .* 20 of class 2"):
        hide_labels(data, 63, seed=1)
    nothing = Tensors(data.images, torch.full_like(labels, -1))
    with pytest.raises(ValueError, match="labelled=10 needs data with labels, this has none"):
        hide_labels(nothing, 10, seed=1)


def test_only_training_labels_are_hidden():
    datamodule = Digits(labelled=20)
    datamodule.setup()
    assert (datamodule.train_labels() >= 0).sum() == 20
    assert all((next(iter(loader())).y >= 0).all() for loader in loaders(datamodule))


def loaders(datamodule):
    return datamodule.val_dataloader, datamodule.test_dataloader


SMALL = [
    *("network.hidden=[16]", "trainer=cpu", "trainer.max_epochs=2", "trainer.limit_val_batches=1"),
    *("trainer.limit_train_batches=4", "trainer.enable_progress_bar=false", "logger=csv"),
    *("report=false", "callbacks.pictures=null", "model.lr_warmup_steps=2"),
]


@pytest.mark.parametrize(
    "line", [[], ["model.label_estimator=sum_and_sample"], ["model.condition_prior=true"]], ids=str
)
def test_it_is_trained_tested_released_and_goes_on(run, tmp_path, capsys, line):
    model = ("model=semi_supervised_vae", "data.labelled=100", *line)
    run(*model, f"run_dir={tmp_path / 'run'}", *SMALL)
    assert "test/accuracy" in capsys.readouterr().out
    vae = VAE.from_pretrained(tmp_path / "run")
    assert vae.sample(4).shape == vae.sample(4, y=3).shape == (4, 1, 8, 8)
    run(f"resume={tmp_path / 'run'}", "trainer.max_epochs=3")
    run("task=test", f"checkpoint={tmp_path / 'run'}", "trainer=cpu")
    assert "test/accuracy" in capsys.readouterr().out


def test_what_is_said_before_it_trains_counts_the_batches_with_labels(run, tmp_path, capsys):
    """1200 data without a label, and 7 with one in each batch of 50: 28 batches in an epoch."""
    line = ("model=semi_supervised_vae", "data.labelled=100", f"run_dir={tmp_path / 'run'}")
    typed = [word for word in SMALL if "limit_" not in word and "max_epochs" not in word]
    run(*line, *typed, "trainer.max_epochs=1", "model.lr_warmup_steps=100")
    told = capsys.readouterr()
    assert "this run has 28 steps" in told.out + told.err


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"label_weight": -1}, "label_weight must not be negative, got -1"),
        ({"labelled_share": 1}, "labelled_share must be from 0 to below 1, got 1"),
    ],
)
def test_settings_are_checked(setting, message):
    model = SemiSupervisedVAE.__new__(SemiSupervisedVAE)
    with pytest.raises(ValueError, match=message):
        SemiSupervisedVAE.__init__(model, **setting)


@pytest.mark.parametrize("world_size", [1, 3])
def test_each_batch_has_labels_and_an_epoch_has_all_data(world_size):
    """Two labels among 60, and a quarter of a batch of 8."""
    x, y = torch.arange(60.0).view(60, 1), torch.full((60,), -1)
    y[[3, 7]] = torch.tensor([1, 0])

    def loader(rank=0, **settings):
        settings = {"labelled_share": 0.25, "stage": "train", "shuffle": True} | settings
        settings |= {"prepare": Prepare(), "rank": rank, "world_size": world_size}
        return TensorLoader(x, y, 8, **settings)

    ranks = zip(*(loader(rank) for rank in range(world_size)), strict=True)
    batches = [
        Batch(torch.cat([part.x for part in parts]), torch.cat([part.y for part in parts]), 0)
        for parts in ranks
    ]
    assert len(batches) == len(loader()) == 10  # 58 others, 6 in a batch
    assert all((batch.y >= 0).sum() == 2 for batch in batches)
    assert loader().labelled == pytest.approx(20 / 78)  # the last batch has four others
    seen = torch.cat([batch.x for batch in batches]).flatten()
    assert len(seen) == loader().num_images == 58 + 20
    assert seen.int().bincount(minlength=60).tolist() == [
        10 if row in (3, 7) else 1 for row in range(60)
    ]
    again = loader()
    again.set_epoch(1)
    assert not torch.equal(next(iter(again)).x, next(iter(loader())).x)
    # Where labels are many, or none, nothing is repeated.
    plain = torch.cat([batch.x for batch in loader(labelled_share=0.0)])
    assert torch.equal(torch.cat([batch.x for batch in loader(labelled_share=0.03)]), plain)
    y[:] = -1
    assert torch.equal(torch.cat([batch.x for batch in loader()]), plain)


def test_a_label_counts_as_much_however_often_it_is_drawn():
    """The mean log q(y|x) of the known labels, weighed by w, beside the mean bound of a datum."""
    y = torch.full((400,), -1)
    y[:10] = torch.arange(10) % 2
    log_q = torch.rand(400)
    means = []
    for share in (0.0, 0.2):
        loader = TensorLoader(
            torch.arange(400.0).view(400, 1),
            y,
            50,
            labelled_share=share,
            prepare=Prepare(),
            stage="train",
            shuffle=True,
        )
        alpha = label_weight(0.1, loader.labelled)
        drawn = torch.cat([batch.x for batch in loader]).flatten().long()
        known = drawn[y[drawn] >= 0]
        means.append(alpha * log_q[known].sum() / len(drawn))
    assert torch.stack(means).allclose(0.1 * log_q[:10].mean())


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["data.labelled=0"], "labelled must be at least 1, got 0"),
        (["data.labelled=5000"], "labelled=5000 are 500 of each class"),
        (["data.labelled=7"], "labelled=7 leaves 3 of 10 classes without a label: type "),
        (["model=gumbel_vae", "model.condition=labels", "data.labelled=50"], "got -1: -1 says"),
        (
            ["data=sprites", "data.image_size=16", "data.positions=4"],
            "model.condition=labels needs data with labels, and this has none",
        ),
        (["model.condition=attributes"], "model.condition must be labels, got 'attributes'"),
        (
            ["model.label_estimator=exakt"],
            "unknown model.label_estimator=exakt",
        ),
        (["model.label_estimator=arm"], "arm works with Bernoulli, got OneHotCategorical"),
    ],
)
def test_a_line_that_cannot_be_meant_leaves_nothing(run, tmp_path, capsys, line, message):
    folder = tmp_path / "run"
    with pytest.raises(SystemExit):
        run("model=semi_supervised_vae", *SMALL, f"run_dir={folder}", *line)
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
    assert not folder.exists()
