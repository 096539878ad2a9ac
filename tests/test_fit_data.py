"""The data that vae_lab.fit takes: arrays, data sets, frames, labels; and what does not fit."""

from copy import deepcopy
from functools import partial

import numpy as np
import pandas
import pytest
import torch
from small_fits import QUICK, QUIET, X, same, small
from torch.utils.data import Dataset, TensorDataset

import vae_lab
from vae_lab.data.tables import to_columns
from vae_lab.fitting.given import read
from vae_lab.latents import Gaussian
from vae_lab.likelihoods import Columns
from vae_lab.objectives import ELBO


class Items(Dataset):
    def __init__(self, *items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


class Narrow(Gaussian):
    def __init__(self, width):
        super().__init__(width)


@pytest.mark.parametrize(
    "given",
    [
        X.numpy(),
        X.double().numpy()[:, ::-1][:, ::-1],
        X.bool(),
        X.int().numpy(),
        TensorDataset(X),
        TensorDataset(X, torch.zeros(len(X))),
        X.tolist(),
        X.numpy().astype(">f4"),
        Items(*X.flip(1).numpy()[:, ::-1]),
        Items(*X.numpy().astype(">f4")),
    ],
    ids=[
        *("array", "strides", "bits", "integers", "dataset", "labelled", "list", "big endian"),
        *("backwards", "big-endian dataset"),
    ],
)
def test_whatever_holds_the_numbers_gives_the_same_model(given):
    assert same(small(given), small(X))


def test_a_held_out_part_can_be_given():
    vae = small(X[:50], val=X[50:])
    assert vae.history[-1]["val/elbo"] != small(X[:50], val=X[40:50]).history[-1]["val/elbo"]
    assert vae.history[-1]["step"] == 6  # all 50 are trained on


def test_without_a_held_out_part_the_last_weights_count():
    vae = small(X, val_size=0)
    assert "val/elbo" not in vae.history[0] and not vae.training


PICTURES = (X.view(-1, 1, 2, 3) * 255).byte()


def test_pictures_are_bytes():
    vae = small(PICTURES)
    assert vae.shape == (1, 2, 3)
    assert torch.allclose(vae.sample(1).mean(), X.mean(), atol=0.2)


@pytest.mark.parametrize(
    "given",
    [PICTURES > 0, PICTURES.numpy() > 0, PICTURES.flip(-1).numpy()[..., ::-1]],
    ids=["bits", "array of bits", "backwards"],
)
def test_pictures_are_the_same_however_they_are_kept(given):
    assert same(small(given, likelihood=None), small(PICTURES, likelihood=None))


Y = torch.arange(len(X)) % 3


@pytest.mark.parametrize(
    "y",
    [
        Y.flip(0).numpy()[::-1],
        Y.numpy().astype(">i4"),
        Y.numpy().astype(np.uint32),
        Y.bfloat16(),
        Y.float().requires_grad_(),
        pandas.Series(Y.numpy()),
        Y.tolist(),
    ],
    ids=["backwards", "big endian", "unsigned", "bfloat16", "gradient", "series", "list"],
)
def test_labels_are_the_same_however_they_are_kept(y):
    assert same(small(X, y=y), small(X, y=Y))


def test_settings_may_be_numbers_of_numpy(tmp_path):
    plain = {"seed": 3, "epochs": 2, "patience": 5, "batch_size": 20, "lr": 0.25, "val_size": 0.25}
    numpys = {name: np.array(value)[()] for name, value in plain.items()}
    vae = small(X, **numpys | {"lr": np.float32(0.25), "file": tmp_path / "a.ckpt"})
    assert same(vae, small(X, **plain, file=tmp_path / "a.ckpt")) and same(vae, small(X, **plain))


def test_a_series_is_a_table_of_one_column():
    values = pandas.Series(np.random.default_rng(0).normal(size=60), name="a")
    vae = vae_lab.fit(values, **QUICK)
    assert same(vae, vae_lab.fit(values.to_frame(), **QUICK))
    assert vae.log_likelihood(values).shape == (60,)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ({"x": X[:, :0]}, r"an array must have the shape \[N, D\], .* got \[60, 0\]"),
        ({"x": np.array(["a", "b"])}, "an array must hold numbers, got <U1"),
        ({"x": X.view(-1, 1, 2, 3).byte()}, "bytes of 0 and 1 only"),
        ({"x": X + 1}, "Bernoulli needs values in"),
        ({"val": X[:, 1:]}, "val has 5 columns, there must be 6 or more"),
        ({"val": X[:, None]}, r"val must be data like x, .* of shape \[6\] each"),
        ({"val": torch.cat([X, X], 1)}, r"val must be data like x, .* \[6\] each, .* \[12\]"),
        ({"val": (X, Y)}, "val has labels, and x has none: pass y too"),
        ({"x": PICTURES, "columns": {"0": "rubbish"}}, "are those of a table, and x has pictures"),
        ({"x": PICTURES / 2, "columns": {"0": "rubbish"}}, "are those of a table, and x has pictu"),
        ({"columns": {"0": "poisson"}}, "has the kind 'poisson', and likelihood=Bern.* no kinds"),
        ({"x": X.to_sparse()}, r"x is a sparse tensor: type x.to_dense\(\)"),
        ({"y": Y.to_sparse()}, r"y is a sparse tensor: type y.to_dense\(\)"),
        ({"x": Items()}, "Items has no items"),
        ({"y": 3}, r"y must have the shape \[60\] or \[60, A\], got \[\]"),
        ({"val_size": "a"}, "val_size must be a count or a fraction, got 'a'"),
        ({"seed": "3"}, "seed must be an integer of 64 bits, got '3'"),
        ({"seed": 2**70}, "seed must be an integer of 64 bits, got 118"),
        ({"lr": "0.1"}, "lr must be positive and finite, got '0.1'"),
        ({"lr": None}, "lr must be positive and finite, got None"),
        ({"ema": "x"}, "ema must be a decay between 0 and 1, as 0.999, got 'x'"),
        ({"weight_decay": -1}, "weight_decay must be a number that is not negative, got -1"),
        (
            {"lr_warmup_steps": "a"},
            "lr_warmup_steps must be a number that is not negative, got 'a'",
        ),
        ({"y": torch.zeros(3)}, r"y must have the shape \[60\] or \[60, A\], got \[3\]"),
        ({"val_size": 60}, "leaves 0 to train on"),
        ({"val_size": -1}, "val_size must be a count or a fraction"),
        ({"val_size": 0, "patience": 3}, "patience=3 needs data that is held out"),
        ({"epochs": 0}, "epochs must be a positive integer, got 0"),
        ({"batch_size": 0}, "batch_size must be a positive integer, got 0"),
        ({"lr": -1}, "lr must be positive and finite, got -1"),
        ({"ema": 1.5}, "ema must be a decay between 0 and 1"),
        ({"lr_decay": "cosin"}, "lr_decay must be none or cosine, got 'cosin'"),
        ({"estimator": "reba"}, "unknown estimator 'reba'; did you mean REBAR"),
        ({"objective": "vimco"}, "unknown objective 'vimco'; known: ELBO, IWAE, MonteCarloELBO"),
        ({"latent": Narrow}, r"latent Narrow needs arguments: pass Narrow\(width\)"),
        ({"estimator": ELBO()}, "estimator must be one of ARM, .*, got ELBO"),
        ({"network": 3}, "network must be one of MLP, .* got 3"),
        ({"estimator": "rebar"}, "REBAR"),
    ],
)
def test_what_does_not_fit_is_one_line(arguments, line):
    with pytest.raises(ValueError, match=line) as error:
        small(**{"x": X} | arguments)
    assert "\n" not in str(error.value)


