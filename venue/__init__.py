"""The exchange in a box: a protocol-faithful Binance USDⓈ-M simulator on loopback."""
