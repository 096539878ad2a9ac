import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra

from commandline.check import Mistake, check, exit_on_mistake
from commandline.places import CONFIGS, ROOT
from commandline.quoting import as_typed, expand_home
from commandline.settings import DECIDED, GROUPS, OF_DATA, OPTIONAL
from commandline.settings_table import tables
from commandline.synonyms import SETTINGS, VALUES
from tasks import build

GOOD = [
    "",
    "model=gaussian_vae data=fashion_mnist network=conv",
    "experiment=smoke network=resnet",
    "model.temperature=0.5",  # a number in the place of a schedule
    "model.temperature.start=2",
    "objective=elbo_warmup objective.beta.steps=10",
    "model.optimizer.lr=1e-3",
    "+model.optimizer.amsgrad=true",  # in the signature, not in the file
    "~callbacks.pictures",
    "callbacks.pictures=null",
    "estimator=exact model.latents=3",
    "latent=categorical latent.categories=3 model.hard=true",
    "latent=poisson estimator=fini",
    "-m latent=bernoulli,categorical",
    "logger=[csv,tensorboard]",
    "run_dir=/x/y.z",
    "run_dir='runs/a=b'",
    "data=image_folder data.root=/x data.image_size=[48,32]",
    "init.encoder=runs/x init.freeze=[encoder]",
    "trainer=ddp trainer.accelerator=cpu trainer.devices=2",
    "-m model=gaussian_vae,gumbel_vae seed=1,2",
    "--multirun seed=range(1,4)",
    "-m model=glob(g*_vae)",
    "-m hydra/sweeper=optuna model.optimizer.lr=interval(0.001,0.1)",
    "trainer=ddp trainer.strategy.timeout.minutes=5",
    "callbacks=[default,gradient_probe]",
    "--cfg job",
    "hydra.run.dir=/tmp/x",
]
TEMPERATURE = "unknown setting model.temprature; did you mean model.temperature"
SWEEP = (
    "a sweep (-m) cannot start several processes for a job: type trainer.strategy=auto "
    "trainer.devices=1, or run its jobs one by one"
)
OF_MODEL = (
    "fsq_vae, gaussian_vae, gumbel_vae, lfq_vae, poisson_vae, reinforce_vae, semi_supervised_vae, "
    "vq_vae"
)
MODELS = f"known: {OF_MODEL}"
BAD = {
    "experiment=reinmax/8x4_reinmax estimator=disarm": (
        "experiment=reinmax/8x4_reinmax sets what is unknown with the rest of the line: type "
        "~estimator.temperature too"
    ),
    "latent=hierarchical_gaussian latent.learn_prior=true": (
        "unknown setting latent.learn_prior; known: latent.latents, latent.hidden, "
        "latent.activation"
    ),
    "model=gumble_vae": f"unknown model 'gumble_vae'; did you mean gumbel_vae; {MODELS}",
    "-m model.optimizer.lr=interval(0.001,0.1)": (
        "model.optimizer.lr=interval(0.001,0.1) needs a sweeper that chooses: add "
        "hydra/sweeper=optuna, or list the values"
    ),
    "-m model=gumbel_vae,gumble_vae": (
        f"unknown model 'gumble_vae'; did you mean gumbel_vae; {MODELS}"
    ),
    "logger=foo": "unknown logger 'foo'; known: csv, tensorboard, wandb",
    "logger=[csv,foo]": "unknown logger 'foo'; known: csv, tensorboard, wandb",
    "logger=null": "unknown logger null; known: csv, tensorboard, wandb",
    "model.temprature=.5": TEMPERATURE,
    "+model.temprature=.5": TEMPERATURE,
    "++model.temprature=.5": TEMPERATURE,
    "sed=1": "unknown setting sed; did you mean seed",
    "model.temperature.strat=2": (
        "unknown setting model.temperature.strat; did you mean model.temperature.start"
    ),
    "init.encodr=x": "unknown setting init.encodr; did you mean init.encoder",
    "network=conv network.hidden=[3]": (
        "unknown setting network.hidden; known: network.channels, network.features, "
        "network.activation"
    ),
    "logger=csv logger.wandb.project=x": "unknown setting logger.wandb.project",
    "model._target_=os.system": (
        "model._target_ is not for the command line: add a file to configs/ and choose it"
    ),
    "model.optimizer.amsgrad=true": (
        "model.optimizer.amsgrad is not in the config; add it with +model.optimizer.amsgrad=true"
    ),
    "model.optimizer.lr=ten": "model.optimizer.lr must be a number or Tensor, got 'ten'",
    "model.optimizer=null": (
        "model.optimizer must be a group of settings, got None: type model.optimizer.NAME=VALUE"
    ),
    "model.objective=iwae": "model.objective must be Objective, got 'iwae': type objective=iwae",
    "network.hidden={a:1}": (
        "network.hidden must be a list, got a group of settings: type network.hidden=[A,B]"
    ),
    "model.temperature=[1,0.5]": (
        "model.temperature must be one value or a group of settings, got a list: type "
        "model.temperature=VALUE; known: model.temperature.start, model.temperature.end, "
        "model.temperature.steps"
    ),
    "data.batch_size=0.5": "data.batch_size must be an integer, got 0.5",
    "matmul_precision=tf32": "matmul_precision must be highest or high or medium, got 'tf32'",
    "compile=yes": "compile must be true or false, got 'yes'",
    "early_stopping=.5": "early_stopping must be an integer or null, got 0.5",
    "model.lr_decay=cosin": (
        "model.lr_decay must be none or cosine or Schedule, got 'cosin'; did you mean "
        "model.lr_decay=cosine"
    ),
    "init.freeze=encoder": (
        "init.freeze must be a list of encoder or posterior or decoder or model, got 'encoder': "
        "type init.freeze=[encoder]"
    ),
    "network.hidden='256,128'": (
        "network.hidden must be a list of integers, got '256,128': type network.hidden=[256,128]"
    ),
    "network.hidden=256,128": (
        "network.hidden=256,128 is more than one run: add -m, or type network.hidden=[256,128] for "
        "a list, 'network.hidden=\"256,128\"' for a text"
    ),
    "logger=wandb,csv": "logger=wandb,csv is more than one run: add -m, or type logger=[wandb,csv]",
    "model=glob(g*)": "model=glob(g*) is more than one run: add -m",
    "seed=range(1,4)": "seed=range(1,4) is more than one run: add -m",
    "network.hidden=[256, 128]": (
        "cannot read network.hidden=[256,: type a list without spaces, or quote it whole, as in "
        "network.hidden=[A,B] or 'network.hidden=[A, B]'"
    ),
    "model=[gumbel_vae,gaussian_vae]": (
        f"model is one of {MODELS.removeprefix('known: ')}, got a list: type model=NAME"
    ),
    "-m --cfg job seed=1,2": (
        "--cfg shows one run: leave out -m, and type one value of each setting"
    ),
    "model.lr_decay=linear": "model.lr_decay must be none or cosine or Schedule, got 'linear'",
    "--model=gumbel_vae": "settings have no dashes: type model=gumbel_vae instead of "
    "--model=gumbel_vae",
    "-model": "settings have no dashes: type model=VALUE instead of -model",
    "model": "a setting is KEY=VALUE, got 'model'",
    "=3": "a setting is KEY=VALUE, got '=3'",
    "run_dir=runs/a=b": (
        "cannot read run_dir=runs/a=b: quote the value twice, 'run_dir=\"runs/a=b\"'"
    ),
    "estimator=gumbel_rao model.temperature=1": (
        "model.temperature belongs to the model's own estimator, which estimator=... replaces; "
        "type estimator.temperature=..."
    ),
    "estimator=exact model.hard=true": (
        "model.hard belongs to the model's own estimator, which estimator=... replaces; "
        "leave it out"
    ),
    "latent=categorial": (
        "unknown latent 'categorial'; did you mean categorical; known: bernoulli, categorical, "
        "codebook, correlated_gaussian, flow_gaussian, fsq, gaussian, hierarchical_gaussian, lfq, "
        "poisson, residual_codebook"
    ),
    "latent=bernoulli model.latents=3": (
        "model.latents belongs to the model's own latent, which latent=... replaces; type "
        "latent.latents=..."
    ),
    "latent=bernoulli estimator=arm model.categories=3": (
        "model.categories belongs to the model's own latent, which latent=... replaces; leave it "
        "out"
    ),
    "latent.latents=3": "unknown setting latent.latents; did you mean model.latents",
    "model=gumbel_vae,gaussian_vae": (
        "model=gumbel_vae,gaussian_vae is more than one run: add -m, or choose one"
    ),
    "-m seed=1,2 trainer=ddp": SWEEP,
    "-m seed=1,2 trainer.devices=2": SWEEP,
    "data=image_folder": "data.root has no default: type data.root=...",
}


