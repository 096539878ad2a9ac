"""`python docs/notebooks.py`: the pages that can be run as notebooks, without outputs."""

from pathlib import Path

import jupytext

DOCS = Path(__file__).parent
PAGES = ("index", "tutorial", "tables", "series", "labels")
HEADER = """---
jupyter:
  kernelspec:
    display_name: Python 3
    language: python
    name: python3
---

```python
# In the checkout, where train.py is.
from os import chdir
from pathlib import Path

if not Path("train.py").exists():
    chdir("../..")
```

"""


def notebook(page: str) -> str:
    """A page's Python and shell blocks as cells."""
    text = (DOCS / f"{page}.md").read_text().partition("```{toctree}")[0]
    cells = jupytext.reads(HEADER + text, fmt="md")
    for number, cell in enumerate(cells.cells):
        cell.id = f"cell-{number}"  # jupytext draws one by chance
    return jupytext.writes(cells, fmt="ipynb")


if __name__ == "__main__":
    (DOCS / "notebooks").mkdir(exist_ok=True)
    for page in PAGES:
        (DOCS / "notebooks" / f"{page}.ipynb").write_text(notebook(page))
