"""The whole evaluation, in a notebook."""

import json
import math

import numpy as np
import pandas
import pytest
import torch
from tables import everything, of_kind
from test_distributed import in_processes
from tiny import SHAPE, LinearGaussian, binary_images, discrete_vae, log_evidence, randomize, values
from torch.utils.data import DataLoader, TensorDataset

from vae_lab import VAE, fit
from vae_lab.conditions import Labels
from vae_lab.estimators import StraightThrough
from vae_lab.evaluation import Metric, evaluate, whole
from vae_lab.evaluation.results import plain
from vae_lab.latents import Bernoulli, Categorical, Gaussian, Poisson
from vae_lab.likelihoods import Columns, ContinuousBernoulli
from vae_lab.likelihoods import Gaussian as Normal
from vae_lab.networks import MLP, Linear

NUMBERS = ("bound", "ais", "split")


@pytest.mark.parametrize("latent", [Gaussian(2), Categorical(2, 3), Bernoulli(3), Poisson(2)])
def test_every_family(latent):
    vae, x = discrete_vae(latent), binary_images(30)
    vae.train()
    before = torch.get_rng_state()
    found = evaluate(vae, x.split(11), parts=NUMBERS, samples=20, ais_images=3, ais_steps=4)
    assert torch.equal(before, torch.get_rng_state()) and vae.training
    assert found.images == 30
    names = values(found)
    assert names["elbo"] == pytest.approx(names["reconstruction"] - names["kl"])
    parts = ("mutual_information", "total_correlation", "marginal_kl")
    assert sum(names[name] for name in parts) == pytest.approx(names["kl"])
    assert ("ais_log_likelihood" in names) == isinstance(latent, Gaussian)
    assert ("code_perplexity" in names) == isinstance(latent, Categorical | Bernoulli)
    assert names["bits_per_dimension"] == pytest.approx(
        -names["log_likelihood"] / (4 * math.log(2))
    )
    lists = found.per_latent
    assert all(len(numbers) == latent.event_shape[0] for numbers in lists.values())
    assert {"kl", "marginal_kl"} <= lists.keys()
    json.dumps(found.to_dict(), allow_nan=False)
    assert len(found.rows()) == len(names)


def copying(count=400):
    """A model of two columns that copies what it sees, and the mean (0) where it sees nothing."""
    vae = VAE((2,), Linear(), Gaussian(2), of_kind("gaussian", 2, missing=True))
    x = torch.randn(count, 2) * torch.tensor([3.0, 50.0]) + 10
    vae.initialize(x)
    with torch.no_grad():
        for part in (vae.head, vae.decoder[0]):
            part.weight.zero_()
            part.bias.zero_()
            part.weight[:2, :2] = torch.eye(2)
        vae.head.bias[2:] = -3
    return vae.eval(), x


def test_columns_have_errors_in_their_units():
    vae, x = copying()
    x[0, 0] = torch.nan
    found = values(evaluate(vae, [x], samples=2, parts=["bound"]))
    assert found["rmse_x0"] < 1e-4 and found["rmse_x1"] < 1e-3
    assert found["reconstruction_rmse"] < 1e-5
    assert 0.9 < found["imputation_rmse"] < 1.1  # what was hidden is not copied
    with torch.no_grad():
        vae.decoder[0].weight.zero_()  # always the mean
    found = values(evaluate(vae, [x], samples=2, parts=["bound"]))
    assert found["rmse_x1"] == pytest.approx(x[:, 1].std(correction=0).item(), rel=1e-4)
    assert found["reconstruction_rmse"] == pytest.approx(1, abs=1e-4)


