"""Storage: complete files and directories, locks, JSON lines, weights, states, checkpoints and progress of stages."""
