"""The whole evaluation, in a notebook and as a task."""

import json
import math
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas
import pytest
import torch
from tables import everything, of_kind
from test_distributed import in_processes
from test_faults import SMOKE, start
from test_runs import HOLD
from test_train import records
from tiny import SHAPE, LinearGaussian, binary_images, discrete_vae, log_evidence, randomize
from torch.utils.data import DataLoader, TensorDataset

from datamodules.digits import Digits
from datamodules.fashion_mnist import FashionMNIST
from datamodules.image_folder import ImageFolder
from tasks.evaluate import _write
from tasks.names import name_of
from tasks.same_data import differences, measured_on
from vae_lab import VAE, fit, pretrained, zoo
from vae_lab.conditions import Labels
from vae_lab.estimators import StraightThrough
from vae_lab.evaluation import Metric, evaluate, features, whole
from vae_lab.evaluation.distance import FeatureDistance, structural_similarity
from vae_lab.evaluation.results import plain
from vae_lab.evaluation.samples import frechet_distance, reconstruction_fid, sample_quality
from vae_lab.latents import Bernoulli, Categorical, Gaussian, Poisson
from vae_lab.likelihoods import Columns, ContinuousBernoulli
from vae_lab.likelihoods import Gaussian as Normal
from vae_lab.networks import MLP, Grid, Linear
from vae_lab.seeding import derive_seed, seed_generators
from vae_lab.storage.checkpoints import load_checkpoint, save_checkpoint
from vae_lab.storage.runs import read

SMALL = ["evaluate.samples=20", "evaluate.images=60", "evaluate.ais_images=3"]
SMALL += ["evaluate.ais_steps=3"]
NUMBERS = ("bound", "ais", "split")


def values(found):
    return {name: metric.value for name, metric in found.metrics.items()}


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


