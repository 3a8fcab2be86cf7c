"""`python -m migrations`: bring the database of DATABASE_URL to the newest schema."""

import os
import sys

from migrations.upgrade import upgrade

if __name__ == "__main__":
    url = os.environ.get("DATABASE_URL")
    if not url:
        sys.exit("DATABASE_URL is not set")
    upgrade(url)