Z = np.c_[np.linspace(-1, 1, 80), np.arange(80) % 7]
COUNTED = [{"name": "a", "kind": "gaussian"}, {"name": "b", "kind": "poisson"}]


def with_one(value, row, count=80):
    x = np.tile(Z, (-(-count // 80), 1))[:count]
    x[row, 1] = value
    return x


@pytest.fixture(scope="module")
def counted():
    return vae_lab.fit(Z, likelihood=Columns(COUNTED), **QUICK)


@pytest.mark.parametrize("how", ["new", "goes on", "val", "attributes"])
@pytest.mark.parametrize(
    ("value", "row", "count"), [(-1, 55, 80), (np.nan, 54, 80), (-1, 999, 2000)]
)
def test_an_error_names_the_row_of_the_caller(counted, how, value, row, count):
    x = with_one(value, row, count)
    settings = {
        "new": {"x": x, "likelihood": Columns(COUNTED)},
        "goes on": {"x": x, "model": counted},
        "val": {"x": Z, "val": x, "likelihood": Columns(COUNTED)},
        "attributes": {"x": X, "y": with_one(np.nan, row % 60)[:60]},
    }[how]
    of = {"val": "^val: .*", "attributes": "^y is nan in "}.get(how, "^x: .*")
    with pytest.raises(ValueError, match=rf"{of}row {row % 60 if how == 'attributes' else row}\b"):
        vae_lab.fit(**settings, **QUIET)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ({"x": np.c_[Z, Z]}, r"x must have the shape \[B, 2\], got \[80, 4\]"),
        ({"x": Z[:, :1]}, r"x must have the shape \[B, 2\], got \[80, 1\]"),
        ({"val": np.c_[Z, Z]}, r"val must be data like x, .* of shape \[2\] each, .* \[4\]"),
        ({"y": np.arange(80) % 3}, "the model is not conditioned on y: leave out y, or model"),
        ({"val": (Z, np.arange(80) % 3)}, "val has labels, and x has none"),
        ({"columns": {"a": "rubbish"}}, "the model says what columns there are: leave out columns"),
    ],
)
def test_what_a_model_has_no_use_for_is_refused(counted, arguments, line):
    with pytest.raises(ValueError, match=line) as error:
        vae_lab.fit(**{"x": Z, "model": counted} | arguments, **QUIET)
    assert "\n" not in str(error.value)


def test_a_likelihood_of_columns_reads_a_frame():
    """By its names and its own order of values, not by what a guess would have been."""
    sizes = {"name": "size", "kind": "ordinal", "values": ["S", "M", "L"]}
    frame = {"more": Z[:60, 0], "size": ["M", "S", "L"] * 20}
    data, _ = read(frame, None, None, 0, None, likelihood=Columns([sizes]))
    assert data.stored[:3, 0].tolist() == [1, 0, 2] and data.shape == (1,)
    with pytest.raises(ValueError, match="the likelihood says what columns there are"):
        read(frame, None, None, 0, {"size": None}, likelihood=Columns([sizes]))


def test_a_model_takes_the_columns_that_were_kept():
    """And of a frame those of its names, as its other methods do."""
    x = np.random.default_rng(0).normal(size=(60, 4))
    vae = vae_lab.fit(x, val=x, columns={"1": None}, **QUICK)
    again = vae_lab.fit(x[:, [0, 2, 3]], model=vae, **QUIET)
    frame = {str(at): x[:, at] for at in range(4)}
    assert same(again, vae_lab.fit(frame, model=vae, **QUIET))
    for takes in (vae.log_likelihood, partial(vae_lab.fit, model=vae, **QUIET)):
        with pytest.raises(ValueError, match=r"got \[60, 4\]: type x\[..., \[0, 2, 3\]\]"):
            takes(x)


FRAME = {
    "age": np.array([31.0, 45.5, np.nan, 28.0, 60.2, 39.9] * 20),
    "sex": ["f", "m", "m", None, "f", "f"] * 20,
    "visits": [0, 3, 1, 7, 2, 0] * 20,
    "name": [f"person {row}" for row in range(120)],
    "group": ["a", "b", "c", "a", "b", "c"] * 20,
}


@pytest.fixture
def of_frame():
    return vae_lab.fit(FRAME, y="group", columns={"name": None, "age": "lognormal"}, **QUICK)


def test_a_frame_is_trained_on_and_read_by_its_names(of_frame):
    kinds = {column["name"]: column["kind"] for column in of_frame.likelihood.columns}
    assert kinds == {"age": "lognormal", "sex": "bernoulli", "visits": "ordinal"}
    assert of_frame.likelihood.missing and of_frame.condition.names == ["a", "b", "c"]
    y = [0, 1, 2] * 40
    q = of_frame.encode(FRAME, y=y)
    filled = of_frame.impute(FRAME, y=y)
    assert q.batch_shape == (120,) and not filled.isnan().any()
    values = to_columns(filled, of_frame.likelihood.columns)
    assert set(values["sex"]) == {"f", "m"} and values["age"][:2] == [31.0, 45.5]
    assert of_frame.sample(5, y=2).shape == of_frame.sample(5, y="c").shape == (5, 3)


def test_labels_condition_and_those_that_are_missing_are_inferred():
    x, y = torch.randn(100, 4), torch.arange(100) % 3
    given = vae_lab.fit(x, y=y, **QUICK)
    assert vae_lab.fit(x, y=y.numpy().astype(np.uint32), **QUICK).condition.classes == 3
    assert type(given.condition).__name__ == "Labels" and given.sample(2, y=1).shape == (2, 4)
    inferred = vae_lab.fit(x, y=torch.where(y == 0, -1, y), **QUICK)
    assert inferred.classify(x).shape == (100,)
    attributes = vae_lab.fit(x, y=torch.randn(100, 2), **QUICK)
    assert attributes.sample(3, y=[0.0, 1.0]).shape == (3, 4)
    assert vae_lab.fit(TensorDataset(x, y), **QUICK).condition is None


def test_numbers_of_any_unit_are_given_as_they_are():
    x = 1e4 + 1e3 * torch.randn(200, 3).numpy()
    vae = vae_lab.fit(x, epochs=30, batch_size=50, progress=False)
    assert abs(vae.sample(500).mean() - 1e4) < 300
    assert vae.encode(x.astype(int)).mean.shape == (200, 1)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            {},
            "column 'name' is text with 120 different values in 120 rows",
        ),
        ({"columns": {"nam": None}}, "x has no column 'nam'"),
        (
            {"columns": {"name": None, "age": "log"}},
            "column 'age' must be one of gaussian, .*'log'",
        ),
        ({"columns": {"name": None}, "y": "age"}, "column 'age' of x holds 31, and labels are cla"),
        ({"columns": {"name": None}, "y": "grup"}, "x has no column 'grup'; its columns: age, sex"),
    ],
)
def test_what_does_not_fit_of_a_frame_is_one_line(arguments, line):
    with pytest.raises(ValueError, match=line) as caught:
        vae_lab.fit(FRAME, **QUICK, **arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("x", "settings", "line"),
    [
        (X, {"y": np.array(["a", "b"] * 50)[: len(X)]}, "y must hold numbers, got <U1: number the"),
        (X, {"y": np.full(len(X), -2)}, "and -1 where there is no label, got -2"),
        (X, {"y": 10**6 * np.arange(len(X))}, "y has the label .*000000, of .* data: number the"),
        (Items({"x": 1}), {}, "item 0 of Items must be x or .* got dict"),
        (Items(torch.ones(2), torch.ones(3)), {}, r"the first has \[2\], item 1 \[3\]"),
        ([[1, 2], [3]], {}, "the rows of an array must be of one length"),
        (pandas.DataFrame({"a": [1, "x"] * 9}), {}, "a frame's column must hold one kind of value"),
        (X, {"epochs": "5"}, "epochs must be a positive integer, got '5'"),
        (X, {"device": "xpu:99"}, "device='xpu:99' cannot be had: "),
    ],
)
def test_what_cannot_be_trained_on_is_one_line(x, settings, line):
    with pytest.raises(ValueError, match=line) as caught:
        vae_lab.fit(x, **{"progress": False, "epochs": 1} | settings)
    assert "\n" not in str(caught.value)


