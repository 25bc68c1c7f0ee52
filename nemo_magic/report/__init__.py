"""What a run left behind, made readable: its records and its picture."""
