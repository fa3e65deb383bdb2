"""Ground truths and labels: their forms, read and checked."""
