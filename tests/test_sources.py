"""Models that come from elsewhere: W&B's side is a stand-in, the hub's a server in this process."""

import hashlib
import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import huggingface_hub
import pytest
import torch
import wandb
from huggingface_hub import constants
from test_pretrained import same, small_vae

from vae_lab import VAE
from vae_lab.latents import Categorical
from vae_lab.loggers import upload_release
from vae_lab.networks import Grid
from vae_lab.pretrained import card, push
from vae_lab.storage import sources

NAMES = "config.json", "model.safetensors"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "CACHE", tmp_path / "cache")
    return tmp_path / "cache"


@pytest.fixture
def release(tmp_path):
    return small_vae().save_pretrained(tmp_path / "release", metrics={"elbo": -1.0})


# Weights & Biases


class Entry:
    def __init__(self, path, content, ref=None):
        self.path, self.content, self.ref = path, content, ref

    def download(self, root):
        if self.content is None:
            raise OSError("connection reset")
        (Path(root) / self.path).write_bytes(self.content)


class Server:
    """Of W&B: its artifacts by name and version, and whether it is there."""

    def __init__(self):
        self.versions, self.down, self.downloads = {}, False, 0

    def add(self, folder, **extra):
        files = {name: (folder / name).read_bytes() for name in NAMES}
        entries = {name: Entry(name, content) for name, content in files.items()} | extra
        self.versions[f"v{len(self.versions)}"] = entries

    def artifact(self, name):
        if self.down:
            raise wandb.errors.CommError("the server does not answer\nand more")
        path, _, alias = name.partition(":")
        version = list(self.versions)[-1] if alias == "latest" else alias
        if path != "team/digits/gumbel" or version not in self.versions:
            raise ValueError(f"artifact {name} not found")
        entries = self.versions[version]
        self.downloads += 1
        manifest = SimpleNamespace(entries=entries)
        return SimpleNamespace(version=version, manifest=manifest, get_entry=entries.__getitem__)


@pytest.fixture
def server(monkeypatch):
    server = Server()
    monkeypatch.setattr(wandb, "Api", lambda: server)
    monkeypatch.setattr(wandb, "login", lambda **_: True)
    return server


def test_an_artifact_is_fetched_once_and_then_needs_no_network(server, release):
    server.add(release)
    loaded = VAE.from_pretrained("wandb:team/digits/gumbel:v0")
    assert same(loaded, VAE.from_pretrained(release))
    server.down = True
    assert same(VAE.from_pretrained("wandb:team/digits/gumbel:v0"), loaded)
    assert server.downloads == 1
    with pytest.raises(
        FileNotFoundError, match="cannot fetch wandb:team/digits/gumbel:v1, .*answer$"
    ):
        VAE.from_pretrained("wandb:team/digits/gumbel:v1")


def test_an_alias_follows_the_server_and_stays_where_it_was_without_one(server, release, tmp_path):
    server.add(release)
    first = VAE.from_pretrained("wandb:team/digits/gumbel")
    server.add(small_vae().save_pretrained(tmp_path / "second"))
    second = VAE.from_pretrained("wandb:team/digits/gumbel:latest")
    assert same(first, VAE.from_pretrained(release))
    assert same(second, VAE.from_pretrained(tmp_path / "second"))
    server.down = True
    assert same(VAE.from_pretrained("wandb:team/digits/gumbel"), second)


def test_a_download_that_breaks_off_leaves_nothing(server, release, cache):
    server.add(release, **{"model.safetensors": Entry("model.safetensors", None)})
    with pytest.raises(FileNotFoundError, match="connection reset"):
        VAE.from_pretrained("wandb:team/digits/gumbel:v0")
    assert not [path for path in cache.rglob("*") if path.is_file()]


def test_nothing_but_a_release_is_downloaded(server, release, tmp_path, cache):
    """An artifact's own paths are never used, and references could name any file here."""
    server.add(release, **{"../../marker": Entry("../../marker", b"x")})
    VAE.from_pretrained("wandb:team/digits/gumbel:v0")
    assert sorted(path.name for path in cache.rglob("*") if path.is_file()) == sorted(NAMES)
    assert not list(tmp_path.rglob("marker"))
    server.add(release, **{"config.json": Entry("config.json", b"{}", ref="file:///etc/passwd")})
    server.versions["v2"] = {"marker": Entry("marker", b"x")}
    for version in ("v1", "v2"):
        with pytest.raises(FileNotFoundError, match="is no release: it has no config.json of its"):
            VAE.from_pretrained(f"wandb:team/digits/gumbel:{version}")


