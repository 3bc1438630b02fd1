"""What Twisted's transports lack; knows no message and no stamp."""
