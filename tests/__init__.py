"""One module for each module of tsecho, then real processes and sockets."""
