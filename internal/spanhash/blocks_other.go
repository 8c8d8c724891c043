//go:build !amd64

package spanhash

const accelerated = false

func blocks(_, _ *[8]uint32, _ []byte) { panic("not accelerated") }