def test_categories_have_an_accuracy():
    columns, x = everything()
    vae = VAE((x.shape[1],), MLP((4,)), Gaussian(2), Columns(columns))
    vae.initialize(x.float())
    with torch.no_grad():
        vae.decoder[-2].weight.zero_()
        vae.decoder[-2].bias.zero_()
    found = evaluate(vae.eval(), [x.float()], samples=2, parts=["bound", "samples"])
    often = {n: (x[:, n] == x[:, n].mode().values).double().mean().item() for n in (3, 4)}
    names = [column["name"] for column in columns]
    for place, share in often.items():
        name = f"accuracy_{names[place]}"
        assert values(found)[name] == pytest.approx(share)
        assert f"{share:.2f} by its most frequent value" in found.metrics[name].note
    assert not {"imputation_rmse", "mse", "psnr", "fid"} & set(found.metrics)
    assert found.left_out == found.to_dict()["left_out"] and "psnr" in found.left_out[0]
    assert evaluate(discrete_vae(Gaussian(2)), [binary_images()], samples=2).left_out == []
    codes = evaluate(discrete_vae(Categorical(2, 3)), [binary_images()], samples=2, ais_images=3)
    (line,) = codes.left_out
    assert line.startswith("annealed importance sampling, which needs z that can be any numbers")


def test_few_states_are_enumerated():
    vae, x = discrete_vae(Bernoulli(3)), binary_images(20)
    found = evaluate(vae, [x], parts=["bound"], samples=8)
    assert found.metrics["log_likelihood"].value == pytest.approx(
        log_evidence(vae, x).mean().item()
    )
    assert found.metrics["log_likelihood"].note == "exact, 8 states"
    assert (
        "importance"
        in evaluate(vae, [x], parts=["bound"], samples=7).metrics["log_likelihood"].note
    )


def test_an_evaluation_gives_every_part_its_own_mode_back():
    vae = discrete_vae(Bernoulli(3)).train()
    vae.encoder.eval()
    before = [part.training for part in vae.modules()]
    evaluate(vae, [binary_images(20)], parts=["bound"], samples=2)
    assert [part.training for part in vae.modules()] == before and len({*before}) == 2


def test_what_is_given_of_a_model_is_evaluated_in_its_mode_too(monkeypatch):
    modes = []
    own = whole.Measurement.__init__
    network, likelihood = MLP((3,)), ContinuousBernoulli()
    vae = VAE(SHAPE, network, Bernoulli(3), likelihood, condition=Labels(2)).train()

    def noted(self, *arguments):
        own(self, *arguments)
        modes.append(self.known.training)

    monkeypatch.setattr(whole.Measurement, "__init__", noted)
    y = torch.arange(20) % 2
    evaluate(vae, [(binary_images(20), y)], parts=["bound"], samples=2)
    assert modes == [False] and vae.training


def test_a_linear_gaussian_model_has_its_log_likelihood():
    model = LinearGaussian(Gaussian(2))
    x = torch.rand(150, *SHAPE, dtype=torch.float64)
    model.x = x
    exact = model.log_evidence().mean().item()
    found = evaluate(
        model.vae, x.split(64), parts=NUMBERS, samples=3000, ais_images=20, ais_steps=100
    )
    metrics = found.metrics
    assert metrics["log_likelihood"].value == pytest.approx(exact, abs=0.02)
    ais = model.log_evidence()[:20].mean().item()
    assert metrics["ais_log_likelihood"].value == pytest.approx(ais, abs=0.1)
    assert metrics["log_likelihood"].standard_error == pytest.approx(
        model.log_evidence().std().item() / math.sqrt(150), rel=0.1
    )
    assert metrics["elbo"].value == pytest.approx(model.elbo().mean().item(), abs=0.1)
    gain = metrics["ais_gain"]
    assert abs(gain.value) < 3 * gain.standard_error + 0.05
    assert "bits_per_dimension" not in metrics  # a density has none
    diagnosis = {d.name: d.level for d in found.diagnosis}
    assert diagnosis["importance weights"] == "fine" and "grey pixels" not in diagnosis


