"""What things cost, measured next to the least that MongoDB would take for the same."""
