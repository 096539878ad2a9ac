"""The explorer in a browser: Chromium without a window, as Debian packages it."""

import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tables import SCHEMA, plotted
from tiny import randomize

from datamodules.digits import Digits
from datamodules.fashion_mnist import FashionMNIST
from vae_lab import VAE
from vae_lab.latents import Bernoulli, Categorical, Gaussian, Poisson
from vae_lab.likelihoods import Bernoulli as BernoulliLikelihood
from vae_lab.networks import MLP, Grid

ROOT = Path(__file__).parents[1]
NAMES = {"numbers": "gaussian_vae-fashion_mnist", "codes": "gumbel_vae-fashion_mnist"}
LATENTS = {"bits": Bernoulli(230), "counts": Poisson(12)}  # of untrained models
ON_A_GRID = {  # of 4 x 4 places
    "numbers by place": Gaussian(2),
    "codes by place": Categorical(1, 6),
    "bits by place": Bernoulli(3),
    "counts by place": Poisson(2),
}
PLOTS = ("table", "series")
KINDS = ", ".join(f"{number}: {column['kind']}" for number, column in enumerate(SCHEMA))
TYPED = ("data.batch_size=8", f"data.columns={{{KINDS}}}")
CHROME = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
MISSING = [
    name for name, found in {"chromium": CHROME, "chromedriver": DRIVER}.items() if not found
]
MISSING += [str(path) for path in FashionMNIST.system if not path.is_dir()]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        bool(MISSING) and "CI" not in os.environ,
        reason=f"{' '.join(MISSING)}: apt-get install chromium-driver dataset-fashion-mnist",
    ),
]
WAY = ".path .q-slider"
SLIDER, CELL = ".latent .q-slider__track-container", ".cell[aria-pressed=false]"

# Milliseconds from a key on the slider, or a click on a code, to the frame with its picture.
DELAYS = """
const [selector, count, done] = arguments;
const picture = document.querySelector("img[alt=edited]");
const pause = ms => new Promise(resolve => setTimeout(resolve, ms));
(async () => {
  const delays = [];
  for (let i = 0; i < count; i++) {
    const changed = new Promise(resolve => {
      const observer = new MutationObserver(() => { observer.disconnect(); resolve(); });
      observer.observe(picture, {attributes: true, attributeFilter: ["src"]});
    });
    const control = document.querySelector(selector), began = performance.now();
    const key = {keyCode: i % 40 < 20 ? 39 : 37, bubbles: true, cancelable: true};
    if (control.click && control.tagName == "BUTTON") control.click();
    else control.dispatchEvent(new KeyboardEvent("keydown", key));
    await changed;
    await picture.decode();
    await new Promise(requestAnimationFrame);
    delays.push(performance.now() - began);
    await pause(30);
  }
  done(delays.sort((a, b) => a - b));
})();
"""


def release(latent, folder, network):
    torch.manual_seed(0)
    vae = randomize(VAE(Digits.shape, network, latent, BernoulliLikelihood()), 0.4)
    return (vae.save_pretrained(folder, data={"class": "Digits"}),)


def of_values(kind, folder):
    """What is typed for a model of data that are no images."""
    vae, x = plotted(kind, Gaussian(3))
    np.save(folder / "x.npy", x.numpy())
    vae.save_pretrained(folder / "release")
    return f"{folder / 'release'}", "data=arrays", f"data.train={folder / 'x.npy'}", *TYPED


@contextmanager
def served(typed, folder):
    """train.py with its page; at the end Ctrl-C has to end it in one line."""
    leave_out = ("DISPLAY", "WAYLAND_DISPLAY", "PYTEST_CURRENT_TEST")
    process = subprocess.Popen(
        [
            sys.executable,
            str(ROOT / "train.py"),
            "task=explore",
            f"checkpoint={typed[0]}",
            *typed[1:],
        ],
        **{"cwd": folder, "text": True, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE},
        env={name: value for name, value in os.environ.items() if name not in leave_out},
    )
    try:
        yield process
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=30) == ("", "train.py: interrupted\n")
        assert process.returncode == 130
        assert list(folder.iterdir()) == []
    finally:
        process.kill()


