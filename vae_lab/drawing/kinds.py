"""Which figures show data of which shape."""

from ..inputs import Shape
from .base import Figures
from .images import Images
from .rows import Rows
from .series import Series

BY_AXES: dict[int, Figures] = {1: Rows(), 2: Series(), 3: Images()}


def figures_of(shape: Shape) -> Figures:
    """The figures of data of this shape: images, series, or rows of a table."""
    return BY_AXES[len(shape)]
