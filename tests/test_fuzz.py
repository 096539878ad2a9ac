"""Random command lines and configs: a run or one clear line, and never a silent default.

`make fuzz` tries 2,000 of them.
"""

import functools
import os
import warnings
from pathlib import Path

import pytest
import pytorch_lightning as pl
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from PIL import Image

from commandline.check import Mistake, check, check_config
from commandline.errors import explain
from commandline.refusals import check_ranges
from tasks import build
from tasks.machine import check_batches, check_devices

FOLDER = Path(__file__).parents[1] / "configs"
CASES = int(os.environ.get("FUZZ_CASES", 80))
PARSER = OverridesParser.create()
GROUPS = {
    folder.name: sorted(path.stem for path in folder.glob("*.yaml") if path.stem[0] != "_")
    for folder in FOLDER.iterdir()
    if any(folder.glob("*.yaml"))
}
LOCAL = ("digits", "image_folder")  # the data that needs no download
HUGE = 10**15  # more bytes than an address space has
STRANGE = [
    *(0, -1, 1, 2, 7, 0.5, -0.1, 1e-3, 1e9, HUGE, float("nan"), float("inf"), True, False, None),
    *("ten", "", " ", "x" * 300, "\u00fc", "a=b", "../x", "/", "%s", "${seed}", "${nope}", "???"),
    *([], [0], [1, 2], [-1, 3], ["a"], [None], [[1]], {}, {"a": 1}, {"_target_": "os.getcwd"}),
    *("learned", "threshold", "skip", "auto", "cpu", "gpu", "ddp", "16-mixed", "bf16-true"),
]
TYPED = [*map(str, STRANGE[:14]), "null", "'a=b'", "a=b", "1,2", "'", "a b", "0x10", "1_0", "("]
TYPED += ["[1,2]", "{a:1}", "{}", "???", "${seed}", "${nope}", "learned", "x", "glob(*)"]
TRAINERS_OWN = ["max_steps", "accumulate_grad_batches", "gradient_clip_val", "log_every_n_steps"]
TRAINERS_OWN += ["check_val_every_n_epoch", "max_epochs"]
FUZZ = settings(
    derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
)


def leaves(node, prefix=""):
    """The settings that are no groups, by their full names."""
    for name, child in node.items():
        if isinstance(child, dict) and child:
            yield from leaves(child, f"{prefix}{name}.")
        elif not name.startswith("_"):
            yield f"{prefix}{name}"


@functools.cache
def composed(*lines):
    with initialize_config_dir(str(FOLDER), version_base="1.3"):
        return compose("train", ["logger=csv", *lines])


@functools.cache
def keys(*lines):
    return sorted(set(leaves(OmegaConf.to_container(composed(*lines)))) - {"run_dir", "data.root"})


CHOICES = st.sampled_from(
    [f"{g}={name}" for g in GROUPS for name in GROUPS[g] if g != "data" and name != "wandb"]
)


def base(root, local):
    lines = [f"data={local}", f"run_dir={root}/run", "trainer.enable_progress_bar=false"]
    folder = [f"data.root={root}/pictures", "data.image_size=8", "data.batch_size=4"]
    return lines + (folder if local == "image_folder" else [])


@st.composite
def misspelt(draw, text):
    """One character lost, doubled, swapped with the next, or replaced by a strange one."""
    at = draw(st.integers(0, len(text) - 1))
    head, letter, tail = text[:at], text[at], text[at + 1 :]
    strange = draw(st.sampled_from("._-=+~,:[]{}()'\"$@ \\/%*\u00fc"))
    swapped = head + tail[:1] + letter + tail[1:]
    options = [head + tail, head + 2 * letter + tail, swapped, head + strange + tail]
    return draw(st.sampled_from(options))


@st.composite
def command_lines(draw, root):
    """Valid but for at most two settings, which may be anything."""
    typed = base(root, draw(st.sampled_from(LOCAL))) + ["logger=csv"]
    typed += sorted(draw(st.sets(CHOICES, max_size=1)))
    for _ in range(draw(st.integers(0, 2))):
        prefix = draw(st.sampled_from([""] * 9 + ["+", "++", "~", "--"]))
        line = f"{prefix}{draw(st.sampled_from(keys()))}={draw(st.sampled_from(TYPED))}"
        typed.append(draw(misspelt(line)) if draw(st.integers(0, 4)) == 0 else line)
    return typed


