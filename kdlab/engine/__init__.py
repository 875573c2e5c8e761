"""What every trained stage shares: the loop, the optimiser, checkpoints, placement, tracking."""
