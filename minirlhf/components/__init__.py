"""Plugins: how a component is read, checked, built, called and found."""
