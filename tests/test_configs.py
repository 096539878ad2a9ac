"""Every file in configs/ is tested by existing."""

import copy
import inspect
import itertools
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import get_class, get_object
from omegaconf import OmegaConf

from commandline import arguments
from commandline.arguments import arguments_of
from commandline.errors import explain, lost
from commandline.refusals import check_ranges, foreseen
from commandline.rehearsal import refusal
from commandline.settings import OF_DATA, OPTIONAL
from commandline.signatures import complaints, in_words
from models.base import VAEModule
from tasks import build
from vae_lab.description import CLASSES, check_described, describe
from vae_lab.latents import Gaussian
from vae_lab.likelihoods import Bernoulli

FOLDER = Path(__file__).parents[1] / "configs"
FILES = sorted(p for p in FOLDER.glob("*/**/*.yaml") if not p.stem.startswith("_"))
OF_TABLES = {"columns"}  # likelihoods that are none of pictures
OWN = ("vae_lab.", "models.", "datamodules.")
TRAINS = {"residual_codebook": "vq_vae"}  # a latent without randomness
# To a model, by the data and by latent=NAME.
GIVEN = {"shape", "classes", "attributes", "latent"}
TINY = [
    "run_dir=nothing-is-written",
    "model.latents=3",
    "trainer=cpu",
    "trainer.max_epochs=1",
    "trainer.limit_train_batches=2",
    "trainer.limit_val_batches=1",
    "trainer.enable_progress_bar=false",
    "callbacks={}",
    "logger=csv",
]
ROOT = ["data.root=/x"]
OF_PHOTOGRAPHS = ("photos", "photo_codes", "tokenizer", "kl_autoencoder")
NEEDED = {name: ROOT for name in ("image_folder", "streaming", *OF_PHOTOGRAPHS)}
OF_ARRAYS = [
    f"{data}_{prior}"
    for data in ("static_mnist", "omniglot", "caltech")
    for prior in ("standard", "vamp")
]
NEEDED |= {name: ["data.train=/x.npy"] for name in OF_ARRAYS}
NEEDED["columns"] = ["likelihood.columns=[{name: age, kind: gaussian}]"]
NEEDED["arrays"] = ["data.train=/x.npy"]
NEEDED["dataset"] = ["++data.dataset._target_=torch.utils.data.ChainDataset"]
SMALLER = {
    "gumbel_vae": ["model.categories=3"],
    "reinforce_vae": ["model.categories=null"],
    "vq_vae": ["model.categories=4"],
    "fsq_vae": ["model.levels=[3,2]"],  # some estimators swap every code with every other one
}


def config(*lines):
    with initialize_config_dir(str(FOLDER), version_base="1.3"):
        return compose("train", [*lines])


def group_and_name(path):
    """As they are typed: GROUP=NAME, or GROUP=FOLDER/NAME."""
    group, _, name = path.relative_to(FOLDER).with_suffix("").as_posix().partition("/")
    return group, name


def names(group):
    return [name for found, name in map(group_and_name, FILES) if found == group]


def of_pictures():
    return [name for name in names("likelihood") if name not in OF_TABLES]


def of_file(path):
    lines = "=".join(group_and_name(path)), *NEEDED.get(path.stem, ())
    return OmegaConf.to_container(config(*lines))


def nodes(node):
    """Everything in a config that has a target."""
    for child in node.values() if isinstance(node, dict) else []:
        yield from nodes(child)
    if isinstance(node, dict) and "_target_" in node:
        yield {k: v for k, v in node.items() if k not in ("_partial_", "_convert_")}


@pytest.mark.parametrize("path", FILES, ids=lambda path: "=".join(group_and_name(path)))
def test_every_file(path):
    composed = of_file(path)
    assert list(complaints(composed)) == []
    assert foreseen(OmegaConf.create(composed), here=False) is None
    for node in nodes(composed):
        target = node.pop("_target_")
        inspect.signature(get_object(target)).bind_partial(**node)
        if target.startswith(OWN):  # every argument is in the file: a typo cannot hide
            assert set(node) == set(arguments_of(target)) - GIVEN, target


TARGETS = sorted({n["_target_"] for path in FILES for n in nodes(of_file(path))})


@pytest.mark.parametrize("target", [*TARGETS, "models.base.VAEModule"])
def test_what_the_source_says_is_what_an_import_says(target, monkeypatch):
    monkeypatch.setattr(arguments, "imported", None)  # it is not asked
    arguments.arguments_of.cache_clear()
    read = said(arguments.arguments_of(target))
    monkeypatch.undo()
    assert read == said(arguments.imported(target))


def said(kinds):
    """The types of all arguments; a union's members have no order."""
    return {name: sorted(in_words(kind).split(" or ")) for name, kind in kinds.items()}


