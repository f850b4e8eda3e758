"""One run and what surrounds its steps."""