def address(process):
    line = process.stdout.readline()
    assert line, process.stderr.read()
    return re.search(r"http://127\.0\.0\.1:\d+/", line).group()


@pytest.fixture(scope="module")
def addresses(tmp_path_factory):
    folder = tmp_path_factory.mktemp
    models = {kind: (name,) for kind, name in NAMES.items()}
    models |= {kind: release(LATENTS[kind], folder(kind), MLP((16,))) for kind in LATENTS}
    models |= {kind: release(q, folder("grid"), Grid((6,))) for kind, q in ON_A_GRID.items()}
    models |= {kind: of_values(kind, folder(kind)) for kind in PLOTS}
    with ExitStack() as held:
        processes = {
            kind: held.enter_context(served(typed, folder("empty")))
            for kind, typed in models.items()
        }
        yield {kind: address(process) for kind, process in processes.items()}


@pytest.fixture(scope="module")
def browser():
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROME
    for argument in (
        *("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"),
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",  # there is no other machine
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options, Service(DRIVER))
    browser.set_script_timeout(60)
    yield browser
    browser.quit()


@pytest.fixture
def page(browser, addresses):
    """Opens the page of a kind of latent, and waits until it is complete."""

    def page(kind, width=1160, height=760, scheme="light"):
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 800}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        scheme = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", scheme)
        browser.get(addresses[kind])
        loaded = "return [...document.images].length > 19 && [...document.images].every(i => i.src)"
        if kind in PLOTS:
            until(browser, lambda: source(browser, "edited"))
            return browser
        until(browser, lambda: browser.execute_script(loaded))
        until(browser, lambda: source(browser, "edited") == source(browser, "reconstruction"))
        return browser

    return page


def until(browser, condition):
    from selenium.webdriver.support.wait import WebDriverWait

    return WebDriverWait(browser, 20, 0.05).until(lambda _: condition())


def find(browser, selector):
    return browser.find_element("css selector", selector)


def source(browser, name):
    return browser.execute_script(
        "return document.querySelector(`img[alt='${arguments[0]}']`)?.src", name
    )


def button(browser, text):
    return browser.find_element("xpath", f"//button[normalize-space()='{text}']")


def pressed(browser):
    cells = "return [...document.querySelectorAll('.cell[aria-pressed=true]')].map(c => c.id)"
    return {*browser.execute_script(cells)}


def changes(browser, name, act):
    """Whether the picture of this name becomes another; it has 20 seconds."""
    before = source(browser, name)
    act()
    until(browser, lambda: source(browser, name) != before)


def test_a_slider_changes_the_picture_and_reset_restores_it(page):
    browser = page("numbers")
    slider = find(browser, SLIDER)
    began = find(browser, ".latent .q-slider").get_attribute("aria-valuenow")
    number = find(browser, ".latent .number")
    assert float(number.text) == pytest.approx(float(began), abs=0.005)
    changes(browser, "edited", lambda: slider.send_keys("\ue014" * 30))  # arrows to the right
    assert source(browser, "edited") != source(browser, "reconstruction")
    moved = find(browser, ".latent .q-slider").get_attribute("aria-valuenow")
    assert float(moved) == pytest.approx(float(began) + 0.3, abs=0.02)
    until(browser, lambda: float(number.text) == pytest.approx(float(moved), abs=0.005))
    button(browser, "Reset").click()
    until(browser, lambda: source(browser, "edited") == source(browser, "reconstruction"))
    assert find(browser, ".latent .q-slider").get_attribute("aria-valuenow") == began


