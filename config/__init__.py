"""What exists: the schema, the profiles and the one loader."""

__version__ = "0.1.0"
