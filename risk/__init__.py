"""Risk: signals in, orders and fills out; one fenced writer per account."""
