"""Reports: one HTML page about one finished run or several."""