@pytest.mark.parametrize("target", [t for t in TARGETS if t.startswith(OWN)])
def test_what_is_foreseen_is_what_a_constructor_says(target):
    """Every plain argument of every class, one at a time."""
    made = get_object(target)
    parameters = inspect.signature(made).parameters.values()
    needed = {p.name: 1 for p in parameters if p.default is p.empty and p.kind != p.VAR_KEYWORD}
    names = set(arguments_of(target)) - GIVEN
    for name, value in itertools.product(names, [-1, 0, 1, 0.5, 1000, "x", []]):
        node = {"_target_": target, **needed, name: value}
        foreseen = refusal(node, "it", FOLDER.parent)
        if foreseen is not None:
            with pytest.raises((ValueError, OSError)) as refused:
                made(**needed | {name: value})
            assert foreseen == f"{refused.value} (in it)"


@pytest.mark.parametrize("experiment", OF_PHOTOGRAPHS)
@pytest.mark.parametrize("likelihood", of_pictures())
def test_photographs_take_every_likelihood(experiment, likelihood):
    lines = f"experiment={experiment}", "data.root=/x", f"likelihood={likelihood}"
    assert list(complaints(OmegaConf.to_container(config(*lines)))) == []


@pytest.mark.parametrize("path", [p for p in FILES if p.parent.name == "estimator"])
def test_every_estimator_is_exported(path):
    target = OmegaConf.load(path)._target_
    package, _, name = target.rpartition(".")
    assert package == "vae_lab.estimators"
    assert path.stem.replace("_", "") == name.lower()


@pytest.mark.parametrize("group", ["latent", "likelihood", "network"])
def test_every_part_of_a_release_can_be_loaded(group):
    for path in (FOLDER / group).glob("*.yaml"):
        cls = get_class(OmegaConf.load(path)._target_)
        assert CLASSES[group].get(cls.__name__) is cls, f"{path.stem} is not in __all__"


class Unlisted(Bernoulli):
    """As one that somebody adds."""


def test_a_part_that_no_release_may_name_is_refused():
    chosen = config("model=gaussian_vae")
    chosen.likelihood = {"_target_": f"{__name__}.Unlisted"}
    line = "the likelihood Unlisted could not be .*: decorate the class with @vae_lab.register$"
    _, model = build.datamodule_and_model(chosen)  # as a trained one, which may still be tested
    with pytest.raises(ValueError, match=line):
        check_described(model.vae)


def train_two_steps(chosen):
    """Builds a model, trains it and validates it once."""
    datamodule, model = build.datamodule_and_model(chosen)
    trainer = build.trainer(chosen, model, fit=False)
    before = [p.detach().clone() for p in model.vae.parameters()]
    trainer.fit(model, datamodule)
    assert trainer.global_step == 2
    assert any((p != q).any() for p, q in zip(model.vae.parameters(), before, strict=True))
    assert trainer.callback_metrics["val/elbo"].isfinite()


OF_SERIES = "temporal_conv", "transformer"  # tests/test_arrays.py trains them

CHOICES = [
    *(["model=" + name] for name in names("model")),
    *(["likelihood=" + name] for name in of_pictures()),
    *(["objective=" + name] for name in names("objective")),
    *(["network=" + name] for name in names("network") if name not in OF_SERIES),
    *(["network=resnet", "model=" + name] for name in names("model")),
    *(["model=" + TRAINS.get(name, "reinforce_vae"), "latent=" + name] for name in names("latent")),
    *(["network=grid", "model=" + name] for name in names("model")),
    *(["network=grid", "likelihood=" + name] for name in of_pictures()),
    *(["model=gaussian_vae", "prior=" + name] for name in names("prior")),
    *(["prior=" + name] for name in names("prior") if name != "flow"),
]


@pytest.mark.parametrize("lines", CHOICES, ids=" ".join)
def test_choice_trains(lines):
    network = [] if lines[0].startswith("network") else ["network.hidden=[8]"]
    train_two_steps(config(*TINY, *lines, *network))


@pytest.fixture(scope="module", params=names("model"))
def chosen_and_q(request):
    """A tiny model's config, and two distributions of its latents: p(z), and q(z|x) with its own
    estimator, which may be of the one likeliest code."""
    model, *lines = request.param, *SMALLER.get(request.param, [])
    chosen = config(*TINY, f"model={model}", *lines, "network.hidden=[8]")
    latent = build.datamodule_and_model(chosen)[1].vae.latent
    return chosen, latent.prior(), latent.distribution(torch.zeros(1, latent.parameter_size))


