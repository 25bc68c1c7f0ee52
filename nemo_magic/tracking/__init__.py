"""Where metrics go while a run goes on: files, TensorBoard, wandb, the console, the live report."""
