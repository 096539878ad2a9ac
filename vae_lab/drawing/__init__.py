"""Pictures of a trained model, and the page with all of them."""
