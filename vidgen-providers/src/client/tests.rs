//! What the clients do and do not do, seen from sockets on loopback.
