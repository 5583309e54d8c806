"""One file a transfer method; ``kt.transfer.method.registry`` finds them."""
