"""Places to load models from and upload them to: disk, zoo, Weights & Biases, Hugging Face."""

import difflib
import json
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import zoo
from ..optional import needs

if TYPE_CHECKING:
    from wandb import Artifact

CACHE = Path("~/.cache/vae_lab")  # without a home only an error for those who need it
FILES = ("config.json", "model.safetensors")  # of a release; nothing else is ever downloaded
MAX_CARD_BYTES = 2**20
UPLOAD_SECONDS = 300

# Names become folders of the cache: no separators, and none of them begins with a dot.
WANDB_NAME = re.compile(r"(\w[\w.-]*)/(\w[\w .-]*)/(\w[\w.-]*)(?::(\w[\w.-]*))?")
HUB_NAME = re.compile(r"(\w[\w.-]*/\w[\w.-]*)(?:@(\w[\w./-]*))?")


def resolve(source: str | Path) -> Path:
    """The file or folder on this machine that a source names; downloads it where it must.

    Args:
        source: a path; a model of the zoo; `wandb:entity/project/artifact:alias`; or
            `hf:owner/name`, also `hf:owner/name@revision`. Downloads are kept, and are found
            there without a network.

    Raises:
        FileNotFoundError: there is no such model, or it cannot be reached and is not in the cache.
        ValueError: the name is not one of that kind.
        ImportError: the package that downloads it is not installed.
    """
    if not isinstance(source, str | Path):
        raise ValueError(f"a model's source is a path or a name, got {source!r}")
    kind, _, name = str(source).partition(":")
    if kind == "wandb":
        return _from_wandb(*_wandb_name(name))
    if kind == "hf":
        return _from_hub(*_hub_name(name))
    path = Path(source).expanduser()
    if path.exists():
        return path
    known = zoo.names()
    if str(source) in known:
        return zoo.FOLDER / source
    close = difflib.get_close_matches(str(source), known, 1)
    hint = f"; did you mean {close[0]}" if close else ""
    raise FileNotFoundError(
        f"no model at {source}: there is no such file or folder, and the zoo has "
        f"{', '.join(known)}{hint}"
    )


def push(folder: Path, destination: str) -> str:
    """Uploads a release's folder.

    Args:
        destination: `hf:owner/name` or `wandb:entity/project/artifact`; made where it is new.

    Returns:
        The source that loads what was uploaded.
    """
    kind, _, name = destination.partition(":")
    if kind == "hf":
        return _to_hub(folder, *_hub_name(name))
    if kind == "wandb":
        return _to_wandb(folder, *_wandb_name(name))
    raise ValueError(
        f"a destination is hf:owner/name or wandb:entity/project/artifact, got {destination!r}"
    )


def artifact(folder: Path, name: str) -> "Artifact":
    """A release's folder as a W&B artifact that has the card as its metadata."""
    with needs("train", "wandb:"):
        import wandb

    made = wandb.Artifact(name, type="model", metadata=read_card(folder))
    for file in FILES:
        made.add_file(str(folder / file), name=file)
    return made


def _wandb_name(name: str) -> tuple[str, str, str, str | None]:
    if match := WANDB_NAME.fullmatch(name):
        return match.group(1), match.group(2), match.group(3), match.group(4)
    raise ValueError(f"a W&B model is wandb:entity/project/artifact:alias, got wandb:{name}")


def _hub_name(name: str) -> tuple[str, str | None]:
    if match := HUB_NAME.fullmatch(name):
        return match.group(1), match.group(2)
    raise ValueError(f"a model of Hugging Face is hf:owner/name or with @revision, got hf:{name}")


