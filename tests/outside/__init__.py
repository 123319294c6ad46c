"""Agents as somebody outside the package would write them; each runs alike as Python, recorded and compiled."""
