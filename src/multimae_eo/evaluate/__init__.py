"""How good frozen features are, honestly: probes beside trivial baselines, with intervals."""
