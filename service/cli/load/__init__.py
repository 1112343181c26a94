"""Load tests of a running service: an HTTP client, the requests, and the loops that send and measure them."""
