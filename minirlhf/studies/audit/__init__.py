"""Audit of estimators: value and gradient of a component against exact enumeration, one kind a file."""