@pytest.mark.parametrize("line", GOOD)
def test_good_line(line):
    check(line.split())


NEEDED = ["model", "data", "trainer", "callbacks", "compare", "init", *OPTIONAL, "seed"]
BAD |= {
    f"~{key}": f"a run needs {key}: leave out ~{key}"
    for key in (*NEEDED, "init.encoder", "trainer.max_epochs")
}
BAD |= {f"+{key}=1": f"{key} is not a setting: {instead}" for key, instead in DECIDED.items()}
BAD["model.latent=10"] = (
    "model.latent is not a setting: type latent=NAME, or model.latents=NUMBER for the model's own"
)
BAD |= {
    f"{group}=null": f"{group}=null is the default, the {owner}'s own: leave it out"
    for group in OPTIONAL
    for owner in ["data" if group in OF_DATA else "model"]
}
TASKS = (
    "fit or prior or test or sample or export or compare or shards or evaluate or report or "
    "explore or encode or decode or impute"
)
BAD["task=evalute"] = f"task must be {TASKS}, got 'evalute'; did you mean task=evaluate"
MEANT = {
    "model.lr": "model.optimizer.lr",
    "trainer.lr": "model.optimizer.lr",
    "trainer.epochs": "trainer.max_epochs",
    "trainer.min_epoch": "trainer.min_epochs",
    "+model.optimizer.amsgard": "model.optimizer.amsgrad",
}
BAD |= {
    f"{key}=1": f"unknown setting {key.lstrip('+')}; did you mean {meant}"
    for key, meant in MEANT.items()
}
EMPTY = ["run_dir", "checkpoint", "resume", "init.encoder", "init.decoder", "data.root"]