@pytest.mark.parametrize("estimator", names("estimator"))
def test_estimator_trains_the_models_it_accepts(chosen_and_q, estimator):
    chosen, *found = copy.deepcopy(chosen_and_q)
    chosen.estimator = OmegaConf.load(FOLDER / "estimator" / f"{estimator}.yaml")
    cls = get_class(chosen.estimator._target_)
    if not cls.single_sample:
        chosen.objective = OmegaConf.load(FOLDER / "objective" / "iwae.yaml")
    levels = "label_estimator" in chosen.model  # of which there is no bound of many samples
    if any(map(cls.accepts, found)) and (cls.single_sample or not levels):
        train_two_steps(chosen)
    else:
        with pytest.raises(ValueError, match=f"{cls.__name__} .*use one of|use ELBO"):
            build.datamodule_and_model(chosen)


@pytest.mark.parametrize("model", names("model"))
def test_a_model_takes_the_latent_that_is_chosen(model):
    lines = ["latent=bernoulli", "latent.latents=3", "estimator=score_function"]
    node = config(*TINY, *lines, f"model={model}")
    built = build.datamodule_and_model(node)[1]
    assert describe(built.vae.latent) == {
        "class": "Bernoulli",
        "latents": 3,
        "learn_prior": False,
    }
    for part in {*OPTIONAL} - {*OF_DATA}:  # what is refused with another one is what its own takes
        own = arguments.attribute(node.model._target_, f"own_{part}_settings")
        assert (own or part == "estimator") and set(own) < set(node.model)


@pytest.mark.parametrize(
    ("model", "latent"), [("gaussian_vae", "categorical"), ("gumbel_vae", "gaussian")]
)
def test_a_latent_that_the_models_own_estimator_cannot_train(model, latent):
    chosen = config(f"model={model}", f"latent={latent}")
    with pytest.raises(ValueError) as refused:
        build.datamodule_and_model(chosen)
    said = explain(refused.value, chosen)
    assert "; type estimator=NAME, use one of " in said and "score_function" in said


class OwnLatentOnly(VAEModule):
    """Takes no latent, as models did before there was latent=NAME."""

    def __init__(self, *, latents: int = 2, **shared) -> None:
        super().__init__(latent=Gaussian(latents), **shared)


def test_a_model_need_not_take_a_latent():
    node = config(*TINY, "estimator=score_function", "likelihood=bernoulli")
    names_of_gumbel = ("categories", "learn_prior", "temperature", "hard", "num_samples")
    settings = {k: v for k, v in node.model.items() if k not in names_of_gumbel}
    node.model = settings | {"_target_": f"{__name__}.OwnLatentOnly"}
    assert list(complaints(OmegaConf.to_container(node))) == []
    assert type(build.datamodule_and_model(node)[1].vae.latent) is Gaussian


def test_a_hint_names_what_one_types():
    chosen = config("model=gumbel_vae", "estimator=dreg")
    with pytest.raises(ValueError) as refused:
        build.datamodule_and_model(chosen)
    said = explain(refused.value, chosen)
    assert said.startswith("dreg works with ")
    assert set(said.partition("use one of ")[2].partition(" (in")[0].split(", ")) < set(
        names("estimator")
    )


def test_a_lost_process_is_one_line_in_any_task():
    error = RuntimeError("Connection closed by peer [::1]:29. This may be due to another error")
    start = "another process of this run was lost; its error, if it left one, stands above"
    assert (
        explain(error, config("task=evaluate")) == f"{start} (Connection closed by peer [::1]:29)"
    )
    again = "; to go on, type resume=x with the same settings"
    assert lost(error, "x") == f"{start}{again} (Connection closed by peer [::1]:29)"
    assert lost(RuntimeError("other"), "x") is None


@pytest.mark.parametrize(
    ("objective", "monitor"), [("elbo", "val/elbo"), ("iwae", "val/elbo"), ("perceptual", None)]
)
def test_the_objective_says_which_checkpoint_is_the_best(tmp_path, objective, monitor):
    chosen = config("model=gaussian_vae", f"objective={objective}", f"run_dir={tmp_path}")
    trainer = build.trainer(chosen, build.datamodule_and_model(chosen)[1])
    (saving,) = trainer.checkpoint_callbacks
    assert saving.monitor == monitor


def test_exact_says_how_large_the_support_is():
    lines = ["model=gumbel_vae", "model.latents=20", "estimator=exact"]
    with pytest.raises(ValueError, match=r"10\^20 states, more than max_states=4096"):
        build.datamodule_and_model(config(*lines))


@pytest.mark.parametrize("network", ["conv", "grid"])
def test_convolutions_in_the_other_layout(network):
    for chosen in (True, False):
        lines = ["model=gaussian_vae", f"network={network}", f"channels_last={chosen}"]
        _, model = build.datamodule_and_model(config(*lines))
        weights = [p for p in model.vae.parameters() if p.ndim == 4 and min(p.shape[:2]) > 1]
        assert weights
        for weight in weights:
            assert weight.is_contiguous(memory_format=torch.channels_last) == chosen


