"""The slowest answers under load: measured with the real service, and simulated under other policies."""
