"""The built-in components, registered through the same hooks as anyone's plugin."""
