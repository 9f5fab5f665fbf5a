"""Measurements. Each prints a table; none is a test, because a loaded machine must not fail a build."""