def test_the_noise_is_that_of_the_seed_and_of_the_place():
    vae, x = discrete_vae(Gaussian(2)), binary_images(150)

    def measured(batches, **settings):
        return values(evaluate(vae, batches, parts=("bound", "split"), samples=5, **settings))

    first = measured(x.split(50))
    assert measured(x.split(64)) == first
    assert measured(x.split(50), seed=1) != first
    assert measured([x], images=100)["elbo"] != first["elbo"]


def shared_work():
    torch.manual_seed(0)
    vae, x = discrete_vae(Gaussian(2)), binary_images(230)
    settings = {"samples": 10, "ais_images": 120, "ais_steps": 3}
    found = evaluate(vae, x.split(100), parts=NUMBERS, train=[x[:130]], **settings)
    return found.to_dict() | {"seconds": 0}


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_two_processes_find_what_one_finds(tmp_path):
    assert in_processes(2, tmp_path, shared_work) == [shared_work()] * 2


def test_progress_is_told():
    told = []
    vae, x = discrete_vae(Gaussian(2)), binary_images(150)
    evaluate(vae, [x], parts=["bound"], samples=2, progress=lambda *step: told.append(step))
    done = [(part, done, 150) for part in ("bound", "reconstructions") for done in (0, 100, 150)]
    assert told == done


def test_what_labels_and_factors_allow():
    vae = randomize(VAE((1, 1, 4), MLP((8,)), Gaussian(4), Normal(0.1)))
    with torch.no_grad():
        vae.encoder = torch.nn.Flatten()
        vae.head = torch.nn.Linear(4, 8)
        vae.head.weight.copy_(torch.cat([torch.eye(4), torch.zeros(4, 4)]))
        vae.head.bias.fill_(-2.0)
    y = torch.arange(400) % 4
    x = torch.nn.functional.one_hot(y, 4).float().reshape(-1, 1, 1, 4) * 0.9
    x = x + 0.01 * torch.rand_like(x)
    labelled, unlabelled = [(x, y)], [(x, torch.full_like(y, -1))]
    found = values(evaluate(vae, labelled, train=labelled, parts=["latents"]))
    assert found == {"linear_probe": 1.0, "nearest_neighbours": 1.0}
    wrong = torch.where(torch.arange(400) < 100, (y + 1) % 4, y)  # scored on the first, not fitted
    found = values(evaluate(vae, [(x, wrong)], train=labelled, parts=["latents"]))
    assert found == {"linear_probe": 0.75, "nearest_neighbours": 0.75}
    assert values(evaluate(vae, unlabelled, train=unlabelled, parts=["latents"])) == {}
    known = values(
        evaluate(
            vae, labelled, parts=["latents"], factors=lambda y: torch.stack([y // 2, y % 2], 1)
        )
    )
    assert {"mig", "sap", "dci_disentanglement"} <= known.keys()


def test_the_gap_to_the_training_images():
    """The training images' own ELBO, and whether it is above the others' by more than noise."""
    model = LinearGaussian(Gaussian(2))
    x = torch.rand(400, *SHAPE, dtype=torch.float64)
    model.x = x
    exact = model.elbo().detach()
    order = exact.argsort()

    def measured(test, train):
        settings = {"train": [x[train]], "parts": ["bound"], "samples": 100}
        found = evaluate(model.vae, [x[test]], **settings)
        levels = {d.name: d.level for d in found.diagnosis}
        return found.metrics["train_elbo"], found.metrics["elbo"], levels["overfitting"]

    best = order[200:]
    found, other, level = measured(order[:200], best)
    assert found.value == pytest.approx(exact[best].mean().item(), abs=0.5)
    assert found.standard_error == pytest.approx(exact[best].std().item() / 200**0.5, rel=0.4)
    assert other.value < found.value - 1 and level == "warning"
    found, other, level = measured(order[[0, 300]], order[[50, 399]])  # few: nobody can tell
    assert found.value - other.value > 0.1 * abs(other.value) and level == "fine"


def test_the_gap_of_relaxed_samples():
    """Of an estimator whose points promise two nats too much, on every image."""

    class Rosy(StraightThrough):
        unbiased = False

        def estimate(self, q, f, aggregate, context):
            return super().estimate(q, f, aggregate, context) + 2

    class Relaxed(Rosy):
        relaxed_points = True

    vae, x = discrete_vae(Bernoulli(3)), binary_images(200)

    def gap(estimator):
        found = evaluate(vae, [x], estimator=estimator, parts=["split"])
        return found.metrics.get("relaxed_gap")

    found = gap(Relaxed())
    assert found.value == pytest.approx(2, abs=4 * found.standard_error)
    assert found.standard_error < 0.3
    assert gap(Rosy()) is gap(None) is None  # nothing is relaxed


def test_what_else_is_known_is_advised_on():
    vae, x = discrete_vae(Bernoulli(3)), binary_images(20)
    found = evaluate(vae, [x], parts=["split"], known={"temperature": 1e-3})
    assert {d.name: d.level for d in found.diagnosis}["temperature"] == "warning"


def test_a_decoder_that_does_not_look():
    vae, x = discrete_vae(Gaussian(2)), binary_images(50)
    with torch.no_grad():
        for p in vae.decoder.parameters():
            p.zero_()
    found = evaluate(vae, [x], parts=("bound", "split"), samples=50)
    assert found.diagnosis[0].name == "decoder ignores z"
    assert found.metrics["reconstruction_gain"].value == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"parts": ["bound", "tables"]}, "parts must be some of bound, ais, .* got tables"),
        ({"parts": "bond"}, "parts must be some of bound, ais, .* got bond"),
        ({"samples": 0}, "samples must be at least 1, got 0"),
        ({"images": 0}, "images must be at least 1, got 0"),
        ({"ais_images": -1}, "ais_images must not be negative, got -1"),
    ],
)
def test_refusals(settings, message):
    with pytest.raises(ValueError, match=message):
        evaluate(discrete_vae(Gaussian(2)), [binary_images(3)], **settings)


