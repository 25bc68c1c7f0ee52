"""What the pinned NeMo stack needs in order to run where it was not written for."""
