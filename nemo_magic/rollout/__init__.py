"""Playing conversations: who speaks for a role, the one loop that plays, and the rewards of what was played."""
