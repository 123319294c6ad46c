"""Training runs on disk: folder, checkpoints, TensorBoard, episode log, progress, evaluation, video."""