def test_grey_pixels_have_no_likelihood():
    vae = discrete_vae(Gaussian(2))
    found = evaluate(vae, [torch.rand(20, *SHAPE).double()], parts=["bound"], samples=2)
    assert "no likelihood" in found.metrics["log_likelihood"].note
    assert "bits_per_dimension" not in found.metrics
    assert {d.name: d.level for d in found.diagnosis}["grey pixels"] == "warning"


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


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run with an offline W&B, evaluated."""
    folder = tmp_path_factory.mktemp("evaluated")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("WANDB_MODE", "offline")
        start(patch, *SMOKE, "logger=wandb", "run_dir=x", "report=false", "model.latents=5")
        start(patch, "task=evaluate", "checkpoint=x", *SMALL)
    return folder


def test_a_run_is_evaluated_without_another_setting(runs):
    found = json.loads((runs / "x" / "evaluation.json").read_text())
    assert found["format"] == 1 and found["name"] == "x" and found["checkpoint"] == "x"
    assert found["command"].startswith("python train.py task=evaluate checkpoint=x")
    assert (found["data"], found["split"], found["images"]) == ("digits", "test", 60)
    assert found["commit"] and found["versions"]["torch"] == torch.__version__
    assert {
        *("elbo", "reconstruction", "kl", "log_likelihood", "bits_per_dimension", "train_elbo"),
        *("effective_samples", "dominated", "mutual_information", "total_correlation"),
        *(
            "marginal_kl",
            "prior_gap",
            "active_units",
            "code_perplexity",
            "code_usage",
            "relaxed_gap",
        ),
        *("fid", "precision", "recall", "linear_probe", "nearest_neighbours"),
    } <= found["metrics"].keys()
    assert found["metrics"]["elbo"].keys() == {"value", "standard_error", "unit", "note"}
    assert all(len(numbers) == 5 for numbers in found["per_latent"].values())
    assert "log likelihood" in (runs / "x" / "report.html").read_text()
    diagnosis = found["diagnosis"][0]
    assert diagnosis.keys() == {"name", "level", "because", "advice", "numbers"}


def test_another_checkpoint_of_it_has_a_place_of_its_own(runs, run, tmp_path):
    shutil.copytree(runs / "x", tmp_path / "x")
    before = [(tmp_path / "x" / name).read_bytes() for name in ("evaluation.json", "report.html")]
    last = Path("x", "checkpoints", "last.ckpt")
    checkpoint = load_checkpoint(last)  # of a run so short that it is the best one, too
    checkpoint["state_dict"]["vae.output_bias"] += 0.1
    save_checkpoint(checkpoint, last)
    run("task=evaluate", f"checkpoint={last}", *SMALL, "evaluate.parts=[bound]")
    after = [(tmp_path / "x" / name).read_bytes() for name in ("evaluation.json", "report.html")]
    assert before == after
    folder = tmp_path / "x" / "checkpoints" / "last"
    found = json.loads((folder / "evaluation.json").read_text())
    assert found["name"] == "x-last"
    assert found["sha256"] == pretrained.digest(VAE.from_pretrained(last))
    own = json.loads(before[0])
    assert own["sha256"] == pretrained.card("x")["sha256"] != found["sha256"]
    shown = (folder / "report.html").read_text()
    assert "x-last" in shown and f"{found['metrics']['elbo']['value']:.2f}" in shown
    shutil.copy(folder / "evaluation.json", "x")  # as if x had been trained further since
    assert read("x").evaluation == {} and read(folder, "x", sha256=found["sha256"]).evaluation
    assert not read(folder, "x", sha256=found["sha256"]).card.keys() & {"metrics", "step"}


def test_a_run_in_use_is_evaluated(runs, run, tmp_path):
    """Its W&B is left to the process that works there."""
    shutil.copytree(runs / "x", tmp_path / "x")
    (tmp_path / "x" / "evaluation.json").unlink()
    (tmp_path / "x" / ".lock").unlink()
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    hold = [sys.executable, "-c", HOLD, str(tmp_path / "x")]
    with subprocess.Popen(hold, **pipes) as other:
        assert other.stdout.readline() == b"locked\n"
        with pytest.warns(UserWarning, match="not sent to W&B: x is in use by process 4711"):
            run("task=evaluate", "checkpoint=x", *SMALL, "evaluate.parts=[bound]")
        other.kill()
    found = json.loads((tmp_path / "x" / "evaluation.json").read_text())
    assert found["metrics"].keys() >= {"elbo"} and not list((tmp_path / "x").glob("*.partial"))


def test_where_nothing_can_be_written_nothing_is_measured(run, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setattr("tasks.evaluate.evaluate", None)
    with pytest.raises(SystemExit):
        run("task=evaluate", "checkpoint=gaussian_vae-digits", "run_dir=file/x", *SMALL)
    assert "run_dir must be a folder to write in, got file/x" in capsys.readouterr().err


def test_samples_of_a_stochastic_run_are_compared_with_grey_images(run, tmp_path):
    line = ["checkpoint=gaussian_vae-digits", "data.binarize=stochastic", "run_dir=x", *SMALL]
    run("task=evaluate", *line, "evaluate.parts=[samples]", "report=false")
    found = json.loads((tmp_path / "x" / "evaluation.json").read_text())["metrics"]
    data = Digits().load()
    vae = VAE.from_pretrained("gaussian_vae-digits")
    seed_generators(derive_seed(0, "evaluate", "samples"))
    expected = sample_quality(vae, data.test[:60].float() / 255)
    assert {name: found[name]["value"] for name in expected} == pytest.approx(expected)
    assert found["fid"]["note"] == "60 samples, features of the shipped network"


def test_inception_is_a_setting(run, tmp_path, monkeypatch):
    class Inception(torch.nn.Module):
        def forward(self, x):
            return x.float().flatten(1)

    monkeypatch.setattr(features, "_inception", Inception)
    line = ["task=evaluate", "checkpoint=gaussian_vae-digits", "run_dir=x", "report=false", *SMALL]
    run(*line, "evaluate.parts=[samples]", "evaluate.features=inception")
    found = json.loads((tmp_path / "x" / "evaluation.json").read_text())["metrics"]
    assert found["fid"]["note"] == "60 samples, features of inception"
    assert found["fid"]["value"] > 1e4  # of bytes: the network was asked


def test_features_that_cannot_be_had_are_missed_at_once(monkeypatch):
    def missing():
        raise FileNotFoundError("no route to host")

    monkeypatch.setattr(features, "_inception", missing)
    vae, x, told = discrete_vae(Gaussian(2)), binary_images(60), []
    settings = {"samples": 2, "features": "inception", "progress": lambda *step: told.append(step)}
    with pytest.raises(FileNotFoundError, match="no route to host"):
        evaluate(vae, [x], **settings)
    assert told == []
    assert "elbo" in values(evaluate(vae, [x], parts=["bound"], **settings))  # has no use for them


def test_its_wandb_has_the_numbers(runs):
    found = [
        record for path in runs.glob("x/wandb/offline-run-*/*.wandb") for record in records(path)
    ]
    ids = {r.run.run_id for r in found if r.HasField("run")}
    assert ids == {(runs / "x" / "wandb-id.txt").read_text().strip()}
    logged = {i.nested_key[0] for r in found for i in r.history.item}
    assert {"val/elbo", "evaluation/log_likelihood", "evaluation/fid"} <= logged


def test_several_models_are_one_table(run, runs, tmp_path, capsys):
    names = "gaussian_vae-digits,gumbel_vae-digits"
    run("task=evaluate", f"checkpoint={names}", "run_dir=y", *SMALL, "evaluate.parts=[bound,ais]")
    said = capsys.readouterr().out
    lines = [line for line in said.splitlines() if "log_likelihood" in line]
    assert sum(line.count("+-") == 2 for line in lines) == 1
    both = json.loads((tmp_path / "y" / "evaluations.json").read_text())
    assert list(both) == names.split(",")
    for name in both:
        alone = json.loads((tmp_path / "y" / name / "evaluation.json").read_text())
        assert alone == both[name] and alone["name"] == name_of(name)
    assert "ais_gain" in both["gaussian_vae-digits"]["metrics"]
    assert not {"split", "fid"} & both["gaussian_vae-digits"]["metrics"].keys()


def test_runs_of_one_name_are_two(run, tmp_path):
    for folder, model in (("a", "gumbel_vae-digits"), ("b", "gaussian_vae-digits")):
        shutil.copytree(zoo.FOLDER / model, tmp_path / folder / "x")
    run("task=evaluate", "checkpoint=a/x,b/x", "run_dir=y", *SMALL, "evaluate.parts=[bound]")
    both = json.loads((tmp_path / "y" / "evaluations.json").read_text())
    assert list(both) == ["a-x", "b-x"]
    for name, found in both.items():
        assert json.loads((tmp_path / "y" / name / "evaluation.json").read_text()) == found
        assert found["name"] == name
    assert both["a-x"]["sha256"] != both["b-x"]["sha256"]


def test_runs_of_other_data_are_named(run, tmp_path, capsys):
    zoo_model = zoo.FOLDER / "gumbel_vae-digits"
    for name, binarize in (("a", "threshold"), ("b", "none")):
        shutil.copytree(zoo_model, tmp_path / name)
        card = json.loads((tmp_path / name / "config.json").read_text())
        card["data"] |= {"binarize": binarize, "seed": len(name + binarize), "root": "/of/mine"}
        (tmp_path / name / "config.json").write_text(json.dumps(card))
    line = ["task=evaluate", "run_dir=y", *SMALL, "evaluate.parts=[bound]"]
    run(*line, "checkpoint=a,b")
    said = capsys.readouterr().out
    assert "not the same data: nats cannot be compared (binarize)" in said
    assert re.search(r"binarize +. +threshold +. +none", said)
    run(*line, "checkpoint=a,b", "data=digits", "data.binarize=stochastic")
    assert "not the same data" not in capsys.readouterr().out


def test_only_what_decides_the_images_makes_data_another():
    def measured(data, likelihood=None):
        vae = SimpleNamespace(likelihood=likelihood or Normal(0.1))
        return measured_on(SimpleNamespace(datamodule=data, vae=vae))

    digits, folder = measured(Digits()), measured(ImageFolder(root="a"))
    same = Digits(seed=1, split_seed=1, batch_size=10, val_size=100, flip=True, crop=0.8)
    assert measured(same) == digits
    assert measured(FashionMNIST(root="a")) == measured(FashionMNIST(download=False))
    for other in (
        measured(Digits(binarize="stochastic")),
        measured(Digits(), ContinuousBernoulli()),
        folder,
    ):
        assert dict(differences([digits, other]))
    for changed in ({"root": "b"}, {"split_seed": 1}, {"image_size": 32}, {"test_size": 9}):
        other = measured(ImageFolder(**{"root": "a"} | changed))
        assert [name for name, _ in differences([folder, other])] == [*changed]


def test_a_folder_is_the_same_however_it_is_typed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pics").mkdir()
    vae = SimpleNamespace(likelihood=None)
    roots = ["pics", "./pics", str(tmp_path / "pics"), "not here"]
    data = [SimpleNamespace(datamodule=ImageFolder(root=root), vae=vae) for root in roots]
    first, *same, other = map(measured_on, data)
    assert same == [first, first] and other["root"] == "not here"


def test_two_processes_as_they_are_typed(run, tmp_path, monkeypatch):
    line = ["task=evaluate", "checkpoint=gaussian_vae-digits", *SMALL, "evaluate.parts=[bound]"]
    run(*line, "run_dir=one", "evaluate.images=150")
    two = ["trainer.accelerator=cpu", "trainer.devices=2", "trainer.strategy=ddp_fork"]
    prepared, setup = tmp_path / "prepared", Digits.setup

    def prepare(data):
        time.sleep(0.3)
        with prepared.open("a") as file:
            file.write(".")

    def set_up(data, stage):
        assert prepared.read_text() == "."  # once, and before anybody reads
        setup(data, stage)

    monkeypatch.setattr(Digits, "prepare_data", prepare)
    monkeypatch.setattr(Digits, "setup", set_up)
    run(*line, *two, "run_dir=two", "evaluate.images=150")
    one, two = (json.loads((tmp_path / n / "evaluation.json").read_text()) for n in ("one", "two"))
    assert one["metrics"] == two["metrics"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("checkpoint=gumbel_vae-digits,nothing", "no model at nothing"),
        ("checkpoint=gumbel_vae-digits data=mnist", "leave out data=..."),
        ("checkpoint=gumbel_vae-digits evaluate.samples=0", "evaluate.samples must be positive"),
        ("checkpoint=gumbel_vae-digits evaluate.features=vgg", "must be inception or null, got"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(run, tmp_path, capsys, line, message):
    with pytest.raises(SystemExit):
        run("task=evaluate", *line.split())
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_an_evaluation_without_a_metric_is_not_written(run, tmp_path, capsys):
    (tmp_path / "x").mkdir()
    file = tmp_path / "x" / "evaluation.json"
    file.write_text("of before")
    line = ["checkpoint=gumbel_vae-digits", "run_dir=x", "evaluate.parts=[ais]"]
    with pytest.raises(SystemExit):
        run("task=evaluate", *line, *SMALL)
    said = capsys.readouterr().err
    assert "ais measures nothing of gumbel_vae-digits: ais needs a Gaussian" in said
    assert file.read_text() == "of before"


def grid_vae(latent, likelihood=None):
    vae = VAE((3, 16, 16), Grid((4, 8)), latent, likelihood or Normal(0.3)).double()
    return randomize(vae, 0.2).eval()


@pytest.mark.parametrize("latent", [Gaussian(2), Categorical(1, 5), Bernoulli(3), Poisson(2)])
def test_a_grid_is_summed_up_by_channel_and_by_place(latent):
    x, y = torch.rand(60, 3, 16, 16), torch.arange(60) % 2
    found = evaluate(grid_vae(latent).float(), [(x, y)], train=[(x, y)], samples=4)
    names, channels = values(found), latent.num_variables // 16
    assert {len(numbers) for numbers in found.per_latent.values()} == {channels}
    maps = {name: torch.tensor(rows) for name, rows in found.per_place.items()}
    assert {tuple(rows.shape) for rows in maps.values()} == {(4, 4)}
    for name in ("kl", "marginal_kl"):
        assert sum(found.per_latent[name]) == pytest.approx(names[name], rel=1e-4)
        assert maps[name].sum().item() == pytest.approx(names[name], rel=1e-4)
    assert names["active_channels"] <= channels and "ais_log_likelihood" not in names
    assert {"fid", "precision", "linear_probe", "mse", "psnr"} <= names.keys()  # of colours, too
    assert ("code_usage" in names) == isinstance(latent, Categorical | Bernoulli)
    json.dumps(found.to_dict(), allow_nan=False)


def test_a_grid_is_annealed_if_asked():
    x = torch.rand(3, 3, 16, 16, dtype=torch.float64)
    found = evaluate(grid_vae(Gaussian(1)), [x], parts=["ais"], ais_images=2, ais_steps=3)
    assert "2 images" in found.metrics["ais_log_likelihood"].note


def test_the_errors_of_reconstructions():
    vae, x = grid_vae(Gaussian(2)), torch.rand(10, 3, 16, 16, dtype=torch.float64)
    names = values(evaluate(vae, [x], parts=["bound"], samples=2))
    mse = (vae.reconstruct(x) - x).square().flatten(1).mean(1)
    assert names["mse"] == pytest.approx(mse.mean().item())
    assert names["psnr"] == pytest.approx(-10 * mse.log10().mean().item())
    y = vae.reconstruct(x)
    assert names["ssim"] == pytest.approx(structural_similarity(x, y).mean().item())
    distance = FeatureDistance().double()(x, y)
    assert names["feature_distance"] == pytest.approx(distance.mean().item())
    binary = values(evaluate(discrete_vae(Gaussian(2)), [binary_images()], parts=["bound"]))
    assert "mse" in binary and not {"psnr", "ssim", "feature_distance"} & binary.keys()
    small = values(evaluate(vae.at(3, 4, 4), [x[..., :4, :4]], parts=["bound"]))
    assert "psnr" in small and "ssim" not in small


def test_the_distance_of_reconstructions_is_that_of_their_features():
    vae, x = grid_vae(Gaussian(2)).float(), torch.rand(60, 3, 16, 16)
    found = values(evaluate(vae, x.split(25), parts=["samples"]))
    y = vae.reconstruct(x)
    wanted = frechet_distance(features.extract(x), features.extract(y))
    assert found["rfid"] == pytest.approx(wanted, rel=1e-3) and wanted > 1
    assert reconstruction_fid(vae, x, y) < 1e-3


def test_the_bits_of_a_density_are_a_bound_on_those_of_bytes():
    """x = W z + b + noise: bytes with uniform noise cost no less than the mass that the density has
    in their bins, which is its integral there."""
    model = LinearGaussian(Gaussian(2))
    x = (255 * torch.rand(20_000, *SHAPE, dtype=torch.float64)).round() / 255
    found = evaluate(model.vae, [x], parts=["bound"], samples=2)
    bits = found.metrics["dequantized_bits_per_dimension"]
    model.x = (255 * x + 0.5) / 256  # bins so narrow that the density is even in them
    mass = 8 - model.log_evidence() / (4 * math.log(2))
    gap = (model.log_evidence() - model.elbo()) / (4 * math.log(2))
    assert gap.mean() > 0.01
    expected = (mass + gap).mean().item()
    assert bits.value == pytest.approx(expected, abs=4 * bits.standard_error)
    assert bits.value > mass.mean()
    assert "bits_per_dimension" not in found.metrics
    x[0] += 0.3 / 255  # no bytes
    found = evaluate(model.vae, [x.clamp(0, 1)], parts=["bound"], samples=2)
    assert "dequantized_bits_per_dimension" not in found.metrics


def test_numbers_stand_in_rows(tmp_path):
    content = {"a": [0.5, -1e-05, 3], "b": [[1.0, 2.0], [3.0, 4.0]], "c": ["[\n1,", None], "d": []}
    _write(tmp_path / "x.json", content)
    text = (tmp_path / "x.json").read_text()
    assert json.loads(text) == content
    assert '"a": [ 0.5, -1e-05, 3 ]' in text and "    [ 1.0, 2.0 ],\n" in text
