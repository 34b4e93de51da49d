"""One module for each target language, imported on use."""
