"""What is drawn of a trained model, and the page with all of it."""
