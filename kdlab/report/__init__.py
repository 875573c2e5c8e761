"""What a finished run tells: the model card, the summary tables, and the replay of its points to wandb."""
