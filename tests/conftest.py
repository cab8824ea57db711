"""Shared by all tests: hypothesis draws the same examples everywhere, so that a run can be repeated."""

from hypothesis import settings

settings.register_profile("repeatable", derandomize=True)
settings.load_profile("repeatable")
