"""Speed, memory and evidence measured on the library. It depends on ``dgating``, never the reverse."""
