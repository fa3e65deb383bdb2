"""How the formats of image files are decoded; `rrt_core.images.decode` is what calls it."""
