"""The locks, and what installs and checks by them. Standard library only: nothing else is there yet."""