def test_what_was_left_out_of_a_frame_is_not_looked_at_again():
    frame = FRAME | {"day": np.arange(120).astype("datetime64[D]")}
    without = {"name": None, "day": None, "group": None}
    vae = vae_lab.fit(frame, columns=without, **QUICK)
    assert torch.equal(vae.encode(frame).mean, vae.encode(FRAME).mean)
    vae_lab.fit(frame, model=vae, val=frame, **QUIET)


def test_a_model_keeps_the_classes_of_a_frame(of_frame):
    kept = {"name": None, "age": "lognormal"}
    again = {name: values[:2] * 10 for name, values in FRAME.items() if name != "age"}
    again["age"] = FRAME["age"][:20]
    of_others = again | {"group": again["group"][1:] + ["c"]}
    data, _ = read(of_others, "group", None, 0, None, of_frame)
    assert data.labels.tolist() == [1, 0] * 9 + [1, 2]
    with pytest.raises(ValueError, match="'group' of x has 'd', the training data only 'a', 'b',"):
        read(again | {"group": ["d"] * 20}, "group", None, 0, None, of_frame)
    of_numbers = deepcopy(of_frame)
    of_numbers.condition.names = None
    with pytest.raises(ValueError, match="y='group' has 2 classes, the model 3: pass labels as nu"):
        vae_lab.fit(again, y="group", model=of_numbers, **QUIET)
    vae = vae_lab.fit(FRAME, y=["visits", "group"], columns=kept, **QUICK)
    data, _ = read(again, ["visits", "group"], None, 0, None, vae)
    assert data.labels[:2].tolist() == [[0, 1, 0, 0], [3, 0, 1, 0]]


def test_columns_of_a_frame_are_attributes_and_keep_their_classes():
    """Also in data to validate on, which has not all of them."""
    val = {name: values[1:2] for name, values in FRAME.items()}
    settings = {"columns": {"name": None}, "val": val, **QUICK}
    data, held = read(FRAME, ["visits", "group"], val, 0.1, settings["columns"])
    assert data.condition.names == ["visits", "group=a", "group=b", "group=c"]
    assert held.labels.tolist() == [[3, 0, 1, 0]]
    vae = vae_lab.fit(FRAME, y=["visits", "group"], **settings)
    assert {c["name"] for c in vae.likelihood.columns} == {"age", "sex"}
    _, held = read(FRAME, "group", val, 0.1, settings["columns"])
    assert held.labels.tolist() == [1]
