"""The command line, and the models that it trains, saves and loads."""