@pytest.mark.parametrize(("kind", "latents"), [("codes", 20), ("counts", 11)])
def test_a_code_or_a_count_changes_the_picture(page, kind, latents):
    browser = page(kind)
    before = pressed(browser)
    assert len(before) == latents
    cell = find(browser, CELL)
    changes(browser, "edited", cell.click)
    assert cell.get_attribute("aria-pressed") == "true"
    after = pressed(browser)
    assert len(after) == latents and len(after - before) == 1


def test_a_count_of_many_is_moved(page):
    browser = page("counts")
    slider = find(browser, ".latent .q-slider")
    began = int(slider.get_attribute("aria-valuenow"))
    changes(browser, "edited", lambda: find(browser, SLIDER).send_keys("\ue014" * 5))
    until(browser, lambda: slider.get_attribute("aria-valuenow") == str(began + 5))


def test_bits_are_switched_and_switched_back_and_there_are_more(page):
    browser = page("bits")
    cells = browser.find_elements("css selector", ".cell")
    before, cell = pressed(browser), find(browser, CELL)
    changes(browser, "edited", cell.click)
    assert pressed(browser) == before | {cell.get_attribute("id")}
    changes(browser, "edited", cell.click)
    assert pressed(browser) == before
    assert source(browser, "edited") == source(browser, "reconstruction")
    more = button(browser, "30 more")
    more.click()
    until(browser, lambda: not more.is_displayed())
    *old, new = browser.find_elements("css selector", ".cell")
    assert len(cells) == 200 and len(old) == 229
    changes(browser, "edited", new.click)


def at(browser, *places):
    """Presses the mouse at the first of some places, and moves it over the others."""
    from selenium.webdriver.common.action_chains import ActionChains

    canvas = find(browser, ".canvas")
    side = canvas.size["width"] / 4
    points = [(int((x - 1.5) * side), int((y - 1.5) * side)) for y, x in places]
    act = ActionChains(browser, duration=20)
    act = act.move_to_element_with_offset(canvas, *points[0]).click_and_hold()
    for point in points[1:]:
        act = act.move_to_element_with_offset(canvas, *point)
    act.release().perform()


def change(browser):
    """Another value of the first variable of the chosen place."""
    cell = browser.find_elements("css selector", CELL)
    (cell[0].click if cell else lambda: find(browser, SLIDER).send_keys("\ue014" * 60))()


def state(browser):
    """What the controls of the chosen place show."""
    return browser.execute_script(
        "return [...document.querySelectorAll('.cell[aria-pressed=true], .latent .number')]"
        ".map(control => control.id + control.innerText)"
    )


@pytest.mark.parametrize("kind", ON_A_GRID)
def test_a_place_is_chosen_changed_and_painted(page, kind):
    browser = page(kind)
    assert "4 x 4 places" in find(browser, "main").text
    assert len(browser.find_elements("css selector", ".latent .q-slider")) <= 2  # of one place
    at(browser, (0, 3))
    until(browser, lambda: "row 1, column 4: KL" in find(browser, "main").text)
    before = state(browser)
    changes(browser, "edited", lambda: change(browser))
    until(browser, lambda: state(browser) != before)
    held, one = state(browser), source(browser, "edited")
    button(browser, "Paint with this place").click()
    changes(browser, "edited", lambda: at(browser, (2, 0), (2, 3), (3, 3)))
    until(browser, lambda: "row 4, column 4: KL" in find(browser, "main").text)
    button(browser, "Choose a place").click()
    for place in ((2, 1), (2, 2), (3, 3)):  # those that the pointer jumped over as well
        at(browser, place)
        said = f"row {place[0] + 1}, column {place[1] + 1}:"
        until(browser, lambda said=said: said in find(browser, "main").text)
        assert state(browser) == held
    button(browser, "Undo").click()  # the whole stroke
    until(browser, lambda: source(browser, "edited") == one)
    button(browser, "Undo").click()
    until(browser, lambda: source(browser, "edited") == source(browser, "reconstruction"))
    at(browser, (0, 3))
    until(browser, lambda: state(browser) == before)
    assert browser.get_log("browser") == []


