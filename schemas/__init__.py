"""What lies on disk: one module a kind of file. Knows neither the models nor the pipeline."""
