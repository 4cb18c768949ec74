"""The audit: what an estimator gives and where its gradient points, held against exact enumeration."""
