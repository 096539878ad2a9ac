"""The page on which a trained model's z is edited, and the edits without a page."""

from .edits import Explorer as Explorer