@pytest.mark.parametrize(("line", "message"), BAD.items())
def test_bad_line(line, message):
    with pytest.raises(Mistake) as caught:
        check(line.split())
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("group", "other"), [(group, other) for group, known in VALUES.items() for other in known]
)
def test_what_the_field_calls_otherwise_is_answered_with_what_to_type(group, other):
    with pytest.raises(Mistake) as caught:
        check([f"{group}={other.replace('_', '-').upper()}"])
    told = re.findall(r"[\w.]+=[\w./]+", VALUES[group][other])
    assert told and f"; type {VALUES[group][other]}" in str(caught.value)
    check(told)


@pytest.mark.parametrize("other", SETTINGS)
def test_a_setting_that_the_field_calls_otherwise_is_answered_with_ours(other):
    with pytest.raises(Mistake, match=re.escape(f"; did you mean {SETTINGS[other]}")):
        check([f"{other}=1"])
    first, *others = re.findall(r"[a-z][\w.]+", SETTINGS[other])
    dotted = [word for word in others if "." in word]
    assert all(key in GROUPS or f"`{key}`" in tables() for key in (first, *dotted))


@pytest.mark.parametrize("value", ["a", "b c", "d=1", "it's", 'e "f", g', "1", "null", "ö"])
def test_a_setting_that_is_said_can_be_typed(value):
    [config] = check(shlex.split(as_typed("run_dir", value)))
    assert config.run_dir == value


def test_plain_settings_are_not_quoted():
    assert as_typed("resume", "runs/2026-01-31-mlp") == "resume=runs/2026-01-31-mlp"


@pytest.mark.parametrize(
    ("line", "paths"),
    {
        "run_dir=~/x": ["HOME/x"],
        "run_dir='~/x'": ["HOME/x"],
        "run_dir=~/a=b": ["HOME/a=b"],
        "run_dir='x/~'": ["x/~"],
        "-m run_dir=~/a,~/b": ["HOME/a", "HOME/b"],
    }.items(),
)
def test_a_path_may_begin_at_home(line, paths, monkeypatch):
    monkeypatch.setenv("HOME", "HOME")
    configs = check(line.split())
    for config in configs:
        expand_home(config)
    assert [config.run_dir for config in configs] == paths


