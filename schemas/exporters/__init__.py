"""Stores in the files of other software."""
