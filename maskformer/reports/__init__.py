"""Drawing, id maps and HTML pages, for every command that shows results."""