@pytest.mark.parametrize("key", ["model.optimizer.wd", "trainer.gpus"])
def test_what_only_begins_alike_is_not_suggested(key):
    with pytest.raises(Mistake, match=f"unknown setting {key}; known: "):
        check([f"{key}=1"])


@pytest.mark.parametrize("key", EMPTY)
@pytest.mark.parametrize("value", ["", "' '"])
def test_no_place_is_empty(key, value):
    data = ["data=image_folder", "data.root=/x"]
    with pytest.raises(Mistake, match=f"^{key} is empty: type a place, or leave it out$"):
        check([*data, f"{key}={value}"])


@pytest.mark.parametrize(
    "place", ["/x/it's", "\u00fc", "a(b", "runs/a=b", 'say "it"', "a}", "a#b c"]
)
def test_a_place_can_be_typed_as_it_is_said(place):
    try:
        check([f"run_dir={place}"])
    except Mistake as mistake:
        [text] = shlex.split(str(mistake).partition("quote the value twice, ")[2])
        [config] = check([text])
        assert config.run_dir == place


def test_what_train_py_decides_is_what_it_passes(monkeypatch, tmp_path):
    passed = {}

    def make(config, **arguments):
        passed.update(arguments)
        raise InterruptedError

    monkeypatch.setattr(build, "make", make)
    [config] = check([f"run_dir={tmp_path}", "logger=csv"])
    with pytest.raises(InterruptedError):
        build.trainer(config, None, fit=False)
    said = {key.removeprefix("trainer.") for key in DECIDED if key.startswith("trainer.")}
    assert said == passed.keys() - config.trainer.keys()


@pytest.mark.parametrize("line", ["", "model=gumble_vae", "sed=1"])
def test_hydra_is_left_as_it_was(line):
    try:
        check(line.split())
    except Mistake:
        pass
    assert not GlobalHydra.instance().is_initialized()


def test_process_ends_with_one_line_and_code_2(capsys):
    with pytest.raises(SystemExit) as caught:
        exit_on_mistake(["sed=1"])
    assert caught.value.code == 2
    assert capsys.readouterr().err == "train.py: unknown setting sed; did you mean seed\n"


FORESEEN = {
    "data=image_folder data.root=/nowhere": (
        "data.root must hold pictures (.bmp .gif .jpeg .jpg .pgm .png .ppm .tif .tiff .webp): "
        "/nowhere is not a folder"
    ),
    "data=streaming data.root=/nowhere": (
        "data.root must hold the shards that task=shards writes, in train/ and test/: /nowhere is "
        "not a folder"
    ),
    "model.latents=-1": "latents must be at least 1, got -1 (in model)",
    "latent=gaussian latent.latents=-1": "latents must be at least 1, got -1 (in model.latent)",
    "-m model.latents=-1,0": "latents must be at least 1, got -1 (in model)",
    "model.temperature=0": "temperature must be positive, got 0 (in model)",
    "model.optimizer.lr=-1": "Invalid learning rate: -1 (in model.optimizer)",
    "objective=elbo_warmup objective.beta.steps=0": (
        "steps must be at least 1, got 0 (in model.objective.beta)"
    ),
    "network.activation=rleu": (
        "activation must be one of relu, leaky_relu, tanh, elu, gelu, silu, glu, got 'rleu' (in "
        "model.network)"
    ),
    "network.negative_slope=0.3": (
        "negative_slope is that of activation=leaky_relu, got 0.3 with relu (in model.network)"
    ),
    "likelihood=columns": (
        "likelihood=columns is of the columns of a table, and datamodules.digits.Digits has none: "
        "leave it out, or type data=arrays data.train=FILE"
    ),
    "save.keep=0": "keep must be at least 1 and failures not negative, got 0 and 3",
    "save.every_minutes=0": "every_minutes must be positive, got 0",
    "trainer.max_epochs=0": "trainer.max_epochs must be positive, got 0",
    "task=explore checkpoint=gumbel_vae-digits explore.port=-1": (
        "explore.port must be in 0 to 65535, got -1"
    ),
    "task=compare compare.estimators=[drge]": "unknown estimator 'drge'; did you mean dreg; known:",
    "task=evaluate": "task=evaluate needs a trained model: type checkpoint=runs/NAME",
    "task=evaluate checkpoint=gumbel_vae-digits,nowhere": "no model at nowhere: there is no such ",
    "task=sample checkpoint=gumbel_vae-digits prior=mixture": (
        "task=sample takes the model as it was trained: leave out prior=mixture"
    ),
    "task=export checkpoint=gumbel_vae-digits model.latents=3": (
        "task=export takes the model as it was trained: leave out model.latents=3"
    ),
    "task=encode checkpoint=gumbel_vae-digits encode.out=z.npy objective=iwae": (
        "task=encode takes the model as it was trained: leave out objective=iwae"
    ),
    "task=prior checkpoint=gumbel_vae-digits prior=mixture latent=fsq": (
        "task=prior takes the model as it was trained: leave out latent=fsq"
    ),
    "data=digits model.condition_prior=true": "condition_prior=true needs a condition: type ",
    "task=sample checkpoint=gumbel_vae-digts": "no model at gumbel_vae-digts: there is no such ",
    "task=test checkpoint=nowhere": "no checkpoint at nowhere: expected a .ckpt file, or a run ",
    "resume=nowhere": "no checkpoint at nowhere: expected a .ckpt file, or a run with ",
    "run_dir=runs/a resume=auto model.latents=-1": "latents must be at least 1, got -1 (in model)",
    "resume=auto cuda_graphs=true": "cuda_graphs are made of a compiled step: type compile=true",
    "run_dir=runs/a resume=auto init.encoder=nowhere": "no model at nowhere: there is no such file",
    "init.encoder=nowhere": "no model at nowhere: there is no such file or folder, and the zoo ",
}


