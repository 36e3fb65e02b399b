"""Drafts of dataset and scene files, from the files that are there."""
