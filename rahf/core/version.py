"""The version. setup.cfg and everything that writes files read it here."""

__version__ = "0.1.0"
