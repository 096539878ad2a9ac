"""The figures of a model and of its training: what they show, not how they look."""

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import discrete_vae, grid_of_colours

from vae_lab import figures
from vae_lab.distributions import base
from vae_lab.drawing import gallery, images, latent_figures, place_figures
from vae_lab.latents import Bernoulli, Categorical, Gaussian, Poisson

ROWS = [
    {"step": "2", "train/elbo": "-90.5", "train/beta": "0.1", "val/elbo": "", "lr": "0.001"},
    {"step": "4", "train/elbo": "-80", "train/beta": "0.2", "val/elbo": "-70", "lr": "0.002"},
    {"step": "6", "train/temperature": "0.5"},  # which never changes
]
ON_A_GRID = {"place_traversals", "value_maps", "kl_map", "latent_map"}
ALWAYS = {"reconstructions", "samples", "interpolation", "traversals", "aggregate_posterior"}


def small(latent):
    return discrete_vae(latent).float().eval()


def draw(vae, folder, count=30, rows=ROWS):
    x = torch.rand(count, 1, 2, 2).round()
    return x, gallery.draw(vae, x, torch.arange(count) % 3, folder, rows)


@pytest.mark.parametrize(
    "latent, more",
    [
        (Gaussian(2), {"latent_map"}),
        (Gaussian(1), set()),
        (Categorical(3, 4), {"latent_map", "codes"}),
        (Bernoulli(20), {"latent_map", "codes"}),
        (Poisson(3), {"latent_map", "codes"}),
    ],
    ids=["plane", "line", "categories", "bits", "counts"],
)
def test_every_kind_of_latent_has_its_pictures(tmp_path, latent, more):
    _, files = draw(small(latent), tmp_path)
    assert set(files) == ALWAYS | more | {"training"} and set(files) <= set(
        gallery.captions((1, 2, 2))
    )
    for path in files.values():
        with Image.open(path) as image:
            assert min(image.size) > 100 and np.ptp(np.asarray(image)) > 100


def on_a_grid(latent, folder, count=20):
    vae = grid_of_colours(latent, scale=0.4)
    x = torch.rand(count, *vae.shape)
    return vae, x, gallery.draw(vae, x, torch.arange(count) % 3, folder)


@pytest.mark.parametrize(
    "latent, more",
    [
        (Gaussian(3), set()),
        (Categorical(1, 300), {"codebook"}),
        (Categorical(3, 5), set()),
        (Bernoulli(3), set()),
        (Poisson(3), set()),
    ],
    ids=["numbers", "codes", "several codes", "bits", "counts"],
)
def test_every_kind_of_latent_on_a_grid_has_its_pictures(tmp_path, latent, more):
    _, _, files = on_a_grid(latent, tmp_path)
    assert set(files) == ALWAYS | ON_A_GRID | more
    for path in files.values():
        with Image.open(path) as image:
            assert min(image.size) > 100 and np.ptp(np.asarray(image)) > 100
            assert max(image.size) < 2500


def test_large_pictures_are_few(tmp_path):
    vae = grid_of_colours(Gaussian(1), (3, 500, 500))
    for path in gallery.draw(vae, torch.rand(3, *vae.shape), torch.zeros(3), tmp_path).values():
        with Image.open(path) as image:
            assert max(image.size) < 2500


