"""Tools for people who write plugins: templates (scaffold) and checks (check), public as minirlhf.testing."""