@pytest.mark.parametrize(("line", "message"), FORESEEN.items())
def test_what_would_be_refused_is_foreseen(line, message, capsys):
    with pytest.raises(SystemExit):
        exit_on_mistake(line.split())
    assert capsys.readouterr().err.startswith(f"train.py: {message}")


PASSED = [
    *("", "-m model.latents=-1,3", "resume=auto", "logger=csv", "seed='${oc.decode:${oc.env:N}}'"),
    "data=mnist data.root=/nowhere",  # where it will be downloaded
    "-m hydra/launcher=submitit_slurm data=image_folder data.root=/there",  # on another machine
    "data=image_folder data.root=/nowhere --cfg job",
]


def test_only_what_would_be_refused_is(monkeypatch):
    monkeypatch.setenv("N", "3")
    for line in PASSED:
        exit_on_mistake(line.split())


def test_a_run_to_go_on_with_may_have_what_is_not_typed(tmp_path):
    for folder in ("a", "b/0"):  # b is a sweep's
        file = tmp_path / folder / "checkpoints" / "last.ckpt"
        file.parent.mkdir(parents=True)
        file.touch()
    for name in ("a", "b"):
        exit_on_mistake([f"run_dir={tmp_path / name}", "resume=auto", "cuda_graphs=true"])
    exit_on_mistake(["resume=auto", "init.encoder=nowhere"])  # it may have begun before


def test_what_cannot_be_foreseen_is_left_to_the_run(monkeypatch):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    exit_on_mistake(["run_dir=~/x"])


def test_nothing_heavy_is_imported_to_find_a_mistake():
    code = (
        "import sys; from commandline.check import exit_on_mistake\n"
        f"for line in {[*FORESEEN, *PASSED[5:], 'task=evalute', '--help']!r}:\n"
        "    try: exit_on_mistake(line.split())\n"
        "    except SystemExit: pass\n"
        "print(*{'torch', 'pytorch_lightning', 'numpy', 'wandb'} & sys.modules.keys())"
    )
    command = [sys.executable, "-c", code]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines()[-1] == ""


@pytest.mark.parametrize("line", ["--help", "model=poisson_vae -h"])
def test_help_names_every_choice_and_every_setting_of_the_run(line, capsys):
    with pytest.raises(SystemExit) as caught:
        exit_on_mistake(line.split())
    assert caught.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100
    said = " ".join(" ".join(lines).split())
    for key in check([])[0]:
        assert f" {key} " in said or f" {key}=" in said
    for folder in filter(Path.is_dir, CONFIGS.iterdir()):
        chosen = [p.stem for p in folder.glob("*.yaml") if not p.stem.startswith("_")]
        chosen += [f"{inner.name}/..." for inner in folder.iterdir() if inner.is_dir()]
        assert not chosen or f" {folder.name} {', '.join(sorted(chosen))} " in said
    assert "_shared" not in said and "hydra" not in said
