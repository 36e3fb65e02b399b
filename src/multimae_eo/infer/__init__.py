"""Using a trained model: reconstructing chips, drawing and scoring what it says."""