def test_what_is_held_can_be_changed(page):
    browser = page("codes by place")
    button(browser, "Paint with this place").click()
    until(browser, lambda: find(browser, ".canvas.painting"))
    cell = find(browser, CELL)
    cell.click()
    until(browser, lambda: cell.get_attribute("aria-pressed") == "true")
    assert source(browser, "edited") == source(browser, "reconstruction")  # nothing is painted yet
    changes(browser, "edited", lambda: at(browser, (0, 0), (3, 3)))
    assert len(browser.find_elements("css selector", ".cell .picture")) == 6


@pytest.mark.parametrize("kind", [*NAMES, "counts"])
def test_samples_test_images_and_the_way_between_two(page, kind):
    browser = page(kind)
    changes(browser, "edited", find(browser, "img[alt='sample 2']").click)
    changes(browser, "original", find(browser, "img[alt='test image 2']").click)
    until(browser, lambda: source(browser, "edited") == source(browser, "reconstruction"))
    way = find(browser, ".path .q-slider__track-container")
    changes(browser, "edited", lambda: way.send_keys("\ue00e" * 5))  # page up
    number = find(browser, ".path .number")
    until(browser, lambda: number.text == f"{find(browser, WAY).get_attribute('aria-valuenow')} %")
    assert number.text != "0 %"
    if kind == "codes":
        assert "the prior is uniform" in find(browser, "main").text
    else:
        heat = find(browser, ".short .q-slider__track-container")
        assert find(browser, ".short + .number").text == "1.00"
        changes(browser, "sample 1", lambda: heat.send_keys("\ue014" * 5))
        until(browser, lambda: find(browser, ".short + .number").text == "1.25")
    changes(browser, "sample 1", button(browser, "New samples").click)


@pytest.mark.parametrize("kind", PLOTS)
def test_a_row_is_chosen_edited_and_sampled(page, kind):
    browser = page(kind)
    first = source(browser, "edited")
    number = find(browser, "input[aria-label=row]")
    number.send_keys("\ue003", "-1000", "\ue004")  # none of a row: nothing happens
    changes(browser, "edited", lambda: number.send_keys(*["\ue003"] * 9, "3", "\ue004"))
    third = source(browser, "edited")
    changes(browser, "edited", lambda: find(browser, SLIDER).send_keys("\ue014" * 30))
    changes(browser, "edited", lambda: button(browser, "Reset").click())
    until(browser, lambda: source(browser, "edited") == third != first)
    changes(browser, "edited", lambda: button(browser, "Take a sample").click())
    button(browser, "Reset").click()
    until(browser, lambda: source(browser, "edited") == third)
    changes(
        browser,
        "edited",
        lambda: find(browser, f"{WAY} .q-slider__track-container").send_keys("\ue014" * 30),
    )
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_a_second_ctrl_c_does_not_break_off_the_ending():
    from uvicorn import Config

    from vae_lab.explorer.page import Server

    server = Server(Config(None))
    for _ in range(2):
        server.handle_exit(signal.SIGINT, None)
    assert server.should_exit and not server.force_exit


def test_the_way_to_the_picture_that_was_chosen_before(page):
    browser = page("counts")
    changes(browser, "original", find(browser, "img[alt='test image 2']").click)
    end, reconstruction = source(browser, "original"), source(browser, "reconstruction")
    changes(browser, "interpolation to", button(browser, "To the picture above").click)
    changes(browser, "original", find(browser, "img[alt='test image 3']").click)
    assert source(browser, "interpolation to") == end
    find(browser, ".path .q-slider__track-container").send_keys("\ue00e" * 20)
    until(browser, lambda: source(browser, "edited") == reconstruction)
    again = button(browser, "To another test image")  # drawn, and so it may be the same one
    until(browser, lambda: again.click() or source(browser, "interpolation to") != end)
    way = find(browser, WAY)
    until(browser, lambda: way.get_attribute("aria-valuenow") == "0")


