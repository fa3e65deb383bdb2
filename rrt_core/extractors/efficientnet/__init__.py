"""The default extractor, by EfficientNet-Lite0."""
