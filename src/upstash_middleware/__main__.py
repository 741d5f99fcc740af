"""``python -m upstash_middleware``: the command ``upstash-middleware``."""

import sys

from upstash_middleware.cli.entry import main

if __name__ == "__main__":
    sys.exit(main(program="python -m upstash_middleware"))
