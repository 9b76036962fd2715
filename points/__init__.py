"""Points: how they are earned, the wallet that holds them, and milestones."""
