"""Many runs, one answer: comparisons, over-optimisation, audits, benchmarks, labelling."""
