"""Plants: what their meters say, and the energy and carbon that follow from it."""
