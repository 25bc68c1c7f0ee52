"""Memory, time and cost of a run before it starts: ``nemo-magic plan``. docs/planner.md has the assumptions."""
