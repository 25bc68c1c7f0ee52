"""Asking servers over HTTP. Knows nothing of what is asked."""
