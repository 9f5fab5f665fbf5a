"""Engines kept alive: processes, leases, and the workers that run inside those processes."""
