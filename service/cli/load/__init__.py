"""Load on a running service: what one request came to, the two loops that send them, and the figures of both."""
