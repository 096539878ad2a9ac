"""A window of a browser in which the z of a row of a table, or of a series, is edited."""

from torch import Tensor

from ..optional import needs
from .edits import STEPS
from .widgets import Slider, as_url, button, figure, quiet, section
from .window import Window

with needs("explore", "the explorer's page"):
    from nicegui import ui


class PlotWindow(Window):
    """A datum as a plot: the original, its reconstruction and what is edited on one axis.

    It is chosen by its number, and a sample of the prior is taken in its place.
    """

    def _build_pictures(self) -> None:
        with ui.element("div").classes("plot"):
            self.edited = figure("edited")

    def _build_choice(self) -> None:
        last = len(self.explorer.images) - 1
        with section("Row of the test data"):
            with ui.element("div").classes("row"):
                self.number = ui.number(value=0, min=0, max=last, precision=0, on_change=self._pick)
                self.number.props('dense outlined aria-label="row"')
                quiet(f"of 0 to {last}")
                button("Another row", self._another)
                button("Reset", lambda: self._take(self.start))

    def _another(self) -> None:
        self.number.value = self._random(1)[0].number

    def _pick(self) -> None:
        """The number is empty while somebody types, or none of a row."""
        if self.number.value in range(len(self.explorer.images)):
            self._choose(self._datum(int(self.number.value)))

    def _build_path(self) -> None:
        with section("Interpolation"):
            with ui.element("div").classes("path"):
                self.way = Slider("interpolation", 0, STEPS, 1, self._walk, " %")
                self.target = ui.label().classes("quiet")
            with ui.element("div").classes("row"):
                button("To another row", lambda: self._aim(self._random(1)[0]))
                button("To the row above", lambda: self._aim(self.shown._replace(y=self.y)))

    def _build_samples(self) -> None:
        with section("Samples of the prior"), ui.element("div").classes("row"):
            button("Take a sample", self._resample)
            self._build_temperature()

    def _show_start(self) -> None:
        """It is in the plot of what is edited."""

    def _show_end(self) -> None:
        self.target.set_text(f"row {self.other.number}")

    def _resample(self) -> None:
        self.seed += 1
        self._take(self.explorer.samples(1, self.temperature, self.seed, self.y)[0])

    async def _draw_samples(self) -> None:
        """None is shown before it is taken."""

    def _drawn(self, z: Tensor) -> str:
        explorer = self.explorer
        return as_url(
            explorer.png(
                {
                    "data": self.shown.x,
                    "reconstruction": explorer.decode(self.start, self.shown.y),
                    "edited": explorer.decode(z, self.y),
                }
            )
        )
