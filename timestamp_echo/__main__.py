"""`python -m timestamp_echo` is the client, as `tsecho` is."""

import sys

from timestamp_echo.client.command import main

sys.exit(main())