def test_a_changed_copy_in_the_cache_is_refused(server, release, cache):
    server.add(release)
    VAE.from_pretrained("wandb:team/digits/gumbel:v0")
    weights = next(cache.rglob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    with pytest.raises(ValueError, match="does not match the sha256 in its config.json: fetch it"):
        VAE.from_pretrained("wandb:team/digits/gumbel:v0")


def test_no_credentials_are_said_plainly(server, monkeypatch):
    monkeypatch.setattr(wandb, "login", lambda **_: False)
    with pytest.raises(FileNotFoundError, match="no credentials: type wandb login$"):
        VAE.from_pretrained("wandb:team/digits/gumbel:v0")


@pytest.mark.parametrize(
    "source, message",
    [
        ("wandb:gumbel", "a W&B model is wandb:entity/project/artifact:alias, got wandb:gumbel"),
        ("wandb:../../x:latest", "a W&B model is"),
        ("wandb:a/../x:v1", "a W&B model is"),
        ("wandb:a/b/c:../v1", "a W&B model is"),
        ("hf:digits", "a model of Hugging Face is hf:owner/name"),
        ("hf:../x", "a model of Hugging Face is"),
        ("hf:a/b@../../x", "a model of Hugging Face is"),
        ("hf:a/b/c", "a model of Hugging Face is"),
    ],
)
def test_a_name_is_not_a_path(source, message, cache):
    with pytest.raises(ValueError, match=message):
        VAE.from_pretrained(source)
    with pytest.raises(ValueError, match=message):
        small_vae().push(source)
    assert not cache.exists()


def logged_run(**options):
    """A W&B run that takes artifacts as the real one does; what it was given is in its `mock`."""
    run = mock.create_autospec(wandb.Run, instance=True)
    run.disabled, run.offline, run.dir = False, False, "wandb/run-1/files"
    run.entity, run.project, run.name = "team", "digits", "my run"
    run.__enter__.return_value = run
    for name, value in options.items():
        setattr(run, name, value)
    run.log_artifact.return_value.wait.return_value.version = "v3"
    return run


def check_artifact(artifact, release):
    assert artifact.type == "model" and artifact.metadata["metrics"] == {"elbo": -1.0}
    entries = artifact.manifest.entries
    assert sorted(entries) == sorted(NAMES)
    for name, entry in entries.items():
        assert Path(entry.local_path).read_bytes() == (release / name).read_bytes()


def test_a_model_is_pushed_to_wandb(server, release, monkeypatch):
    run = logged_run()
    monkeypatch.setattr(wandb, "init", mock.create_autospec(wandb.init, return_value=run))
    assert push(release, "wandb:team/digits/gumbel") == "wandb:team/digits/gumbel:v3"
    assert wandb.init.call_args.kwargs["project"] == "digits"
    artifact = run.log_artifact.call_args.args[0]
    assert artifact.name == "gumbel"
    check_artifact(artifact, release)
    run.log_artifact.side_effect = wandb.errors.CommError("quota")
    with pytest.raises(ValueError, match="cannot upload to wandb:team/digits/gumbel: quota"):
        VAE.from_pretrained(release).push("wandb:team/digits/gumbel")


def test_a_run_gives_its_release_to_wandb(release):
    run = logged_run()
    line = upload_release(SimpleNamespace(experiment=run), release)
    assert line == "W&B: release uploaded, wandb:team/digits/my-run:v3"
    check_artifact(run.log_artifact.call_args.args[0], release)
    assert "best" in run.log_artifact.call_args.kwargs["aliases"]


@pytest.mark.parametrize(
    "error", [wandb.errors.CommError("down"), OSError("down"), RuntimeError("down")]
)
def test_an_upload_that_fails_is_one_line(release, error):
    run = logged_run()
    run.log_artifact.return_value.wait.side_effect = error
    line = upload_release(SimpleNamespace(experiment=run), release)
    assert line == f"W&B: the release was not uploaded (down); it is in {release}"


def test_a_disabled_run_is_left_alone(release):
    run = logged_run(disabled=True)
    assert "disabled" in upload_release(SimpleNamespace(experiment=run), release)
    run.log_artifact.assert_not_called()


def test_an_offline_run_stages_its_release(release, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "staged"))
    run = wandb.init(mode="offline", dir=tmp_path, name="x", settings=wandb.Settings(silent=True))
    try:
        line = upload_release(SimpleNamespace(experiment=run), release)
    finally:
        run.finish()
    assert line.startswith("W&B: release staged as x; upload with `wandb sync ")
    offline = Path(line.split("sync ")[1].rstrip("`"))
    assert list(offline.glob("run-*.wandb"))
    digests = {hashlib.sha256((release / name).read_bytes()).hexdigest() for name in NAMES}
    staged = [path for path in (tmp_path / "staged").rglob("*") if path.is_file()]
    assert {hashlib.sha256(path.read_bytes()).hexdigest() for path in staged} == digests


# Hugging Face


COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as a download asks for; `files` is set by the test."""

    files: dict[str, bytes]
    asked: list[str]

    def do_GET(self):
        self.asked.append(self.path)
        path = self.path.partition("?")[0]
        if path.startswith("/api/models/team/digits/tree/"):
            self.answer(json.dumps([self.listed(name) for name in self.files]).encode())
        elif path.startswith("/api/models/team/digits"):
            self.answer(json.dumps({"id": "team/digits", "sha": COMMIT, "siblings": []}).encode())
        elif path.startswith(f"/team/digits/resolve/{COMMIT}/"):
            name = path.rpartition("/")[2]
            self.answer(self.files[name], ETag=f'"{self.listed(name)["oid"]}"')
        else:
            self.answer(b"{}", 404, **{"X-Error-Code": "RepoNotFound"})

    do_HEAD = do_GET

    def listed(self, name):
        content = self.files[name]
        oid = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        return {"type": "file", "path": name, "size": len(content), "oid": oid}

    def answer(self, content, status=200, **headers):
        self.send_response(status)
        headers = {"X-Repo-Commit": COMMIT, "Content-Length": str(len(content))} | headers
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(release, tmp_path, monkeypatch):
    handler = type("Handler", (Hub,), {"files": {}, "asked": []})
    handler.files.update({name: (release / name).read_bytes() for name in NAMES})
    handler.files["marker.py"] = b"raise SystemExit"
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    place = f"http://127.0.0.1:{server.server_port}"
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, place)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", place)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    yield SimpleNamespace(handler=handler, stop=server.shutdown, close=server.server_close)
    server.shutdown()
    server.server_close()


def test_a_model_of_the_hub_is_fetched_once_and_then_needs_no_network(hub, release, tmp_path):
    loaded = VAE.from_pretrained("hf:team/digits")
    assert same(loaded, VAE.from_pretrained(release))
    assert card("hf:team/digits")["metrics"] == {"elbo": -1.0}
    assert not any("marker" in path for path in hub.handler.asked)
    hub.stop()
    hub.close()
    assert same(VAE.from_pretrained("hf:team/digits"), loaded)
    assert not list((tmp_path / "hub").rglob("marker.py"))


def test_what_the_hub_does_not_have_is_one_line(hub):
    with pytest.raises(FileNotFoundError, match="cannot fetch hf:team/other: ") as caught:
        VAE.from_pretrained("hf:team/other")
    assert "\n" not in str(caught.value)


def test_a_model_is_pushed_to_the_hub(release, monkeypatch):
    api = mock.create_autospec(huggingface_hub.HfApi, instance=True)
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: api)
    assert push(release, "hf:team/digits") == "hf:team/digits"
    api.create_repo.assert_called_once_with("team/digits", exist_ok=True)
    assert api.upload_folder.call_args.kwargs["folder_path"] == release
    api.create_repo.side_effect = OSError("401\nand more")
    with pytest.raises(ValueError, match="cannot upload to hf:team/digits: 401$"):
        push(release, "hf:team/digits")


def test_a_missing_package_is_named(monkeypatch, release):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for use in (VAE.from_pretrained, lambda destination: push(release, destination)):
        with pytest.raises(ImportError, match="huggingface_hub, .*: type pip install"):
            use("hf:team/digits")


def test_a_destination_is_one_of_two_kinds(release):
    with pytest.raises(ValueError, match="a destination is hf:owner/name or wandb:.* got 'x'"):
        push(release, "x")


def test_what_cannot_be_loaded_is_not_pushed(release):
    (release / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="has format None"):
        push(release, "hf:team/digits")


HOMELESS = """
import os, pwd
def getpwuid(uid):
    raise KeyError(uid)
del os.environ["HOME"]
pwd.getpwuid = getpwuid
from vae_lab import VAE
VAE.from_pretrained("gaussian_vae-digits")
"""


def test_a_user_without_a_home_needs_none_for_what_is_on_this_machine():
    ended = subprocess.run([sys.executable, "-c", HOMELESS], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


def test_a_grid_goes_to_wandb_and_comes_from_the_hub_as_any_other(tmp_path, hub):
    vae = small_vae(Categorical(1, 4), Grid((4, 6), checkpointing=True), shape=(3, 8, 8))
    folder = vae.save_pretrained(tmp_path / "grid", torch.float16)
    hub.handler.files.update({name: (folder / name).read_bytes() for name in NAMES})
    loaded, x = VAE.from_pretrained("hf:team/digits").at(3, 13, 21), torch.rand(2, 3, 13, 21)
    assert same(loaded, VAE.from_pretrained(folder)) and loaded.network == vae.network
    expected = vae.at(3, 13, 21).encode(x).mean
    torch.testing.assert_close(loaded.encode(x).mean, expected, atol=1e-2, rtol=0)
    assert sources.artifact(folder, "grid").metadata["network"]["class"] == "Grid"
