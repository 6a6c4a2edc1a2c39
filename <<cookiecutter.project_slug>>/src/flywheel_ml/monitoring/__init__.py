"""What the model met after training, against what it was trained on."""