def near(value):
    """Other values of the same type."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int | float):
        return [value + 1, 2 * value, value / 2, value]
    return [value, [*value, 8]] if isinstance(value, list) else [value]


@st.composite
def changed_configs(draw, root):
    """A composed config with up to three settings changed: (the config, the changes)."""
    lines = [*base(root, draw(st.sampled_from(LOCAL))), *sorted(draw(st.sets(CHOICES, max_size=1)))]
    config, changes = composed(*lines).copy(), {}
    for key in draw(st.sets(st.sampled_from(keys(*lines)), min_size=1, max_size=3)):
        value = OmegaConf.to_container(config, resolve=False)
        for part in key.split("."):
            value = value[part]
        options = near(value) if draw(st.booleans()) else STRANGE
        changes[key] = draw(st.sampled_from(options))
        OmegaConf.update(config, key, changes[key], merge=False, force_add=True)
    return config, changes


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "pictures").mkdir()
    for number in range(40):
        Image.new("RGB", (9, 8), (number, 2 * number, 0)).save(folder / f"pictures/{number}.png")
    return folder


@pytest.fixture(autouse=True)
def elsewhere(root, monkeypatch):
    monkeypatch.chdir(root)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    assert [path.name for path in root.iterdir()] == ["pictures"]


def test_any_command_line_is_a_run_or_one_line(root):
    outcomes = []

    @settings(FUZZ, max_examples=CASES // 2)
    @given(command_lines(root))
    def tried(typed):
        try:
            [config] = check(typed)
        except Mistake as mistake:
            outcomes.append(refused(mistake))
        else:
            overrides = [override for line in typed for override in PARSER.parse_overrides([line])]
            settings = [o for o in overrides if o.key_or_group not in GROUPS and not o.is_delete()]
            outcomes.append(outcome(config, {o.key_or_group: o.value() for o in settings}))

    tried()
    assert {*outcomes} == {"run", "refused"}, "or one half was not tried"


def test_any_config_is_a_run_or_one_line(root):
    outcomes = []

    @settings(FUZZ, max_examples=CASES // 2)
    @given(changed_configs(root))
    def tried(case):
        config, changes = case
        try:
            check_config(config)
        except Mistake as mistake:
            outcomes.append(refused(mistake))
        else:
            outcomes.append(outcome(config, changes))

    tried()
    assert {*outcomes} == {"run", "refused"}, "or one half was not tried"


def refused(message):
    text = str(message).strip()
    assert text and "\n" not in text and "Traceback" not in text, text
    return "refused"


def outcome(config, changes):
    try:
        pieces = built(config)
        for key, value in changes.items():
            assert_visible(key, value, config, *pieces)
        if sum(map(ord, str(changes))) % 4 == 0:  # a sample, as it takes longer
            train_a_step(config, *pieces)
    except AssertionError:
        raise
    except Exception as error:
        line = explain(error, config)
        if line is None:
            raise
        return refused(line)
    return "run"


def built(config):
    """As train.py does it, up to where it would make a run's folder."""
    check_ranges(config)
    check_devices(config)
    datamodule, model = build.datamodule_and_model(config)
    trainer = build.trainer(config, model)
    datamodule.setup("fit")
    check_batches(config, datamodule)
    model.vae.likelihood.check(next(iter(datamodule.val_dataloader()))[0])
    return datamodule, model, trainer


def train_a_step(config, datamodule, model, trainer):
    if trainer.world_size == 1 and trainer.accumulate_grad_batches < 10:
        config.trainer.update({"limit_train_batches": 1, "limit_val_batches": 1, "max_epochs": 1})
        build.trainer(config, model, fit=False).fit(model, datamodule)


def assert_visible(key, value, config, datamodule, model, trainer):
    """What was accepted stands in the config, and in the object that it is for."""
    if "$" in str(value):
        return
    assert same(OmegaConf.select(config, key), value), key
    vae = model.vae
    own = vars(vae.latent) if config.latent is None else {}
    own = own | (vars(model.estimator) if config.estimator is None else {})
    objects = {
        "data": vars(datamodule),
        "network": vars(vae.network),
        "likelihood": vars(vae.likelihood),
        "objective": vars(model.objective),
        "estimator": vars(model.estimator),
        "latent": vars(vae.latent),
        "model": own | vars(model),
        "model.optimizer": model.optimizer.keywords,
        "trainer": {name: getattr(trainer, name) for name in TRAINERS_OWN},
        "save": vars(trainer.checkpoint_callback) | vars(trainer.strategy.checkpoint_io),
    }
    for name, schedule in model.schedules.items():
        objects |= {f"{owner}.{name}": vars(schedule) for owner in ("model", "objective")}
    group, _, name = key.rpartition(".")
    found = objects.get(group, {}).get(name, value)
    if not isinstance(found, pl.LightningModule) and not hasattr(found, "at"):  # a schedule
        assert same(found, value), key


def same(found, value):
    if OmegaConf.is_config(found):
        found = OmegaConf.to_container(found)
    if isinstance(found, tuple):
        found = list(found)
    return found == value or str(found) == str(value)
