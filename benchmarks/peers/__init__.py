"""What Rowcast is measured against, each with its configuration, and Rowcast itself with a publisher inside."""
