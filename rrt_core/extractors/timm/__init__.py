"""Extractors by the backbones of the package timm."""
