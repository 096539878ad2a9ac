"""Small trained models that come with the package: `VAE.from_pretrained("gumbel_vae-digits")`.

Each is a release folder, `MODEL-DATA`, with 16-bit weights and, in its `config.json`, a card: the
data and how it was prepared, the commands and the commit that trained it, and the ELBO and the
negative log-likelihood of the test split, both with their standard errors.
"""

from pathlib import Path

FOLDER = Path(__file__).parent


def names() -> list[str]:
    """The models, by the names that `from_pretrained` takes."""
    return sorted(path.parent.name for path in FOLDER.glob("*/config.json"))
