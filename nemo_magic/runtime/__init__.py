"""What any long run needs: checkpoints, resuming, pre-emption, the watchdog, and what is left to read when it died."""
