"""HTTP clients that retry, and what clients and servers share. Nothing here knows what is asked."""
