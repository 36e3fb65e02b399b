"""Applying a trained model to chips: features, predictions, reconstructions, similarity search."""
