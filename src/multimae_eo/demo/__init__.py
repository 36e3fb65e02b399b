"""The demo: a page to mask patches, map a scene, search it, and look at training runs."""
