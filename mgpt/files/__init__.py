"""Files that appear whole, object stores, and child processes that end with their parent."""
