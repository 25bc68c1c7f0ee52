"""The remote judge: wire protocol, reward server, client. Import from the modules; this file has no dependencies."""
