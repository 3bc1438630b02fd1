"""`tsecho ping`: round trips, loss, and how wrong the server's clock is."""
