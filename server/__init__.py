"""The HTTP server: FastAPI in front, one worker process per device behind a socket pair."""

__version__ = "0.1.0"
