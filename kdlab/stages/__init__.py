"""The work of a run: plain functions that turn input artifacts and plain values into one artifact."""
