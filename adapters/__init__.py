"""Every upstream made to look the same: one file for each kind."""
