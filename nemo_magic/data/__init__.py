"""Data files: seed queries, attack pools, chat pools. Rows that cannot be used are counted by reason."""
