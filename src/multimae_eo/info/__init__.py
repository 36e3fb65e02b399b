"""What a path holds: a store, a model, a run, a map."""
