"""Recipes, the objective, and training with Lightning."""
