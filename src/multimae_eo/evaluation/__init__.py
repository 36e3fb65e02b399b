"""How good a model is, honestly: probes, trivial baselines, intervals, paired tests, cards."""
