"""report.html: self-contained, escaped, with what the run's folder holds; one run, or several."""

import base64
import gzip
import json
import os
import re
import shutil
import subprocess
import sys
from html import unescape
from html.parser import HTMLParser

import pytest
import torch
import yaml
from plotly.offline import get_plotlyjs
from same_runs import run_differences

import train
from vae_lab import VAE, zoo
from vae_lab.drawing import charts, gallery, report
from vae_lab.latents import Gaussian
from vae_lab.likelihoods import Bernoulli
from vae_lab.networks import MLP

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&"
EVALUATION = {
    "format": 1,
    "data": "digits",
    "split": "test",
    "images": 297,
    "seed": 0,
    "metrics": {
        "log_likelihood": {"value": -17.31, "standard_error": 0.25, "unit": "nats", "note": "IWAE"},
        "active_units": {"value": 3},
    },
    "diagnosis": [
        {
            "name": "posterior collapse",
            "level": "problem",
            "because": "KL is 0.01 nats",
            "advice": "type objective=elbo_warmup",
        }
    ],
}


class Page(HTMLParser):
    """The tags with their attributes, and the text outside of scripts and styles."""

    def __init__(self, text):
        super().__init__()
        self.source = text
        self.tags, self.text, self.title, self.scripts, self.inside = [], "", "", [], None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.text += " " if tag in ("td", "th", "b") else ""
        self.inside = tag if tag in ("script", "style", "title") else None

    def handle_endtag(self, tag):
        self.inside = None

    def handle_data(self, data):
        if self.inside is None:
            self.text += data
        elif self.inside == "script":
            self.scripts.append(data)
        elif self.inside == "title":
            self.title += data

    def of(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def headings(self):
        return re.findall(r"<h2>(.*?)</h2>", self.source)

    @property
    def charts(self):
        return json.loads(self.scripts[0])["charts"]


def make_run(folder, command="python train.py", beta=1.0, offset=0.0):
    """What a run leaves, without a run."""
    vae = VAE((1, 2, 2), MLP((3,)), Gaussian(2), Bernoulli())
    vae.save_pretrained(
        folder / "release",
        command=command,
        commit="abc1234",
        step=6,
        metrics={"test/elbo": -20.5 + offset, "test/kl": 3.25},
    )
    config = {
        "model": {"_target_": "models.GaussianVAE", "latents": 2, "objective": {"beta": beta}},
        "objective": {"_target_": "vae_lab.objectives.ELBO", "beta": beta},
        "data": {"_target_": "datamodules.digits.Digits", "root": "/somewhere"},
        "run_dir": str(folder),
        "seed": 0,
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "commands.txt").write_text(f"{command}\n{command}\n")
    rows = [f"{step},{-90 + step + offset},nan,{0.1 * step}," for step in (2, 4)]
    rows.append(f"6,,{-70 + offset},,0.5")
    lines = ["step,train/elbo,val/elbo,train/beta,perf/seconds", *rows]
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")
    gallery.pictures.save(torch.rand(3, 8, 8), folder / "images" / "samples.png")
    return folder


@pytest.fixture
def folder(tmp_path):
    return make_run(tmp_path / "a")


def page(path):
    return Page(path.read_text())


def test_a_report_says_what_the_run_was(folder):
    (folder / "evaluation.json").write_text(json.dumps(EVALUATION))
    found = page(report.write(folder))
    assert found.title == "GaussianVAE on Digits: a"
    for text in (
        *(
            "GaussianVAE on Digits\na\n",
            "GaussianVAE(latents=2)",
            "Digits()",
            "ELBO(beta=1.0)",
            "1 x 2 x 2 (C x H x W)",
        ),
        *("log likelihood", "-17.31 \N{PLUS-MINUS SIGN} 0.25", "nats, IWAE", "297 images"),
        *("posterior collapse: problem", "KL is 0.01 nats", "type objective=elbo_warmup"),
        *("python train.py\n", "abc1234", "6 steps", "All settings"),
    ):
        assert text in found.text, text
    weights = sum(p.numel() for p in VAE.from_pretrained(folder).state_dict().values())
    assert f"{weights}\n" in found.text.replace("parameters", "")


def test_without_an_evaluation_it_has_the_tests_metrics(folder):
    found = page(report.write(folder)).text
    assert "ELBO  -20.50" in found and "3.25" in found and "task=evaluate" in found
    assert "Diagnosis" not in found


def test_a_release_of_the_zoo_has_a_report(tmp_path):
    path = report.write(tmp_path, zoo.FOLDER / "gumbel_vae-digits")
    found = page(path).text
    assert path.parent == tmp_path and "17.46 \N{PLUS-MINUS SIGN} 0.23" in found
    assert "Categorical(latents=20, categories=10, learn_prior=False)" in found


def test_curves_are_those_of_the_table(folder):
    elbo, beta = page(report.write(folder)).charts
    assert elbo["title"] == "ELBO" and elbo["steps"] == [2, 4, 6]
    train, val = elbo["curves"]
    assert train["name"] == "train" and train["values"] == [-88, -86, None]
    assert val["values"] == [None, None, -70]  # a NaN is a gap
    assert beta["curves"][0]["values"] == [0.2, 0.4]
    assert "train from -88 at step 2 to -86 at step 4" in elbo["text"]


def test_what_never_changes_comes_after_the_pictures_in_a_line(folder):
    rows = ["step,train/elbo,train/beta,val/active_units,lr"]
    rows += [f"{step},{-90 + step},1.0,20,{0.1 / step}" for step in (2, 4, 6)]
    (folder / "metrics.csv").write_text("\n".join(rows) + "\n")
    found = page(report.write(folder))
    assert [chart["title"] for chart in found.charts] == ["ELBO", "learning rate"]
    assert found.headings[1:4] == ["Curves", "Pictures", "Evaluation"]
    assert found.text.index("Pictures") < found.text.index("Constant: beta 1; active units 20.")


def test_constants_of_several_runs_are_told_apart():
    curves = [{"name": name, "values": [None, beta, beta]} for name, beta in (("a", 1), ("b", 4))]
    assert charts._constants(curves) == "1 (a), 4 (b)"


def test_long_curves_are_thinned_to_their_end():
    steps, values = charts.thin(list(range(10_007)), [float(s) for s in range(10_007)])
    assert len(steps) <= charts.POINTS + 1 and steps[-1] == values[-1] == 10_006
    assert charts.thin([1, 2], [float("inf"), 1.0]) == ([2], [1.0])


def test_it_needs_nothing_from_elsewhere(folder):
    text = report.write(folder).read_text()
    _, packed, _ = Page(text).scripts
    assert gzip.decompress(base64.b64decode(packed)).decode() == get_plotlyjs()
    assert len(text) < 3_000_000
    text = text.replace(packed, "packed")
    found = Page(text)
    assert not found.of("link") and not found.of("iframe")
    assert all("src" not in script for script in found.of("script"))
    assert all(image["src"].startswith("data:image/png;base64,") for image in found.of("img"))
    assert set(re.findall(r"url\(([^)]*)\)", text)) == set() and "@import" not in text
    policy = next(m["content"] for m in found.of("meta") if m.get("http-equiv"))
    assert policy.startswith("default-src 'none'; img-src data:; ")
    assert len(found.scripts) == 3 and len(text) < 200_000


def test_pictures_are_inside_and_described(folder):
    [image] = page(report.write(folder)).of("img")
    data = base64.b64decode(image["src"].partition(",")[2])
    assert data == (folder / "images" / "samples.png").read_bytes()
    assert image["alt"].startswith("Samples. Mean images of draws from the prior")


def test_it_is_made_for_phones_and_for_the_dark(folder):
    text = report.write(folder).read_text()
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in Page(text).of(
        "meta"
    )
    assert "@media (prefers-color-scheme: dark)" in text and '<html lang="en">' in text


def test_nothing_of_a_run_is_markup(tmp_path):
    folder = make_run(tmp_path / HOSTILE.replace("/", ""), HOSTILE)
    (folder / "images" / "samples.png").rename(folder / "images" / "<b onload=x>.png")
    findings = [{k: HOSTILE for k in ("name", "level", "because", "advice")}]
    metrics = {HOSTILE: {"value": 1.5, "note": HOSTILE}}
    hostile = EVALUATION | {"diagnosis": findings, "metrics": metrics, "data": HOSTILE}
    (folder / "evaluation.json").write_text(json.dumps(hostile))
    other = make_run(tmp_path / "b")
    for path in (report.write(folder), report.compare([folder, other], tmp_path / "out")):
        found = page(path)
        assert len(found.of("script")) == 3 and not found.of("b")
        assert all(set(image) == {"alt", "src"} for image in found.of("img"))
        assert "alert(1)" in found.text and found.charts
        assert not any("alert(" in script for script in found.scripts[1:])


def test_a_comparison_has_both(tmp_path):
    a, b = make_run(tmp_path / "a"), make_run(tmp_path / "b", beta=0.5, offset=10)
    (b / "evaluation.json").write_text(json.dumps(EVALUATION))
    path = report.compare([a, b], tmp_path / "out")
    found = page(path)
    assert path == tmp_path / "out" / "report.html"
    assert [curve["name"] for curve in found.charts[0]["curves"]] == ["a", "b"]
    assert found.charts[1]["curves"][1]["values"] == [-78, -76]
    assert "-20.50" in found.text and "-17.31" in found.text
    differing = found.text.partition("Settings that differ")[2].partition("Curves")[0].split()
    assert differing == ["setting", "a", "b", "objective.beta", "1.0", "0.5"]
    assert [i["alt"].partition(".")[0] for i in found.of("img")] == ["Samples of a", "Samples of b"]


def test_a_release_differs_only_in_what_its_card_says(tmp_path):
    a = make_run(tmp_path / "a")
    text = page(report.compare([a, zoo.FOLDER / "gaussian_vae-digits"], tmp_path / "out")).text
    differing = text.partition("Settings that differ")[2].partition("Curves")[0].split()[2:]
    assert {"network.hidden", "latent.latents"} <= set(differing)
    assert not {"seed", "objective.beta", "latent"} & set(differing)


def test_an_evaluation_of_other_weights_is_left_out(folder):
    old = EVALUATION | {"sha256": "of another model"}
    (folder / "evaluation.json").write_text(json.dumps(old))
    found = page(report.write(folder)).text
    assert "-17.31" not in found and "-20.50" in found


def test_runs_of_one_name_are_told_apart(tmp_path):
    a, b = make_run(tmp_path / "x" / "run"), make_run(tmp_path / "y" / "run")
    text = page(report.compare([a, b], tmp_path / "out")).text
    assert str(a) in text and str(b) in text


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"is neither a run nor a release: expected conf"):
        report.write(tmp_path)
    with pytest.raises(ValueError, match="needs at least two runs, got 1"):
        report.compare([tmp_path], tmp_path)


