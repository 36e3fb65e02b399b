"""The folder that a model is saved in: loading, saving, the model card, migrations, the hub."""
