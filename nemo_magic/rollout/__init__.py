"""Playing conversations: which policy plays a role, the one loop that plays, and the rewards of what was played."""
