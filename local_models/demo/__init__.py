"""The two demo models that ship with Tandem: their world, data, training and weights.

Nothing outside this folder imports it; the workers only load `weights/` from disk.
"""
