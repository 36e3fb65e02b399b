"""The public functions: one for each subcommand, with the same options.

They take models and sources as objects or as paths, load what they need and call the rooms below.
"""