def test_other_images_are_refused():
    with pytest.raises(
        ValueError, match=r"x must have the shape \[B, 1, 2, 2\], got \[3, 1, 8, 8\]"
    ):
        evaluate(discrete_vae(Gaussian(2)), [torch.rand(3, 1, 8, 8)])
    with pytest.raises(ValueError, match="an evaluation needs images, got none"):
        evaluate(discrete_vae(Gaussian(2)), [])


@pytest.fixture(scope="module")
def of_table():
    x = torch.randn(60, 2)
    return fit(x, network=MLP((8,)), epochs=1, progress=False), x


@pytest.mark.parametrize(
    "form",
    [
        lambda x: x,
        lambda x: x.numpy(),
        lambda x: [x.flip(1).numpy()[:, ::-1]],
        lambda x: [(x.numpy(), np.arange(60)[::-1])],
        lambda x: pandas.DataFrame(x.numpy(), columns=["0", "1"]),
        lambda x: [{"1": some[:, 1].numpy(), "0": some[:, 0].numpy()} for some in x.split(25)],
        TensorDataset,
        lambda x: DataLoader(TensorDataset(x), 25),
    ],
    ids=["tensor", "array", "arrays", "labelled", "frame", "mappings", "dataset", "loader"],
)
def test_it_takes_what_fit_takes(of_table, form):
    vae, x = of_table
    wanted = values(evaluate(vae, [x], parts=["bound"], samples=2, train=[x]))
    found = values(evaluate(vae, form(x), parts="bound", samples=2, train=form(x)))
    assert found == pytest.approx(wanted, rel=1e-6) and "log_likelihood" in found


def test_plain_types_and_text():
    assert plain({"a": (math.nan, 1.0, [math.inf])}) == {"a": [None, 1.0, [None]]}
    assert str(Metric(-236.0123, 0.7712, "nats")) == "-236.01 +- 0.77 nats"
    assert str(Metric(7.0)) == "7"
