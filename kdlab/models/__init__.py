"""Encoders: loading, cutting a student out of a teacher, reading inner tensors, moving averages."""
