"""Data: a task's rows from any source in one form, batches of them, and the metrics."""
