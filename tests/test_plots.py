"""Tables, vectors and series as plots: what they show, in the user's units and names."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import spearmanr
from tables import PLOTTED, SCHEMA, mixed, plotted

from vae_lab import VAE, pictures
from vae_lab.drawing import columns, gallery
from vae_lab.drawing.kinds import figures_of
from vae_lab.latents import Bernoulli, Categorical, Gaussian, Poisson
from vae_lab.likelihoods import Columns
from vae_lab.networks import MLP

ALWAYS = {"reconstructions", "samples", "interpolation", "traversals", "aggregate_posterior"}
SERIES = ("series", "text")


def draw(vae, x, folder, y=None):
    return gallery.draw(vae, x, torch.full((len(x),), -1) if y is None else y, folder)


@pytest.mark.parametrize("kind", PLOTTED)
def test_every_kind_of_data_has_its_figures(tmp_path, kind):
    vae, x = plotted(kind, Gaussian(2))
    files = draw(vae, x, tmp_path)
    more = set() if kind in (*SERIES, "one number") else {"correlations"}
    assert set(files) == ALWAYS | more | {"latent_map"}
    assert set(files) <= set(gallery.captions(vae.shape))
    for path in files.values():
        with Image.open(path) as image:
            assert min(image.size) > 100 and np.ptp(np.asarray(image)) > 100
            assert max(image.size) < 2500


@pytest.mark.parametrize("kind", ["table", "series"])
@pytest.mark.parametrize("latent", [Categorical(2, 3), Bernoulli(3), Poisson(2)])
def test_every_kind_of_latent_moves_it(tmp_path, drawn, kind, latent):
    vae, x = plotted(kind, latent)
    draw(vae, x, tmp_path)
    assert set(drawn) >= ALWAYS


@pytest.fixture
def table(tmp_path, drawn):
    """A model of a table, its data, and the figures."""
    vae, x = plotted("table", Gaussian(2))
    draw(vae, x, tmp_path)
    return vae, x, drawn


def test_samples_are_beside_the_data(table):
    vae, x, drawn = table
    age, pay, town, kids, _ = drawn["samples"].axes[:5]
    assert town.get_title() == f"town  {x[:, 2].isnan().float().mean():.0%} missing"
    known = x[:, 2][~x[:, 2].isnan()]
    *bars, model = town.patches
    shares = [(known == k).float().mean().item() for k in range(3)]
    assert [bar.get_height() for bar in bars] == pytest.approx(shares)
    assert sum(model.get_data().values) == pytest.approx(1)
    assert [t.get_text() for t in town.get_xticklabels()] == ["Rome", "Paris", "Ulm, at t."]
    assert pay.get_title().startswith(r"pay in \$") and pay.get_xscale() == "log"
    heights, edges, _ = age.patches[0].get_data()
    known = x[:, 0][~x[:, 0].isnan()].numpy()
    expected = np.histogram(known, edges)[0] / len(known)
    np.testing.assert_allclose(heights, expected)
    assert heights.sum() == pytest.approx(1, abs=0.05)
    assert (np.diff(kids.patches[0].get_data().edges) == 1).all()  # a bar for each count


def test_reconstructions_are_against_the_observed_values(table):
    vae, x, drawn = table
    age, _, town, *_ = drawn["reconstructions"].axes
    seen, found = ~x[:, 0].isnan(), vae.reconstruct(x)
    points = age.collections[0].get_offsets()
    np.testing.assert_allclose(points, torch.stack([x[:, 0], found[:, 0]], 1)[seen], rtol=1e-4)
    r = np.corrcoef(points.T)[0, 1]
    assert age.get_title() == f"age  r = {r:.2f}"
    shares, seen = town.images[0].get_array(), ~x[:, 2].isnan()
    right = (found[:, 2] == x[:, 2])[seen].float().mean()
    assert town.get_title() == f"town  {right:.0%} right"
    paris = x[:, 2] == 1
    np.testing.assert_allclose(
        shares[:, 1], [(found[paris, 2] == k).float().mean() for k in range(3)]
    )


def test_a_traversal_is_the_mean_of_each_column(table):
    """A row of panels for each variable, a column for each column of the table."""
    vae, x, drawn = table
    q = vae.encode(x)
    unit = vae.latent.kl(q).mean(0).argmax().item()
    images = pictures.traversals(vae, vae.latent.mode(q)[0], [unit])[0]  # [V, D]
    axes = np.array(drawn["traversals"].axes).reshape(-1, 5)
    assert [axis.get_title() for axis in axes[0]][:1] == ["age"]
    assert axes[0, 0].get_ylabel().startswith(f"$z_{{{unit}}}$")
    np.testing.assert_allclose(axes[0, 0].lines[0].get_ydata(), images[:, 0], rtol=1e-4)
    np.testing.assert_allclose(axes[0, 1].lines[0].get_ydata(), images[:, 1], rtol=1e-4)
    assert axes[0, 0].get_ylim() == axes[-1, 0].get_ylim()
    assert [t.get_text() for t in axes[0, 0].get_xticklabels()][0] == "-3"
    stacked = axes[0, 2].collections
    assert len(stacked) == 3 and stacked[-1].get_datalim(axes[0, 2].transData).y1 == pytest.approx(
        1
    )


def test_codes_have_nothing_between_them(tmp_path, drawn):
    vae, x = plotted("table", Categorical(2, 3))
    draw(vae, x, tmp_path)
    age = drawn["traversals"].axes[0]
    assert age.lines[0].get_linewidth() == 0 and len(age.lines[0].get_xdata()) == 3


def test_interpolations_go_from_one_row_to_the_next(table):
    vae, x, drawn = table
    age = drawn["interpolation"].axes[0]
    line, ends = age.lines
    found = vae.reconstruct(x[:2])[:, 0]
    np.testing.assert_allclose(line.get_ydata()[[0, -1]], found, rtol=1e-4)
    np.testing.assert_allclose(ends.get_ydata(), x[:2, 0])


def test_correlations_are_spearmans():
    x = torch.randn(200, 4).double().numpy() @ np.random.default_rng(0).normal(size=(4, 4))
    np.testing.assert_allclose(columns.correlations(x), spearmanr(x).statistic, atol=1e-6)
    holes = x.copy()
    holes[::3, 0] = np.nan  # of which the others know nothing
    found = columns.correlations(holes)
    np.testing.assert_allclose(found[1:, 1:], columns.correlations(x)[1:, 1:], atol=1e-6)
    assert abs(found[0] - columns.correlations(x)[0]).max() < 0.15


def test_correlations_of_the_data_are_beside_the_models(table):
    vae, x, drawn = table
    data, model, _ = drawn["correlations"].axes
    names = [t.get_text() for t in data.get_yticklabels()]
    assert names[0] == "age" and "town: Paris" in names and "sex: m" in names and len(names) == 7
    assert data.images[0].get_array().shape == model.images[0].get_array().shape == (7, 7)
    paris = torch.where(x[:, 2].isnan(), x[:, 2], (x[:, 2] == 1).float())
    pair = columns.correlations(torch.stack([x[:, 0], paris], 1).double().numpy())[0, 1]
    assert data.images[0].get_array()[0, names.index("town: Paris")] == pytest.approx(pair)


def test_of_many_columns_those_that_have_to_do_with_others():
    x = torch.randn(300, 40)
    x[:, 30] = x[:, 7] + 0.1 * torch.randn(300)
    vae, _ = plotted("wide", Gaussian(2))
    found = columns.most_tied(columns.columns_of(vae), x.double().numpy(), 2)
    assert [column.place for column in found] == [7, 30]


def test_a_name_is_no_formula(tmp_path):
    names = ["$x_1$", r"\\frac{", "x" * 90, "a\nb", "", "_x", "%s", "{}"]
    own = [{"name": n, "kind": "bernoulli", "values": [n, f"not {n}"]} for n in names]
    x = torch.rand(40, len(own)).round()
    vae = VAE((len(own),), MLP((8,)), Gaussian(2), Columns(own))
    vae.initialize(x)
    figures = figures_of(vae.shape)
    assert len(figures.draw(vae, x, torch.zeros(40), tmp_path)) == 4
    assert figures.png(vae, {"data": x[0]}, x)
    shown = [columns.short(name) for name in names]
    assert shown[0] == r"\$x_1\$" and shown[3] == "a b" and max(map(len, shown)) < 25


def test_missing_steps_are_gaps(tmp_path, drawn):
    vae, x = plotted("series", Gaussian(3))
    x[0, 1:4, 0] = torch.tensor([torch.nan, 41.0, torch.nan])
    draw(vae, x, tmp_path)
    model, _, data, alone = drawn["reconstructions"].axes[0].lines
    np.testing.assert_allclose(data.get_ydata(), x[0, :, 0])
    assert 2 in alone.get_xdata()  # a line of one step would not be seen
    np.testing.assert_allclose(model.get_ydata(), vae.reconstruct(x[:1])[0, :, 0], rtol=1e-4)


def test_fans_end_at_the_reconstructions(tmp_path, drawn):
    vae, x = plotted("series", Gaussian(3))
    draw(vae, x, tmp_path)
    first, *_, last, _ = drawn["interpolation"].axes[0].lines
    found = vae.reconstruct(x[:2])[..., 0]
    np.testing.assert_allclose(first.get_ydata(), found[0], rtol=1e-4)
    np.testing.assert_allclose(last.get_ydata(), found[1], rtol=1e-4)
    labels = [axis.get_ylabel() for axis in drawn["interpolation"].axes if axis.get_ylabel()]
    assert labels == ["age", r"pay in \$", "town", "kids", "sex"]


def test_letters_are_written_into_their_cells(tmp_path, drawn):
    vae, x = plotted("text", Gaussian(3))
    draw(vae, x, tmp_path)
    texts = [text.get_text() for text in drawn["reconstructions"].axes[0].texts]
    assert texts[:30] == [chr(ord("a") + int(k)) for k in x[0, :, 0]]


@pytest.mark.parametrize("kind", ["table", "series", "vectors"])
def test_a_datum_is_one_plot(kind):
    vae, x = plotted(kind, Gaussian(2))
    one, other = (
        figures_of(vae.shape).png(vae, {"data": x[0], "edited": edited}, x)
        for edited in vae.reconstruct(x[:2])
    )
    with Image.open(io.BytesIO(one)) as image:
        assert image.format == "PNG" and 300 < image.width < 800
    assert one != other


def test_values_are_read_in_the_users_words():
    age, pay, town, *_ = columns.columns_of(plotted("table", Gaussian(2))[0])
    assert age.value(41.234) == "41.23" and pay.value(12345.6) == "12,346"
    assert town.value(1.0) == "Paris" and town.value(float("nan")) == "missing"


def test_what_is_expected_of_each_column():
    """In the columns' order, which is not that in which the likelihood computes them."""
    own, x = [SCHEMA[place] for place in (0, 4, 2)], mixed(30)[:, [0, 4, 2, 0]]
    likelihood = Columns([*own, SCHEMA[0] | {"name": "height"}], missing=True)
    params = likelihood.start(x) + torch.randn(30, 1)
    expected, mean = likelihood.expected(params), likelihood.mean(params)
    age, sex, town, height = likelihood.by_column(expected)
    for place, values in ((0, age), (3, height)):
        torch.testing.assert_close(values[:, 0], mean[:, place])
    torch.testing.assert_close((sex[:, 0] > 0.5).float(), mean[:, 1])
    torch.testing.assert_close(town.sum(-1), torch.ones(30))
    torch.testing.assert_close(town.argmax(-1).float(), mean[:, 2])


def test_nothing_is_drawn_of_no_data(tmp_path):
    vae, x = plotted("table", Gaussian(2))
    assert figures_of(vae.shape).draw(vae, x[:0], x[:0, 0], tmp_path) == []
