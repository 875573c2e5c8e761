"""What a student is trained to match: pure functions that give one number per example."""
