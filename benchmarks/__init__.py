"""Scripts behind every figure that the project claims: run each by its path, from any folder."""
