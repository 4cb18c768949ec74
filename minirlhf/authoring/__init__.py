"""Tools for people who write plugins: templates and checks."""
