"""``python -m upstash_middleware.local``; nothing else may live here."""

import sys

from upstash_middleware.local.command_line import main

if __name__ == "__main__":
    sys.exit(main())
