"""What the project needs beside itself: reading its documents, taking its pictures."""
