"""The outside world: servers the stack runs on, push, identity, signatures, files from partners."""
