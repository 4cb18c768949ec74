"""Parts of an iteration: experience, terms, controllers, metrics, alarms."""
