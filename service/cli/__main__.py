"""`python -m service.cli` is `convmlp`."""

from service.cli.app import main

main()
