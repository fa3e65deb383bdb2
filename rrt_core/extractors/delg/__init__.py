"""DELG in torch, and its weights out of TensorFlow."""
