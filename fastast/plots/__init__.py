"""Figures as inline SVG, of runs and of benches."""
