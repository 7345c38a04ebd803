"""The command line: the top of everything. It assembles both packages; nothing imports it."""
