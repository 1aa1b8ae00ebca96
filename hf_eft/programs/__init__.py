"""What the command line, the server and the playground share: answers, batch runs, conversations, tables."""
