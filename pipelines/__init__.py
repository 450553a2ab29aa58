"""Recipes: choices, no logic; nothing imports them."""
