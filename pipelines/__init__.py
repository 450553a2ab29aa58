"""Recipes: scripts that choose options and run the commands. No other code imports them."""
