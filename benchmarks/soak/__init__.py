"""A soak test: callers of all kinds, and faults at random times, against a whole service (`make soak`)."""
