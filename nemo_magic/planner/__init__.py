"""What a run takes, before the GPUs are paid for: ``nemo-magic plan``. docs/planner.md has the assumptions."""
