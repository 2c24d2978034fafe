"""``python -m service`` is the `approvals` command."""

from service.cli import main

main()
