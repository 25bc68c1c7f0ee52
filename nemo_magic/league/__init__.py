"""Every kept attacker against every kept defender, and what the matrix says: equilibrium, exploitability, ratings."""