def test_other_test_images(page):
    browser = page("counts")
    strip = "return [...document.querySelectorAll('[alt^=test]')].map(picture => picture.src)"
    before = browser.execute_script(strip)
    button(browser, "Other test images").click()
    until(browser, lambda: browser.execute_script(strip) != before)
    image = source(browser, "test image 8")
    find(browser, "img[alt='test image 8']").click()
    until(browser, lambda: source(browser, "original") == image)


def test_uploads(page, tmp_path):
    browser = page("numbers")
    browser.execute_script("HTMLInputElement.prototype.click = () => { window.asked = true; }")
    button(browser, "Upload").click()  # the browser's own window cannot be reached
    until(browser, lambda: browser.execute_script("return window.asked"))

    def upload(name):
        find(browser, "input[type=file]").send_keys(str(tmp_path / name))

    Image.new("RGB", (200, 100), "white").save(tmp_path / "white.png")
    changes(browser, "original", lambda: upload("white.png"))
    until(browser, lambda: source(browser, "edited") == source(browser, "reconstruction"))
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "large.png").write_bytes(b"\0" * 21 * 2**20)
    for name, message in {
        "text": "text.png: it is no picture of a known format",
        "empty": "empty.png: the file is empty",
        "large": "at most 20 MB are read",
    }.items():
        before = source(browser, "original")
        upload(f"{name}.png")
        until(browser, lambda said=message: said in find(browser, "body").text)
        assert source(browser, "original") == before


@pytest.mark.parametrize(
    ("kind", "scheme"),
    [*product(NAMES, ["light", "dark"]), *product([*LATENTS, *ON_A_GRID], ["light"])],
)
def test_it_fits_a_phone_and_takes_nothing_from_elsewhere(page, kind, scheme, addresses):
    browser = page(kind, 390, 844, scheme)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 390
    paper = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert paper == {"light": "rgb(255, 255, 255)", "dark": "rgb(18, 18, 18)"}[scheme]
    names = "return performance.getEntriesByType('resource').map(entry => entry.name)"
    assert all(name.startswith(addresses[kind]) for name in browser.execute_script(names))
    assert browser.get_log("browser") == []


@pytest.mark.parametrize("kind", NAMES)
def test_the_delay_and_the_pictures_of_the_documentation(page, kind, tmp_path, capsys):
    """SCREENSHOTS=docs/images writes them where the documentation shows them."""
    browser = page(kind)
    selector = SLIDER if kind == "numbers" else ".latent:first-child " + CELL
    browser.execute_async_script(DELAYS, selector, 20)
    delays = browser.execute_async_script(DELAYS, selector, 200)
    median, most = torch.tensor(delays).quantile(torch.tensor([0.5, 0.95])).tolist()
    with capsys.disabled():
        load = f"load {os.getloadavg()[0]:.1f}"
        print(f"\n{NAMES[kind]}: {median:.0f} ms, 95 in 100 within {most:.0f} ms ({load})")
    page(kind)
    if kind == "numbers":
        find(browser, SLIDER).send_keys("\ue014" * 100)
    else:
        for row in (1, 3, 6):
            find(browser, f".latent:nth-child({row}) {CELL}").click()
    until(browser, lambda: source(browser, "edited") != source(browser, "reconstruction"))
    folder = Path(os.environ.get("SCREENSHOTS") or tmp_path)
    path = folder / f"explorer-{'gaussian' if kind == 'numbers' else 'codes'}.png"
    browser.execute_script("document.activeElement.blur()")
    browser.save_screenshot(str(path))
    picture = Image.open(path).convert("RGB").quantize(128)  # a third of the bytes
    picture.save(path, optimize=True)
    assert path.stat().st_size < 200_000
