"""Metrics of predictions and reconstructions, with confidence intervals."""
