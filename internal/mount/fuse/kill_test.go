package fuse

func daemonMain() int { return 0 }
func readerMain() int { return 0 }
