"""What a run's attacker did: strategies, mixes, hybrids, novelty, diversity, intent. Imports neither torch nor NeMo."""
