"""What turns a trained model into one that runs elsewhere."""
