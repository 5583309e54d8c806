"""Transfer methods, one file each; ``kt.transfer.method.registry`` finds them."""
