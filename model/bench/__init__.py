"""Timing of whole pictures and their stages, beside diffusers: `python -m model.bench`."""
