"""Model definitions, one file for each architecture family. See docs/guides/add-a-model.md."""