def _from_wandb(entity: str, project: str, name: str, alias: str | None) -> Path:
    """The folder of a release in the cache, downloaded if it is not there yet.

    An alias such as `latest` is looked up at W&B, or in the cache if there is no network.

    The cache has a folder for every version, and for every alias a file with the version that it
    last stood for.
    """
    with needs("train", "wandb:"):
        import wandb

    cache = CACHE.expanduser() / "wandb" / entity / project / name
    alias = alias or "latest"
    known = cache / f"{alias}.txt"
    if is_release(cache / alias):
        return cache / alias
    try:
        if not wandb.login(prompt=False, verify=False):
            raise wandb.Error("no credentials: type wandb login")
        found = wandb.Api().artifact(f"{entity}/{project}/{name}:{alias}")
        version: str = found.version
        if not is_release(cache / version):
            _download(found, cache / version)
    except (wandb.Error, OSError, ValueError) as error:
        if known.is_file():
            return cache / known.read_text()
        raise FileNotFoundError(
            f"cannot fetch wandb:{entity}/{project}/{name}:{alias}, and it is not in {CACHE}: "
            f"{first_line(error)}"
        ) from None
    if version != alias:
        known.write_text(version)
    return cache / version


def _download(found: "Artifact", folder: Path) -> None:
    """A folder that is there is whole: the files arrive in another one, which then is renamed."""
    entries = found.manifest.entries
    for file in FILES:
        if file not in entries or entries[file].ref is not None:  # a reference may lead anywhere
            raise ValueError(f"the artifact is no release: it has no {file} of its own")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as partial:
        for file in FILES:
            found.get_entry(file).download(root=partial)
        whole = Path(partial) / "whole"
        whole.mkdir()
        for file in FILES:
            (Path(partial) / file).rename(whole / file)
        try:
            whole.rename(folder)
        except OSError:  # unless another process was faster
            if not is_release(folder):
                raise


def is_release(folder: Path) -> bool:
    """True if the folder has both files of a release."""
    return all((folder / file).is_file() for file in FILES)


def read_card(folder: Path) -> dict[str, Any]:
    """The card of the release in a folder: the contents of its `config.json`."""
    path = folder / FILES[0]
    if path.stat().st_size > MAX_CARD_BYTES:
        raise ValueError(f"{path} must be a short text, got {path.stat().st_size} bytes")
    try:
        config = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not a JSON file: {first_line(error)}") from None
    if not isinstance(config, dict):
        raise ValueError(f"{path} must hold a JSON object, got a {type(config).__name__}")
    return config


def _from_hub(repository: str, revision: str | None) -> Path:
    """The folder of a release in huggingface_hub's own cache, which also works without network."""
    with needs("hub", "hf:"):
        from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=[*FILES]))
    except (OSError, ValueError) as error:  # of which all errors of the hub are
        raise FileNotFoundError(f"cannot fetch hf:{repository}: {first_line(error)}") from None


def _to_hub(folder: Path, repository: str, revision: str | None) -> str:
    with needs("hub", "hf:"):
        from huggingface_hub import HfApi

    try:
        hub = HfApi()
        hub.create_repo(repository, exist_ok=True)
        hub.upload_folder(
            repo_id=repository,
            folder_path=folder,
            revision=revision,
            commit_message="A release of vae_lab",
            allow_patterns=[*FILES],
        )
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot upload to hf:{repository}: {first_line(error)}") from None
    return f"hf:{repository}" + (f"@{revision}" if revision else "")


def _to_wandb(folder: Path, entity: str, project: str, name: str, alias: str | None) -> str:
    with needs("train", "wandb:"):
        import wandb

    try:
        if not wandb.login(prompt=False, verify=False):
            raise ValueError("no credentials: type wandb login")
        settings = wandb.Settings(silent=True)
        with wandb.init(
            entity=entity, project=project, job_type="push", mode="online", settings=settings
        ) as run:
            aliases = ["latest", *([alias] if alias else [])]
            logged = run.log_artifact(artifact(folder, name), aliases=aliases)
            version = logged.wait(UPLOAD_SECONDS).version
    except (wandb.Error, OSError, ValueError) as error:
        raise ValueError(
            f"cannot upload to wandb:{entity}/{project}/{name}: {first_line(error)}"
        ) from None
    return f"wandb:{entity}/{project}/{name}:{version}"


def first_line(error: Exception) -> str:
    """The first line of an error's message, or the name of its class if the message is empty."""
    return next(iter(str(error).splitlines()), type(error).__name__)
