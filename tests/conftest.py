"""What all tests share: hypothesis draws the same examples on every machine, so that a run can be repeated."""

from hypothesis import settings

settings.register_profile("repeatable", derandomize=True)
settings.load_profile("repeatable")
