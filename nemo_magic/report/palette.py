"""Colours of all charts and pictures."""

from __future__ import annotations

# Okabe and Ito's palette: told apart under every common form of colour blindness. Dashes and markers say it again.
ORANGE, BLUE, GREEN, PURPLE = "#D55E00", "#0072B2", "#007A5A", "#A0527F"
SKY, YELLOW, GREY = "#3A8FC4", "#B8860B", "#666666"
PALETTE = (BLUE, ORANGE, GREEN, PURPLE, YELLOW, SKY, "#333333", "#8C510A")
INK, MUTED = "#222222", "#666666"
# Greys, so that a phase is never mistaken for a curve.
PHASE_SHADES = {"attacker": "#DFDFE3", "defender": "#F5F5F7"}
OTHER_SHADE = "#EBEBEE"
# One hue, light to dark: prints in grey and reads without colour vision.
HEAT = ("#FBF3EC", "#FBDCC3", "#F2A368", "#CC5A00", "#6E2A00")
