"""A trainer that waits for jobs and runs them one at a time. Imports neither torch nor anything that uses a GPU."""
