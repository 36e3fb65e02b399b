"""A model as a graph for other runtimes: ``torch.export`` and ONNX, checked against eager."""
