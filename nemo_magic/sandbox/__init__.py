"""A made-up world in which the game is real, cheap and harmless by construction.

Requests name an item spelled in syllables; a public rule makes half of the items restricted. Disguises are invertible
or merely decorative, so a rule-based judge decodes any rewrite exactly.
"""