def test_the_nats_are_where_they_are_in_the_picture(tmp_path, drawn):
    vae, x, _ = on_a_grid(Gaussian(3), tmp_path)
    kl = vae.latent.kl(vae.encode(x)).reshape(20, 3, 5, 3).sum(-1).detach()
    axes = drawn["kl_map"].axes
    *below, mean = [axis for axis in axes[len(axes) // 2 :] if axis.images][:7]
    np.testing.assert_allclose(below[2].images[1].get_array(), kl[2], rtol=1e-5)
    np.testing.assert_allclose(mean.images[0].get_array(), kl.mean(0), rtol=1e-5)
    assert below[2].images[1].get_extent() == [0, 20, 12, 0]  # the picture is 18 pixels wide
    assert below[2].get_xlim() == (0, 18) and below[2].get_ylim() == (12, 0)
    titles = [axis.get_title() for axis in axes]
    assert f"{kl[2].sum():,.0f} nats" in titles
    assert f"{kl.mean(0).sum():,.0f} nats\nmean of 20" in titles


def test_a_code_has_one_colour_in_all_pictures(tmp_path, drawn):
    codes = torch.randint(7, (6, 1, 3, 5))
    rank = torch.randperm(7)[None]
    place_figures.codes(torch.rand(6, 3, 12, 18), codes, rank, ["$z_0$"], 4, tmp_path / "maps.png")
    maps = [axis.images[0].get_array() for axis in drawn["maps"].axes[6:]]
    colours = np.concatenate([one.reshape(-1, 3) for one in maps]).round(4).tolist()
    pairs = {(code, tuple(c)) for code, c in zip(codes.flatten().tolist(), colours, strict=True)}
    assert len(pairs) == 7 == len({colour for _, colour in pairs})


def test_values_are_mapped_by_place(tmp_path, drawn):
    vae, x, _ = on_a_grid(Gaussian(1), tmp_path)
    shown = drawn["value_maps"].axes[6 + 2].images[0].get_array()
    np.testing.assert_allclose(shown, vae.encode(x).mean[2, ..., 0].detach(), atol=1e-5)


def test_the_aggregate_posterior_is_over_all_places(tmp_path, drawn):
    vae, x, _ = on_a_grid(Categorical(2, 4), tmp_path)
    usage = vae.encode(x).base_dist.probs.mean((0, 1, 2)).detach()  # [2, 4]
    for axis in drawn["aggregate_posterior"].axes:
        name, perplexity = axis.get_title().split(", perplexity ")
        own = usage[int(name.split("{")[1].split("}")[0])]
        np.testing.assert_allclose(
            axis.patches[0].get_data().values, own.sort(descending=True).values, atol=1e-5
        )
        assert perplexity == f"{own.log().mul(-own).sum().exp():.0f} of 4"


def test_rows_of_traversals_are_the_variables_of_a_place(tmp_path, drawn):
    vae, x, _ = on_a_grid(Gaussian(3), tmp_path)
    kl = vae.latent.kl(vae.encode(x)).reshape(20, 3, 5, 3).mean(0)
    for name, of, unit in (
        ("traversals", kl.mean((0, 1)), " nats a place"),
        ("place_traversals", kl[1, 2], " nats"),
    ):
        labels = [label.get_text() for label in drawn[name].axes[0].get_yticklabels()]
        order = of.argsort(descending=True).tolist()
        assert labels == [f"$z_{{{unit_}}}$  {of[unit_]:.2f}{unit}" for unit_ in order]


def test_many_codes_are_no_wide_picture(tmp_path):
    _, files = draw(small(Categorical(40, 16)), tmp_path)
    with Image.open(files["codes"]) as image:
        assert image.width < 2500


def test_drawing_changes_nothing(tmp_path):
    vae, x = small(Gaussian(3)), torch.rand(20, 1, 2, 2)
    weights = {name: tensor.clone() for name, tensor in vae.state_dict().items()}
    generators = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    first = gallery.draw(vae, x, torch.zeros(20), tmp_path / "a")
    assert torch.equal(torch.random.get_rng_state(), generators[0])
    torch.rand(3)
    second = gallery.draw(vae, x, torch.zeros(20), tmp_path / "b")
    assert np.array_equal(np.random.get_state()[1], generators[1])
    assert all(torch.equal(weights[name], tensor) for name, tensor in vae.state_dict().items())
    assert [p.read_bytes() for p in first.values()] == [p.read_bytes() for p in second.values()]


def test_traversals_are_by_kl_and_name_it(tmp_path, drawn):
    vae = small(Gaussian(4))
    x, _ = draw(vae, tmp_path)
    kl = vae.latent.kl(vae.encode(x)).mean(0)
    order = [unit for unit in kl.argsort(descending=True).tolist() if kl[unit] > 0.01]
    [axis] = drawn["traversals"].axes
    labels = [label.get_text() for label in axis.get_yticklabels()]
    assert labels == [f"$z_{{{unit}}}$  {kl[unit]:.2f} nats" for unit in order]
    assert axis.get_xticklabels()[0].get_text() == "-3"


def test_the_heat_map_has_every_code_and_its_rows_sum_to_one(tmp_path, drawn):
    vae = small(Categorical(6, 4))
    x, _ = draw(vae, tmp_path)
    heat = drawn["codes"].axes[0].images[0].get_array()
    q = vae.encode(x)
    order = vae.latent.kl(q).mean(0).argsort(descending=True)
    assert heat.shape == (6, 4)
    assert np.allclose(heat.sum(1), 1, atol=1e-5)
    assert np.allclose(heat, vae.latent.codes(q).mean(0)[order].detach(), atol=1e-6)


def test_the_aggregate_posterior_is_beside_the_prior(tmp_path, drawn):
    vae = small(Gaussian(2, learn_prior=True))
    draw(vae, tmp_path, count=200)
    axis = drawn["aggregate_posterior"].axes[0]
    across, density = axis.lines[0].get_data()
    assert np.trapezoid(density, across) == pytest.approx(1, abs=1e-3)
    [bars] = axis.patches
    heights, edges, _ = bars.get_data()
    assert (heights * np.diff(edges)).sum() == pytest.approx(1, abs=1e-3)
    unit = int(axis.get_title().split("{")[1].split("}")[0])
    mean = vae.latent.prior().mean[unit].item()
    assert across[density.argmax()] == pytest.approx(mean, abs=0.1)


def test_the_codes_frequencies_are_beside_the_prior(tmp_path, drawn):
    vae = small(Categorical(2, 3))
    draw(vae, tmp_path)
    axis = drawn["aggregate_posterior"].axes[0]
    *bars, prior = axis.patches
    assert sum(bar.get_height() for bar in bars) == pytest.approx(1, abs=1e-5)
    unit = int(axis.get_title().split("{")[1].split("}")[0])
    assert np.allclose(prior.get_data().values, base(vae.latent.prior()).probs[unit].detach())


def test_a_plane_is_decoded_where_it_is_shown(tmp_path, monkeypatch):
    """Up is the second coordinate, right the first: in the images as in the points beside them."""
    vae, seen = small(Gaussian(2)), []
    monkeypatch.setattr(latent_figures, "scatter", lambda *given, names: seen.extend(given))
    draw(vae, tmp_path)
    image, (left, right, bottom, top) = seen[-2:]
    prior = vae.latent.prior()
    corner = (prior.mean + 3 * prior.stddev).unsqueeze(0)  # right, up
    corner = vae.likelihood.mean(vae.decode(corner))[0, 0]
    cell = image.shape[-1] // images.MAP_SIDE
    assert torch.allclose(image[0, :cell, -cell:][:: cell // 2, :: cell // 2], corner, atol=1e-6)
    middles = torch.tensor([(left + right) / 2, (bottom + top) / 2])
    assert torch.allclose(middles, prior.mean)  # no image is farther out than three deviations
    half_a_cell = (right - left) / images.MAP_SIDE / 2
    assert right - half_a_cell == pytest.approx((prior.mean + 3 * prior.stddev)[0].item())


def test_labels_have_their_colours_and_names(tmp_path, drawn):
    points, labels = torch.rand(40, 2), torch.arange(40) % 10
    latent_figures.scatter(points, labels, "points", tmp_path / "map.png")
    [axis] = drawn["map"].axes
    assert {text.get_text() for text in axis.texts} == {str(label) for label in range(10)}
    looks = {(tuple(c.get_facecolor()[0]), len(c.get_paths()[0])) for c in axis.collections[1:]}
    assert len(looks) == 10  # a colour and a marker each


def test_classes_with_names_are_called_by_them(tmp_path, drawn):
    x, labels = torch.randn(40, 3), torch.arange(40) % 2 * 2
    latent_figures.tsne(x, labels, "points", tmp_path / "map.png", ["a", "b", True])
    assert {text.get_text() for text in drawn["map"].axes[0].texts} == {"a", "True"}


def test_schedules_are_under_the_curves_on_their_axis(tmp_path, drawn):
    figures.training(ROWS, tmp_path / "training.png")
    axes = drawn["training"].axes
    assert [axis.get_ylabel() for axis in axes] == ["ELBO", "beta", "learning rate"]
    assert axes[0].get_shared_x_axes().joined(axes[0], axes[2])
    train, val = axes[0].lines
    assert train.get_xydata().tolist() == [[2, -90.5], [4, -80]]
    assert val.get_xydata().tolist() == [[4, -70]]
    assert axes[1].lines[0].get_ydata().tolist() == [0.1, 0.2]


def test_the_first_steps_do_not_flatten_a_curve():
    low, high = figures.window(
        [-500.0, -300.0, *[-20.0 - i / 100 for i in range(98)], float("nan")]
    )
    assert -30 < low < -21 and -20 <= high < -19
    assert figures.window([1.0, 1.0])[0] < 1 < figures.window([1.0, 1.0])[1]
    assert figures.window([]) == (0, 1)


def test_the_variance_is_the_geometric_mean_over_the_seeds(tmp_path, drawn):
    one = [{"step": 10, "variance": 1.0}, {"step": 20, "variance": 4.0}]
    other = [{"step": 10, "variance": 100.0}]  # a run that is shorter
    figures.variances({"arm": [one, other], "disarm": [one]}, tmp_path / "variance.png")
    [axis] = drawn["variance"].axes
    points = {line.get_label(): line.get_xydata().tolist() for line in axis.lines}
    assert points == {"arm": [[10, pytest.approx(10)]], "disarm": [[10, 1], [20, 4]]}
    assert axis.get_yscale() == "log"


def test_a_map_of_data_with_attributes_shows_the_first(drawn, tmp_path):
    points, y = torch.randn(20, 2), torch.randn(20, 3)
    latent_figures.scatter(points, y, "z", tmp_path / "map.png")
    [collection] = drawn["map"].axes[0].collections
    np.testing.assert_allclose(collection.get_array(), y[:, 0])
    assert drawn["map"].axes[1].get_ylabel() == "first attribute"
