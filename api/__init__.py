"""The doors: HTTP, background jobs, the command line, and the configuration they are given."""