def test_lightning_is_not_told_what_it_does_anyway():
    chosen = config("trainer=auto").trainer
    assert set(chosen) - {"_target_"} <= set(inspect.signature(pl.Trainer).parameters)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("ema=1.5", "ema must be in"),
        ("seed=-1", "seed must be in"),
        ("cuda_graphs=true", "type compile=true"),
        ("early_stopping=0", "early_stopping must be positive, got 0"),
        ("early_stopping=3 trainer.limit_val_batches=0", "leaves out: type early_stopping=null"),
        ("trainer.max_epochs=0", "trainer.max_epochs must be positive, got 0"),
        ("max_skipped=0", "max_skipped must be positive, got 0"),
        ("compare.repeats=1", "compare.repeats must be at least 2, got 1"),
        ("compare.evaluations=1", "compare.evaluations must be at least 2, got 1"),
        ("checkpoint=runs/x", "what the other tasks read, as task=evaluate; .* type resume=runs/x"),
        ("compare.estimators=[]", "compare.estimators must name at least one; null: all"),
        ("evaluate.parts=[]", "evaluate.parts must name at least one; null: all"),
        ("trainer=fsdp callbacks=gradient_probe", "the whole weights in one process: use trai"),
    ],
)
def test_ranges(line, message):
    with pytest.raises(ValueError, match=message):
        check_ranges(config(*line.split()))


OWN_CODE = """
import pathlib
from pathlib import Path

import elsewhere
from elsewhere import Base, Other, make


class Parent:
    own_estimator_settings = ("a",)


class Computed(Parent):
    own_estimator_settings = (*Parent.own_estimator_settings, "b")


class Own(Base):
    known = 1

    def __init__(self):
        super().__init__()
        self.given = 2


class Plain:
    pass


def check(condition):
    if condition:
        raise ValueError("refused")
"""
DECIDED_ONES = [
    "isinstance(Own(), Own)",
    "isinstance(Own(), (int, Base))",
    "isinstance(Own(), Base | None)",
    "issubclass(Own, Base)",
    "not isinstance(3, Other)",
    "not isinstance(None, int | Own)",
    "isinstance(True, int)",
    "hasattr(Own(), 'known') and getattr(Own(), 'given', 1) == 2",
    "not hasattr(Plain(), 'known')",
    "Path('/nowhere').parent.is_dir() and not pathlib.Path('/nowhere').exists()",
    "isinstance(Path('a') / 'b', Path)",
]
OPEN_ONES = [
    "not isinstance(Own(), Other)",
    "not isinstance(Own(), dict)",
    "not isinstance(Plain(), Other)",
    "not isinstance(make(), int)",
    "not isinstance(3, make())",
    "not issubclass(Own, Other)",
    "not issubclass(Own, (int, str))",
    "hasattr(make(), 'known')",
    "hasattr(elsewhere, 'known')",
    "not hasattr(Own(), 'other')",
    "not hasattr(Own, 'other')",
    "getattr(Own(), 'other', None) is None",
    "getattr(make(), 'other', None) is not None",
    "make() is not None",
    "None is not make()",
    "make() is not make()",
    *(f"[Path('made/x').{call}]" for call in ("mkdir(parents=True)", "touch()", "write_text('')")),
    *(f"[Path('kept').{call}]" for call in ("unlink()", "rename('x')", "chmod(0)", "open('w')")),
    "[(pathlib.PosixPath('kept').parent / 'x').symlink_to('kept')]",
]


@pytest.mark.parametrize("condition", [*DECIDED_ONES, *OPEN_ONES])
def test_what_depends_on_other_libraries_is_left_undecided(condition, tmp_path, monkeypatch):
    name = f"own_code_{abs(hash(condition))}"
    lines = [OWN_CODE, "class Made:", "    def __init__(self):", f"        check({condition})"]
    (tmp_path / f"{name}.py").write_text("\n".join(lines))
    (tmp_path / "kept").touch(0o644)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    before = {p.name: (p.stat().st_mode, p.stat().st_mtime) for p in tmp_path.iterdir()}
    said = refusal({"_target_": f"{name}.Made"}, "it", tmp_path)
    assert said == ("refused (in it)" if condition in DECIDED_ONES else None)
    after = {p.name: (p.stat().st_mode, p.stat().st_mtime) for p in tmp_path.iterdir()}
    assert after == before


def test_a_constant_that_is_computed_is_asked_of_the_class(tmp_path, monkeypatch):
    code = OWN_CODE.replace("from elsewhere", "from types").replace("elsewhere", "types")
    code = code.replace("Base, Other, make", "SimpleNamespace as Base")
    (tmp_path / "own_constants.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    for name, expected in (("Parent", ("a",)), ("Computed", ("a", "b")), ("Plain", None)):
        found = arguments.attribute(f"own_constants.{name}", "own_estimator_settings")
        assert found == expected