# At the end of a run, and by train.py.

SMOKE = ["experiment=smoke", "network=linear", "trainer.max_epochs=1"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run whose report was asked for, and the same without; and what its logger was sent."""
    folder, sent = tmp_path_factory.mktemp("runs"), {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("tasks.report.send", lambda _, key, path, step: sent.update({key: step}))
        for name, wanted in (("a", "true"), ("b", "false")):
            patch.setattr(sys, "argv", ["train.py", *SMOKE, f"report={wanted}", f"run_dir={name}"])
            train.main()
    return folder, sent


def test_a_run_ends_with_its_report(finished):
    folder, _ = finished
    found = page(folder / "a" / "report.html")
    images = {path.stem for path in (folder / "a" / "images").iterdir()}
    of_a_grid = {"place_traversals", "codebook", "value_maps", "kl_map"}
    asked_for = {"gradients", "neighbours"}  # by a callback, by task=evaluate
    assert images == set(gallery.captions((1, 8, 8))) - asked_for - of_a_grid
    assert len(found.of("img")) == len(images) - 1  # the page draws the training itself
    assert "GumbelVAE" in found.text and "test elbo" not in found.text
    assert {"ELBO", "KL", "temperature"} <= {chart["title"] for chart in found.charts}


def test_it_goes_to_the_loggers(finished):
    folder, sent = finished
    assert sent == {f"images/{path.stem}": 4 for path in (folder / "a" / "images").iterdir()}


def test_it_changes_nothing_and_can_be_left_out(finished):
    folder, _ = finished
    told = {f"{name}.config.report" for name in ("best", "last")}
    assert set(run_differences(folder / "a", folder / "b")) == told
    assert not (folder / "b" / "report.html").exists()
    drawn = {path.stem for path in (folder / "b" / "images").iterdir()}
    assert drawn == {"samples", "reconstructions", "interpolation"}


def test_a_report_that_fails_does_not_fail_the_run(run, tmp_path, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("no\nmatplotlib")

    monkeypatch.setattr(gallery, "draw", broken)
    with pytest.warns(UserWarning, match="no report of x: no.*task=report checkpoint=x"):
        run(*SMOKE, "report=true", "run_dir=x")
    assert (tmp_path / "x" / "release" / "config.json").exists()


def test_task_report(run, finished, monkeypatch, capsys):
    def draw(vae, x, y, images, rows, label_names):
        gallery.pictures.save(torch.rand(3, 8, 8), images / "samples.png")
        drawn.append((len(x), vae.training, len(rows)))

    drawn, (folder, _) = [], finished
    monkeypatch.setattr(gallery, "draw", draw)
    monkeypatch.chdir(folder)
    (folder / "b" / "metrics.csv").unlink()
    run("task=report", "checkpoint=b")
    assert drawn == [(297, False, 0)]
    assert "Samples" in page(folder / "b" / "report.html").text
    run("task=report", "checkpoint=a,gaussian_vae-digits", "run_dir=out")
    text = page(folder / "out" / "report.html").text
    assert "gaussian_vae-digits" in text and "-19.28" in text and len(drawn) == 2
    assert capsys.readouterr().out.splitlines()[-1] == "report   out/report.html"
    with pytest.raises(SystemExit):
        run("task=report", "checkpoint=a,c")
    assert "type run_dir=FOLDER" in capsys.readouterr().err


WATCH = """
<iframe id="page" width="360" height="800" src="{}"></iframe>
<script>
  const page = document.getElementById("page");
  const look = (tries) => {{
    const inside = page.contentDocument;
    const drawn = [...inside.querySelectorAll(".chart")].map((c) =>
      c.querySelectorAll("path.js-line").length > 0
    );
    if (tries && !drawn.every(Boolean)) return setTimeout(look, 100, tries - 1);
    const wide = [...inside.querySelectorAll("body *")].filter(
      (e) => !e.closest(".wide") && e.getBoundingClientRect().right > 360
    );
    document.title = JSON.stringify([drawn, wide.map((e) => e.outerHTML)]);
  }};
  page.onload = () => look(100);
</script>
"""


@pytest.mark.slow
@pytest.mark.skipif(
    not shutil.which("chromium") and "CI" not in os.environ, reason="needs Debian's chromium"
)
def test_in_a_browser_as_wide_as_a_phone(tmp_path):
    """The curves are drawn, nothing is cut off, and the console has no error."""
    a, b = make_run(tmp_path / "a"), make_run(tmp_path / ("b" * 60))
    for path in (report.write(a), report.compare([a, b], tmp_path / "out")):
        (tmp_path / "watch.html").write_text(WATCH.format(path.as_uri()))
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
        flags += ["--allow-file-access-from-files", "--virtual-time-budget=20000", "--dump-dom"]
        line = ["chromium", *flags, f"--user-data-dir={tmp_path}/chromium"]
        ended = subprocess.run(
            [*line, (tmp_path / "watch.html").as_uri()], capture_output=True, text=True, timeout=60
        )
        title = re.search("<title>(.*?)</title>", ended.stdout).group(1)
        drawn, wide = json.loads(unescape(title))
        assert len(drawn) >= 2 and all(drawn) and not wide
        assert "CONSOLE" not in ended.stderr
