"""The exact lab: problems small enough that every answer is known, and what is known about them."""
