"""Pages that show a run, or several, in one file that opens anywhere without a network."""
